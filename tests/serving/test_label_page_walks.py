"""Random actions in two windows of `tl label` on a slow connection: in the end, both show what the server keeps.

`TL_TEST_WALKS=40` walks 40 times, by the seeds 0 to 39; times differ from run to run.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from tests.serving.page_steps import Step, agree, evaluate, keep, pause, press

pytest.importorskip("tl.serving.app", reason="needs the packages of the extra serve", exc_type=ImportError)
pytest.importorskip("httpx", reason="needs httpx")

from tests.serving.label_server import FOCUS_GRID, KEYS, NAMED, labeling, look
from tl.annotation.opening import SessionPlan

pytestmark = pytest.mark.slow
SEEDS = range(int(os.environ.get("TL_TEST_WALKS", "1")))
STEPS = 120
VIEWS = ("next", "suggested", "all", "labeled", "unsure", "skipped")
# What a person presses most comes most often.
ACTIONS = ["1", "2", "3"] * 4 + ["x", "s", "Delete", "u", "u", "Control+Shift+Z", "c", "r", "f", "Escape"] * 2
MOVES = ["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", " ", "Shift+ArrowRight", "Home", "End"]
PAGE = Path(__file__).with_name("label_walk.js").read_text(encoding="utf-8")


def walk(seed: int, url: str) -> list[Step]:
    chance, now = random.Random(seed), 0
    steps: list[Step] = [{"do": "window", "url": url}, {"do": "visible", "selector": NAMED}]
    for _ in range(STEPS):
        what = chance.choices(["act", "move", "view", "window", "pause", "large", "class"], [10, 5, 2, 2, 2, 1, 1])[0]
        if what == "window":
            now = 1 - now
            steps += [{"do": "switch", "number": now}, FOCUS_GRID]
        elif what == "view":
            steps += [evaluate(f"document.getElementById('view-{chance.choice(VIEWS)}').click()")]
        elif what == "pause":
            steps += [pause(chance.choice([50, 300, 1500]))]
        elif what == "large":
            steps += [press("z"), pause(100), press(*chance.choices("123xs", k=2)), press("Escape")]
        elif what == "class":
            told = [chance.choice(["rename", "merge", "add", "undo"]), *chance.choices(range(6), k=2)]
            steps += [evaluate(f"{PAGE}.change(...{json.dumps(told)})")]
        else:
            steps += [press(*chance.choices(ACTIONS if what == "act" else MOVES, k=chance.randint(1, 3)))]
    for number in (0, 1):
        steps += [{"do": "switch", "number": number}, press("Escape", "Escape")]
        steps += [keep(f"window {number}", agree(f"{PAGE}.compare()"))]
    return steps


@pytest.mark.parametrize("seed", SEEDS)
def test_page__a_random_walk(seed: int, plan: SessionPlan, model: Path, npm: Path, tmp_path: Path) -> None:
    with labeling(plan, model) as page:
        for image in range(0, 90, 2):  # a model that suggests
            page.label([image], list(KEYS)[image % 3], window="before")
        page.wait(lambda state: state["head"] and not state["head"]["is_fitting"])
        driven = look(page, npm, tmp_path, walk(seed, page.access.url), lag=150)
        # There may be nothing to undo, and a class that another window has just renamed.
        assert [error for error in driven.errors if "status of 409" not in error and "&class=" not in error] == []
    for number in (0, 1):
        for what, (shown, kept) in driven.named[f"window {number}"].items():
            assert shown == kept, (number, what, driven.named[f"window {number}"]["view"])
