"""The files of a review: whose they are, what is set aside, and faults of the disk."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.annotation.photos import make_photos as make_folder
from tests.annotation.review_data import make_photos, open_review, spoil, wrong_label
from tests.annotation.test_review import decide, review_of
from tests.annotation.test_reviewed import rows_of
from tl.annotation.opening import SessionPlan, open_session
from tl.annotation.review_output import ReviewOutput
from tl.annotation.review_table import read_review_table
from tl.data.manifests import read_images
from tl.errors import ConfigError, OutputError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return spoil(make_photos(tmp_path / "photos"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_review_output__one_process_at_a_time(data: Path) -> None:
    table = read_review_table(data)
    with ReviewOutput(data.parent / "r.csv", table):
        for name in ("r.csv", "r.tsv"):  # of one journal
            with pytest.raises(OutputError, match="is being written by process"):
                ReviewOutput(data.parent / name, table)
    ReviewOutput(data.parent / "r.csv", table).close()
    assert [path.name for path in data.parent.iterdir()] == ["photos"]


def test_review_output__foreign_files_stay(data: Path) -> None:
    output, table = data.parent / "reviewed.csv", read_review_table(data)
    output.write_text("path,label\nmine,mine\n", encoding="utf-8")
    with pytest.raises(OutputError, match="exists"):
        ReviewOutput(output, table)
    assert output.read_text(encoding="utf-8") == "path,label\nmine,mine\n"
    output.rename(data.parent / "reviewed.changes.csv")
    with pytest.raises(OutputError, match=r"reviewed\.changes\.csv: exists"):
        ReviewOutput(output, table)


def test_review_output__overwrite_sets_aside_when_the_review_begins(data: Path) -> None:
    with review_of(data) as review:
        decide(review, "drop", "ant/wrong.png")
    before = contents(data.parent)
    with ReviewOutput(data.parent / "reviewed.csv", read_review_table(data), overwrite=True):
        pass  # as if no problems could be found
    assert contents(data.parent) == before
    with review_of(data, overwrite=True) as review:
        assert review.decisions() == {}
        decide(review, "keep", "bee/copy.png")
    after = contents(data.parent)
    assert {name.replace(".1.", "."): content for name, content in after.items() if ".1." in name} == before
    assert set(before) < set(after)
    assert len(rows_of(data.parent / "reviewed.csv")) == len(read_images(data))


def test_review_output__edits_are_kept_aside(data: Path) -> None:
    output = data.parent / "reviewed.csv"
    with review_of(data) as review:
        decide(review, "drop", "ant/wrong.png")
    for change, kept in (("", []), ("photos/x.png,ant\n", ["reviewed.1.csv"])):
        output.write_text(output.read_text(encoding="utf-8") + change, encoding="utf-8")
        edited, later = output.read_bytes(), time.time() + 60
        os.utime(output, (later, later))
        with review_of(data) as review:
            assert len(review.decisions()) == 1
        assert sorted(path.name for path in data.parent.glob("reviewed.?.csv")) == kept
    assert (data.parent / "reviewed.1.csv").read_bytes() == edited
    assert b"photos/x.png" not in output.read_bytes()


def test_review_output__other_data_of_the_same_name_is_refused(data: Path) -> None:
    output = data.parent / "reviewed.csv"
    with review_of(data) as review:
        decide(review, "drop", "ant/wrong.png")
    before = contents(data.parent)
    other = make_photos(data.parent / "other/photos")
    for n, path in enumerate(sorted(other.rglob("*.png"))):
        path.write_bytes(path.read_bytes() + bytes([n]))
    with pytest.raises(ConfigError, match=r"is of the data .*photos, not of .*other.photos") as refused:
        ReviewOutput(output, read_review_table(other))
    assert refused.value.options == ("overwrite",)
    assert contents(data.parent) == before


def test_review_output__data_that_was_moved_goes_on(data: Path) -> None:
    output = data.parent / "reviewed.csv"
    with review_of(data) as review:
        decide(review, "drop", "ant/wrong.png")
    moved = data.rename(data.parent / "beetles")
    with review_of(moved, output=output) as review:
        assert [made.do for made in review.decisions().values()] == ["drop"]
    assert all(row["path"].startswith("beetles/") for row in rows_of(output))


def test_review_output__the_journal_of_labeling_is_refused(tmp_path: Path) -> None:
    photos = make_folder(tmp_path / "photos", 4, folders=("a", "b"))
    with open_session(SessionPlan(photos, tmp_path / "labels.csv", ["red"]), None):
        pass
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="is the journal of tl label"):
        open_review(photos, tmp_path / "labels.csv", wrong_label(0, "b"))
    assert contents(tmp_path) == before


def test_review_output__removes_only_a_journal_that_it_has_begun(data: Path) -> None:
    with review_of(data) as review:
        journal = review.files.journal
        left = journal.read_bytes()
    assert [path.name for path in data.parent.iterdir()] == ["photos"]
    journal.write_bytes(left)  # as a process that was killed leaves it
    with review_of(data):
        pass
    assert journal.read_bytes().startswith(left)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_review_output__folder_that_cannot_be_written(data: Path) -> None:
    folder = data.parent / "closed"
    folder.mkdir(mode=0o555)
    with pytest.raises(OutputError, match="cannot be written"):
        ReviewOutput(folder / "r.csv", read_review_table(data))


def test_review__a_fault_of_the_disk_is_told_and_tried_again(data: Path) -> None:
    output = data.parent / "reviewed.csv"
    with review_of(data) as review:
        output.mkdir()  # in the way
        decide(review, "drop", "ant/wrong.png")
        deadline = time.monotonic() + 60
        while "reviewed.csv: " not in review.state("w")["fault"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        output.rmdir()
        while review.state("w")["fault"] or not output.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert len(rows_of(output)) == len(read_images(data)) - 1


def test_close__says_that_the_output_could_not_be_written(data: Path) -> None:
    review, held = open_review(data, data.parent / "reviewed.csv", wrong_label(0))
    with held:
        (data.parent / "reviewed.csv").mkdir()
        decide(review, "drop", "ant/wrong.png")
        with pytest.raises(OutputError, match=r"reviewed\.csv: .*; all decisions are in .*journal\.jsonl"):
            review.close()
