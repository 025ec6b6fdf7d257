"""Words of the page of a review, in Node."""

from __future__ import annotations

from pathlib import Path

from tests.serving.web_driver import needs_node, run_node

pytestmark = needs_node


def test_words__say_what_was_done(tmp_path: Path) -> None:
    code = """
    import { outcome, told } from "@/review/words.js";
    const record = (label, now) => ({ label, decision: now ? { do: "relabel", label: now } : null });
    const run = () => ({
      told: [told("keep", [record("ant")]), told("accept", [record("ant", "bee"), record("bee", "bee")]),
        told("accept", [record("ant", "bee"), record("ant", "fly")]), told("relabel", [record("ant", "<b>")], "<b>"),
        told("duplicate", [record("ant"), record("ant")])],
      outcomes: [{ do: "keep" }, { do: "relabel", label: "bee" }, { do: "group", of: "b.png" }].map(outcome),
    });
    """
    found = run_node(code, None, tmp_path)
    assert found["told"] == [
        "1 image kept.",
        "2 images labeled bee.",
        "2 images labeled as suggested.",
        "1 image labeled <b>.",
        "2 images removed as duplicates.",
    ]
    assert found["outcomes"] == ["Kept as it is", "Labeled bee", "In one group with b.png"]


def test_num_changes__leaves_out_what_was_kept(tmp_path: Path) -> None:
    code = """
    import { numChanges } from "@/review/changes.js";
    const run = (counts) => numChanges(counts);
    """
    assert run_node(code, {"keep": 5, "relabel": 2, "drop": 1, "duplicate": 0, "group": 1}, tmp_path) == 4
