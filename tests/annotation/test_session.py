"""What people do in a session, what it learns, and the models that are made of it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.annotation.photos import color_of, make_embedding_model
from tests.annotation.sessions import COUNT, label, labels_of, rows
from tests.annotation.sessions import output as output
from tests.annotation.sessions import photos as photos
from tl.annotation import views
from tl.annotation.feature_sources import open_source
from tl.annotation.model_making import MadeModel
from tl.annotation.opening import SessionPlan, open_session
from tl.annotation.page_requests import Refused, Seen
from tl.annotation.session import LabelSession
from tl.annotation.views import Asked
from tl.data.manifests import read_images
from tl.errors import ConfigError, OutputError


def test_act__the_journal_can_be_read_again(photos: Path, output: Path) -> None:
    plan = SessionPlan(photos, output)
    with open_session(plan, None) as session:
        first, second, third = (int(i) for i in session._order[:3])
        assert session.act("w", [Seen(first, 0)], "clear").event is None  # there is nothing to clear
        session.act("w", [Seen(first, 0)], "skip", confirmed=True)
        label(session, second)
        done = session.act("w", [Seen(second, 0), Seen(third, 0), Seen(first, 0)], "clear", confirmed=True)
        assert [record["id"] for record in done.records] == [second, first]
    assert labels_of(plan) == [None] * COUNT


def test_groups__stay_in_one_split(photos: Path, output: Path) -> None:
    plan = SessionPlan(photos, output, has_groups=True)
    with open_session(plan, None) as session:
        label(session, *range(COUNT))
    splits: dict[str, set[str]] = {}
    for row in rows(output):
        splits.setdefault(row["group"], set()).add(row["split"])
    assert set(splits) == {"a", "b", "c", "d"}
    assert sorted(tuple(one) for one in splits.values()) == [("train",)] * 2 + [("val",)] * 2
    with open_session(SessionPlan(photos, output), None) as session:  # the journal knows
        assert session.photos.has_groups
    other = output.with_name("other.csv")
    with open_session(SessionPlan(photos, other), None):
        pass
    with (
        pytest.raises(ConfigError, match="begun without groups"),
        open_session(SessionPlan(photos, other, has_groups=True), None),
    ):
        pass


def test_random_labels__only_as_far_as_the_order_is_complete(photos: Path, output: Path) -> None:
    """Images that somebody picks from the reserve are no random sample until those before them are decided."""
    with open_session(SessionPlan(photos, output), None) as session:
        order = session._order.tolist()
        label(session, order[3], order[4])
        assert not session._is_random().any()
        label(session, order[0])
        assert np.flatnonzero(session._is_random()).tolist() == [order[0]]
        session.act("w", [Seen(order[1], 0)], "skip")
        session.act("w", [Seen(order[2], 0)], "unsure")
        assert set(np.flatnonzero(session._is_random()).tolist()) == {order[0], order[3], order[4]}
    sampled = {row["path"]: row["sampled"] for row in rows(output)}
    assert list(sampled.values()) == ["random"] * 3


def test_learning__suggestions_follow_labels(photos: Path, output: Path, tmp_path: Path) -> None:
    model = make_embedding_model(tmp_path / "m.onnx")
    with open_session(SessionPlan(photos, output), lambda: open_source(model, None, "cpu", 1)) as session:

        def wait(count: int) -> None:
            ends = time.monotonic() + 60
            while not ((head := session.state()["head"]) and head["fitted_to"] == count and not head["is_fitting"]):
                assert time.monotonic() < ends, session.state()
                time.sleep(0.02)

        free = [i for i in range(COUNT) if not session.reserved[i]]
        for name in ("red", "green"):
            label(session, *[i for i in free if color_of(session.photos.names[i]) == name][:2], name=name)
        wait(4)
        suggested = session.list_images(Asked("suggested", "red"))[1]
        assert not session.reserved[suggested].any()
        confidence = [record["confidence"] for record in session.records(suggested)]
        assert confidence == sorted(confidence, reverse=True)
        assert color_of(session.records(suggested[:1])[0]["name"]) == "red"
        counts = {one["name"]: one["suggested"] for one in session.state()["classes"]}
        assert counts["red"] == len(suggested)
        blind = int(session._order[0])
        for do in ("unsure", "skip"):
            record = session.act("w", [Seen(blind, 0)], do).records[0]
            assert (record["status"] != "open", record["suggestion"], record["top"]) == (True, None, None)
            assert session.info(blind)["neighbors"] == []
        assert session.info(free[0])["neighbors"] != []
        label(session, blind, name="blue")
        assert session.records([blind])[0]["top"] is not None
        for _ in range(3):
            session.undo("w")
        session.undo("w")
        ends = time.monotonic() + 60
        while session.state()["head"] is not None:  # one class is left
            assert time.monotonic() < ends
            time.sleep(0.02)
        assert session.list_images(Asked("suggested"))[1] == []
        assert session.records([0])[0]["suggestion"] is None


def test_info__while_a_label_is_cleared(
    photos: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neighbors have the label that they had when they were looked for."""
    model = make_embedding_model(tmp_path / "m.onnx")
    with open_session(SessionPlan(photos, output), lambda: open_source(model, None, "cpu", 1)) as session:
        ends = time.monotonic() + 60
        while session.work.done < COUNT:
            assert time.monotonic() < ends
            time.sleep(0.02)
        first, second = np.flatnonzero(~session.reserved)[:2].tolist()
        label(session, first)
        session.change_class("w", "add", "the last class", None)
        found = views.find_similar

        def clear_meanwhile(*args: Any) -> Any:
            session.act("w", [Seen(first, int(session.labels.version[first]))], "clear")
            return found(*args)

        monkeypatch.setattr(views, "find_similar", clear_meanwhile)
        assert [(one["id"], one["label"]) for one in session.info(second)["neighbors"]] == [(first, "red")]


def test_features__that_cannot_be_computed_do_not_end_the_session(photos: Path, output: Path, tmp_path: Path) -> None:
    with open_session(SessionPlan(photos, output), lambda: open_source(tmp_path / "gone.onnx", None)) as session:
        ends = time.monotonic() + 30
        while not session.state()["features"]["error"]:
            assert time.monotonic() < ends
        label(session, 0)
    assert len(rows(output)) == 1


def test_act__from_several_threads(photos: Path, output: Path) -> None:
    plan = SessionPlan(photos, output)
    with open_session(plan, None) as session:

        def work(number: int) -> None:
            for i in range(number, COUNT, 4):
                label(session, i, name=str(number), window=f"w{number}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert labels_of(plan) == [str(i % 4) for i in range(COUNT)]
    with pytest.raises(OutputError, match="is closed"):
        label(session, 0)


def test_change_class__merges(photos: Path, output: Path) -> None:
    plan = SessionPlan(photos, output, ["red", "crimson", "blue"])
    with open_session(plan, None) as session:
        label(session, 0, 1)
        label(session, 2, 3, name="crimson", window="v")
        done = session.change_class("w", "merge", "crimson", "red")
        assert [(record["id"], record["label"]) for record in done.records] == [(2, "red"), (3, "red")]
        assert [row["name"] for row in session.state()["classes"]] == ["red", "blue"]
        for name, new, why in [("crimson", "red", "no class"), ("red", "red", "itself"), ("red", "x", "no class 'x'")]:
            with pytest.raises(Refused, match=why):
                session.change_class("w", "merge", name, new)
    assert {row["label"] for row in rows(output)} == {"red"}
    with open_session(plan, None) as session:  # --classes does not bring it back
        assert [row["name"] for row in session.state()["classes"]] == ["red", "blue"]
        assert [record["id"] for record in session.undo("w").records] == [2, 3]
    assert labels_of(plan)[:5] == ["red", "red", "crimson", "crimson", None]


def made_of(session: LabelSession, name: str) -> tuple[list[str], str]:
    """The images of a model that is made now, and what the page says of it."""
    session.make_model("features", name)
    ends = time.monotonic() + 30
    while session.state()["model"]["state"] == "running":
        assert time.monotonic() < ends
        time.sleep(0.01)
    state = session.state()["model"]
    return Path(state["file"]).read_text().splitlines(), state["text"]


def list_images(labels: Path, model: Path, **options: Any) -> MadeModel:
    """Stands for training: lists the images that it is given, which must exist."""
    model.write_text("\n".join(Path(image.name).name for image in read_images(labels)))
    scores = {"top1_accuracy": 1.0, "ci_low": 0.2, "ci_high": 1.0, "n": 2}
    return MadeModel(model, None, {"val": scores}, is_random=True)


def test_make_model__leaves_out_photos_that_are_gone_or_changed(photos: Path, output: Path) -> None:
    with open_session(SessionPlan(photos, output), None, make=list_images) as session:
        label(session, *range(8))
        names = [Path(name).name for name in session.photos.names]
        assert made_of(session, "all")[0] == names[:8]
        gone, changed = Path(session.photos.paths[1]), Path(session.photos.paths[2])
        content = gone.read_bytes()
        gone.unlink()
        changed.write_bytes(content + b"more")
        images, told = made_of(session, "fewer")
        assert images == [names[0], *names[3:8]]
        assert f"1 labeled image is missing: {session.photos.names[1]}; 1 labeled image has changed since" in told
        label(session, 2)
        gone.write_bytes(content)
        os.utime(gone, ns=(0, 0))  # another file than the one that was labeled, if of the same size
        images, told = made_of(session, "again")
        assert images == [names[0], *names[2:8]]
        assert "missing" not in told
        for i in range(3, 8):
            Path(session.photos.paths[i]).unlink()
        with pytest.raises(Refused, match=r"5 labeled images are missing: .*: connect their drive"):
            session.make_model("features", "none")
    assert len(rows(output)) == 8  # the labels are kept


def test_close__does_not_write_over_an_edit(photos: Path, output: Path) -> None:
    with open_session(SessionPlan(photos, output), None) as session:
        label(session, 0)
        ends = time.monotonic() + 30
        while not rows(output):
            assert time.monotonic() < ends
            time.sleep(0.01)
        output.write_text("edited")
    assert output.read_text() == "edited"  # the next start sets it aside


def test_records__are_checked(photos: Path, output: Path) -> None:
    with open_session(SessionPlan(photos, output), None) as session:
        for ids in ([-1], [COUNT]):
            with pytest.raises(Refused, match="no such image"):
                session.records(ids)
        with pytest.raises(Refused, match="given twice"):
            session.act("w", [Seen(1, 0), Seen(1, 0)], "skip")
