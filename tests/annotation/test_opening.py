"""Open and go on with sessions: what is taken over, refused, set aside and brought back."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from tests.annotation.photos import color_of, make_photos
from tests.annotation.sessions import COUNT, label, labels_of, rows
from tests.annotation.sessions import output as output
from tests.annotation.sessions import photos as photos
from tl.annotation.journal import Event, Journal
from tl.annotation.model_job import making_path
from tl.annotation.opening import SessionPlan, open_session
from tl.annotation.outputs import journal_path
from tl.annotation.page_requests import Seen
from tl.errors import ConfigError, DataError, OutputError


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


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_open_session__a_folder_that_cannot_be_written(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with (
        pytest.raises(OutputError, match="cannot be written"),
        open_session(SessionPlan(photos, folder / "labels.csv"), None),
    ):
        pass


def test_open_session__removes_the_half_made_run_of_a_killed_session(photos: Path, output: Path) -> None:
    making = making_path(output)
    making.mkdir()
    (making / "config.yaml").touch()
    with open_session(SessionPlan(photos, output), None):
        assert not making.exists()
