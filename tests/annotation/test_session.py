"""Open, go on with and close sessions: what is taken over, refused, set aside and brought back; what is offered."""

from __future__ import annotations

import csv
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.annotation.photos import color_of, make_embedding_model, make_photos
from tl.annotation import views
from tl.annotation.features import open_source
from tl.annotation.journal import Event, Journal
from tl.annotation.model_job import making_path
from tl.annotation.model_making import MadeModel
from tl.annotation.opening import SessionPlan, open_session
from tl.annotation.outputs import journal_path
from tl.annotation.page_requests import Refused, Seen
from tl.annotation.queue import SECONDS_OFFERED, Queue
from tl.annotation.session import LabelSession
from tl.annotation.views import Asked
from tl.data.manifests import read_images
from tl.errors import ConfigError, DataError, OutputError

COUNT = 60


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", COUNT, folders=("a", "b", "c", "d"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def label(session: LabelSession, *ids: int, name: str = "red", window: str = "w") -> None:
    seen = [Seen(i, int(session.labels.version[i])) for i in ids]
    assert session.act(window, seen, "label", label=name).conflicts == []


def labels_of(plan: SessionPlan) -> list[str | None]:
    """The label of each image, at the next start."""
    with open_session(plan, None) as session:
        return [record["label"] for record in session.records(range(len(session.photos)))]


def test_open_session__goes_on(photos: Path, output: Path) -> None:
    plan = SessionPlan(photos, output, ["red", "green"])
    with open_session(plan, None) as session:
        label(session, 0, 1)
        label(session, 2, name="blue")
        session.undo("w")
        reserved = session.reserved.copy()
        assert reserved.sum() == COUNT // 2
        version = session.labels.version.copy()
    assert len(rows(output)) == 2
    output.unlink()  # the journal is the truth
    said: list[str] = []
    with open_session(SessionPlan(photos, output, ["green", "black"]), None, said.append) as session:
        assert [one.name for _, one in session.labels.classes] == ["red", "green", "blue", "black"]
        np.testing.assert_array_equal(session.reserved, reserved)
        np.testing.assert_array_equal(session.labels.version, version)
        assert len(rows(output)) == 2
        assert [record["label"] for record in session.records([0, 1, 2])] == ["red", "red", None]
        session.redo("w")  # a window that was reloaded
    assert said == []
    assert labels_of(plan)[:4] == ["red", "red", "blue", None]


def test_open_session__photos_that_came_and_went(photos: Path, output: Path) -> None:
    plan = SessionPlan(photos, output)
    with open_session(plan, None) as session:
        label(session, 0, 1, 2)
        names = list(session.photos.names)
    (photos / names[1]).unlink()
    (photos / "aaa.png").write_bytes((photos / names[2]).read_bytes())
    said: list[str] = []
    with open_session(plan, None, said.append) as session:
        assert "1 images that were labeled are gone" in said[0]
        shown = {record["name"]: record["label"] for record in session.records(range(COUNT))}
        assert [shown[names[0]], shown[names[2]], shown["aaa.png"]] == ["red", "red", None]
    assert len(rows(output)) == 2
    other = make_photos(photos.parent / "others", 5)
    with (
        pytest.raises(ConfigError, match="has other images: give that folder"),
        open_session(SessionPlan(other, output), None),
    ):
        pass


def test_open_session__labels_stay_with_their_folder(photos: Path, output: Path) -> None:
    with open_session(SessionPlan(photos, output), None) as session:
        label(session, 0)
        name = session.photos.names[0]
    other = make_photos(photos.parent / "other" / "photos", COUNT, (13, 16), ("a", "b", "c", "d"))
    before = journal_path(output).read_bytes()
    with pytest.raises(ConfigError, match="has other images: give"), open_session(SessionPlan(other, output), None):
        pass  # equal names, other images
    assert journal_path(output).read_bytes() == before
    moved = photos.rename(photos.with_name("moved"))
    with open_session(SessionPlan(moved, output), None) as session:
        assert session.records([0])[0]["label"] == "red"
    (moved / name).unlink()  # the only photo with a label
    assert labels_of(SessionPlan(moved, output)) == [None] * (COUNT - 1)


def test_open_session__a_journal_of_a_review(photos: Path, output: Path) -> None:
    journal, _ = Journal.open(journal_path(output))
    journal.append(Event(do="open", version="1", root="photos", kind="review"))
    journal.close()
    with (
        pytest.raises(ConfigError, match="is the journal of tl review"),
        open_session(SessionPlan(photos, output), None),
    ):
        pass


def test_open_session__says_how_many_labeled_photos_are_gone(photos: Path, output: Path) -> None:
    plan, said = SessionPlan(photos, output), list[str]()
    with open_session(plan, None) as session:
        names = session.photos.names
        label(session, 0, 1, 2)
        session.act("w", [Seen(1, int(session.labels.version[1]))], "clear")
        session.act("w", [Seen(3, 0)], "skip")
        session.note("w", Seen(4, 0), "odd")
    late = time.time() + 60
    os.utime(output, (late, late))
    for i in (0, 1, 3, 4):
        (photos / names[i]).unlink()
    with open_session(plan, None, said.append):
        pass
    assert said == [f"1 images that were labeled are gone from {photos}; 1 labels are left"]  # and nothing was edited


def test_open_session__classes_that_were_renamed_or_removed_stay_so(photos: Path, output: Path) -> None:
    plan = SessionPlan(photos, output, ["ant", "bee", "re\u0301  sume\u0301"])
    with open_session(plan, None) as session:
        session.change_class("w", "rename", "ant", "emmet")
        session.change_class("w", "remove", "bee", None)
        session.act("w", [Seen(0, 0)], "label", label="re\u0301 sume\u0301")
    with open_session(plan, None) as session:
        assert [row["name"] for row in session.state()["classes"]] == ["emmet", "r\u00e9 sum\u00e9"]


def test_open_session__one_process_at_a_time(photos: Path, output: Path) -> None:
    plan = SessionPlan(photos, output)
    told = "is being written by process"
    with open_session(plan, None), pytest.raises(OutputError, match=told), open_session(plan, None):
        pass
    same_journal = SessionPlan(photos, output.with_suffix(".CSV"))
    with open_session(plan, None), pytest.raises(OutputError, match=told), open_session(same_journal, None):
        pass
    assert labels_of(plan)[0] is None


def test_open_session__an_output_without_a_journal_is_nobodys_to_replace(photos: Path, output: Path) -> None:
    output.write_text("path,label\nphotos/a/0000-red.png,mine\n")
    plan = SessionPlan(photos, output)
    with pytest.raises(OutputError, match="without the journal") as raised, open_session(plan, None):
        pass
    assert raised.value.options == (f"import={output}", "overwrite")
    assert output.read_text().endswith("mine\n")
    assert not journal_path(output).exists()
    said: list[str] = []
    with open_session(SessionPlan(photos, output, overwrite=True), None, said.append):
        pass
    assert said == ["labels.csv is now labels.1.csv"]
    assert output.with_name("labels.1.csv").read_text().endswith("mine\n")
    with open_session(SessionPlan(photos, output, overwrite=True), None, said.append) as session:
        label(session, 0)
        session.act("w", [Seen(1, 0)], "skip")
    assert said[1:] == ["labels.csv is now labels.2.csv", "labels.journal.jsonl is now labels.2.journal.jsonl"]
    with open_session(SessionPlan(photos, output, overwrite=True), None, said.append):
        pass
    assert said[-1] == "labels.notes.csv is now labels.3.notes.csv"
    assert len(rows(output.with_name("labels.3.csv"))) == 1


def test_open_session__sets_nothing_aside_for_a_request_that_is_refused(photos: Path, output: Path) -> None:
    with open_session(SessionPlan(photos, output), None) as session:
        label(session, 0)
    before = {path.name: path.read_bytes() for path in output.parent.glob("labels*")}
    for plan in (
        SessionPlan(photos, output, labels=output.with_name("gone.csv"), overwrite=True),
        SessionPlan(photos, output, ["?"], overwrite=True),
    ):
        with pytest.raises((ConfigError, DataError)), open_session(plan, None):
            pass
        assert {path.name: path.read_bytes() for path in output.parent.glob("labels*")} == before
    with open_session(SessionPlan(photos, output, labels=output, overwrite=True), None) as session:
        assert session.records([0])[0]["label"] == "red"


def test_open_session__keeps_an_output_that_was_edited(photos: Path, output: Path) -> None:
    plan, said = SessionPlan(photos, output), list[str]()
    with open_session(plan, None) as session:
        label(session, 0, 1)
        session.note("w", Seen(0, 0), 'a "b",\nc')
    late = time.time() + 60
    os.utime(output, (late, late))  # copied, and not changed
    with open_session(plan, None, said.append):
        pass
    assert said == []
    edited = output.read_text().replace(",red,", ",mine,")
    output.write_text(edited)
    os.utime(output, (late, late))
    with open_session(plan, None, said.append):
        pass
    assert said[0].startswith("labels.csv was edited since the last session")
    assert output.with_name("labels.1.csv").read_text() == edited
    assert {row["label"] for row in rows(output)} == {"red"}


def test_open_session__takes_over_labels(photos: Path, output: Path) -> None:
    output.write_text(
        "path,label\n" + "".join(f"photos/a/{path.name},{color_of(path.name)}\n" for path in (photos / "a").iterdir())
    )
    with open_session(SessionPlan(photos, output, ["black"], labels=output), None) as session:
        assert [one.name for _, one in session.labels.classes] == ["black", "blue", "green", "red"]
        taken = [i for i, name in enumerate(session.photos.names) if name.startswith("a/")]
        assert all(record["label"] == color_of(record["name"]) for record in session.records(taken))
        assert not session.reserved[taken].any()  # others chose them
        assert session.reserved.sum() == (COUNT - len(taken)) // 2
        reserved = session.reserved.copy()
    assert {row["sampled"] for row in rows(output)} == {"selected"}
    assert len(rows(output)) == len(taken)
    with open_session(SessionPlan(photos, output), None) as session:
        np.testing.assert_array_equal(session.reserved, reserved)
    with (
        pytest.raises(ConfigError, match="at its start only"),
        open_session(SessionPlan(photos, output, labels=output), None),
    ):
        pass


def test_open_session__a_takeover_that_was_interrupted_begins_again(photos: Path, output: Path) -> None:
    listed = output.with_name("old.csv")
    listed.write_text("path,label\n" + "".join(f"photos/a/{p.name},re\u0301d\n" for p in (photos / "a").iterdir()))
    plan = SessionPlan(photos, output, labels=listed, seed=1)
    with open_session(plan, None) as session:
        reserved = session.reserved.copy()
    path = journal_path(output)
    path.write_bytes(path.read_bytes()[:-30])
    output.unlink()
    with open_session(plan, None) as session:
        assert session.state()["counts"]["labeled"] == 15
        assert [row["name"] for row in session.state()["classes"]] == ["r\u00e9d"]
        np.testing.assert_array_equal(session.reserved, reserved)


def test_reserve__stays_when_photos_come_and_go(photos: Path, output: Path) -> None:
    listed = output.with_name("old.csv")
    listed.write_text("path,label\nphotos/a/0000-red.png,red\n")
    plan = SessionPlan(photos, output, labels=listed, has_groups=True, seed=2)
    with open_session(plan, None) as session:
        names = [session.photos.names[i] for i in session._order]
        assert not [name for name in names if name.startswith("a/")]
        label(session, *session._order[:12].tolist())
        assert session._is_random().sum() == 12
    (photos / "a" / "0000-red.png").unlink()  # the only imported photo of its group
    make_photos(photos, 90, folders=("a", "b", "c", "d", "e", "f"))
    (photos / "a" / "0000-red.png").unlink()
    for _ in range(2):
        with open_session(SessionPlan(photos, output), None) as session:
            now = [session.photos.names[i] for i in session._order]
            assert now[: len(names)] == names
            assert not [name for name in now if name.startswith("a/")]
            assert session._is_random().sum() == 12


def test_reserve__says_that_there_is_none(tmp_path: Path, output: Path) -> None:
    said: list[str] = []
    plan = SessionPlan(make_photos(tmp_path / "one", 20, folders=("all",)), output, has_groups=True)
    with open_session(plan, None, said.append) as session:
        assert session.state()["reserve"]["size"] == 0
    assert "no random images could be set aside" in said[0]


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


def test_open_session__takes_over_class_folders(photos: Path, output: Path) -> None:
    said: list[str] = []
    with open_session(SessionPlan(photos, output, labels=photos), None, said.append) as session:
        assert all(record["label"] == record["name"][0] for record in session.records(range(COUNT)))
        assert not session.reserved.any()


def test_open_session__labels_of_other_photos(photos: Path, output: Path, tmp_path: Path) -> None:
    other = make_photos(tmp_path / "other", 6, folders=("x", "y"))
    with (
        pytest.raises(DataError, match="none of its 6 images are in"),
        open_session(SessionPlan(photos, output, labels=other), None),
    ):
        pass
    listed = tmp_path / "listed.csv"
    listed.write_text("path,label\nphotos/a/0000-red.png,r\nother/x/0000-red.png,r\n")
    said: list[str] = []
    with open_session(SessionPlan(photos, output, labels=listed), None, said.append) as session:
        assert session.records([0])[0]["label"] == "r"
    assert "1 of 2 images are not in" in said[-1]


@pytest.mark.parametrize(
    ("classes", "name", "told"),
    [(["red", "Red"], "labels.csv", "there is a class 'red' already"), (["?"], "labels.csv", "cannot be the name"),
     ([], "labels.txt", "ends in .csv")],
)  # fmt: skip
def test_open_session__faults_name_the_cure(
    photos: Path, tmp_path: Path, classes: list[str], name: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told), open_session(SessionPlan(photos, tmp_path / name, classes), None):
        pass


def test_open_session__a_damaged_journal(photos: Path, output: Path) -> None:
    with open_session(SessionPlan(photos, output), None) as session:
        label(session, 0)
    path = journal_path(output)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0\0\n" + lines[1])
    with pytest.raises(DataError, match="line 2: damaged"), open_session(SessionPlan(photos, output), None):
        pass
    path.write_bytes(lines[0] + lines[1] + lines[2][:-5])
    said: list[str] = []
    with open_session(SessionPlan(photos, output), None, said.append) as session:
        assert session.records([0])[0]["label"] is None  # nobody was told that it is kept
    assert "was not finished" in said[0]
    path.write_bytes(lines[0].replace(b'"open"', b'"keep"'))
    with pytest.raises(DataError, match="line 1"), open_session(SessionPlan(photos, output), None):
        pass


def test_open_session__an_event_that_does_not_fit(photos: Path, output: Path) -> None:
    with open_session(SessionPlan(photos, output), None):
        pass
    journal, _ = Journal.open(journal_path(output))
    journal.append(Event(do="undo", window="w", of=77))
    journal.close()
    with pytest.raises(DataError, match="line 2: does not fit"), open_session(SessionPlan(photos, output), None):
        pass


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


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_open_session__a_folder_that_cannot_be_written(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with (
        pytest.raises(OutputError, match="cannot be written"),
        open_session(SessionPlan(photos, folder / "labels.csv"), None),
    ):
        pass


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


def test_open_session__removes_the_half_made_run_of_a_killed_session(photos: Path, output: Path) -> None:
    making = making_path(output)
    making.mkdir()
    (making / "config.yaml").touch()
    with open_session(SessionPlan(photos, output), None):
        assert not making.exists()


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


def offers(count: int = 100, reserve: int = 20) -> tuple[Queue, np.ndarray]:
    images = np.arange(count)
    return Queue(images[:reserve], images[reserve:], 0.2), np.ones(count, bool)


def test_queue__mixes_random_images_evenly() -> None:
    queue, is_open = offers()
    chosen = np.arange(99, 19, -1)
    offered = queue.offer("a", 40, chosen, is_open)
    assert [i for i in offered if i < 20] == list(range(8))  # in the order of the reserve
    assert [i for i in offered if i >= 20] == list(range(99, 67, -1))
    places = [place for place, i in enumerate(offered) if i < 20]
    assert max(np.diff(places)) <= 6
    assert places[0] < 6


def test_queue__what_is_in_view_stays_and_the_share_is_of_all_that_was_decided() -> None:
    """A window that shows twelve images, and a choice that is another one after each label."""
    images, rng = np.arange(1000), np.random.default_rng(0)
    queue, is_open, decided = Queue(images[:200], images[200:], 0.2), np.ones(1000, bool), []
    shown = queue.offer("a", 40, images[200:], is_open)
    for _ in range(300):
        decided.append(shown[0])
        is_open[shown[0]] = False
        kept = shown[1:12]
        shown = queue.offer("a", 40, rng.permutation(images[200:]), is_open, kept=kept)
        assert shown[:11] == kept
        assert len(set(shown)) == 40
        assert is_open[shown].all()
    is_random = np.array(decided) < 200
    assert [i for i in decided if i < 200] == list(range(is_random.sum()))  # in the order of the reserve
    assert is_random.mean() == pytest.approx(0.2, abs=0.01)
    assert is_random[:50].mean() == pytest.approx(0.2, abs=0.05)


def test_queue__another_window_gets_others_for_a_while() -> None:
    queue, is_open = offers()
    chosen = np.arange(99, 19, -1)
    first = queue.offer("a", 40, chosen, is_open, now=0)
    assert not set(first) & set(queue.offer("b", 40, chosen, is_open, now=1))
    assert queue.offer("a", 40, chosen, is_open, now=2) == first
    queue.offer("b", 40, chosen, is_open, now=3)
    assert queue.offer("c", 40, chosen, is_open, now=4)  # what is left
    assert queue.offer("d", 40, chosen, is_open, now=5)  # nothing is left, so others' images are offered again
    assert queue.offer("e", 40, chosen, is_open, now=SECONDS_OFFERED + 10) == first


def test_queue__what_is_left() -> None:
    queue, is_open = offers()
    none = np.zeros(0, np.intp)
    assert len(queue.offer("a", 40, none, is_open)) == 40  # before anything was chosen
    is_open[20:] = False
    assert queue.offer("a", 40, none, is_open) == list(range(20))  # only the reserve is left
    is_open[:20] = False
    assert queue.offer("a", 40, none, is_open) == []
    is_open[20:] = True
    assert len(set(queue.offer("a", 100, np.array([50, 51]), is_open))) == 80
