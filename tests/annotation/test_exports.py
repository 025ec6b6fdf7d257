"""labels.csv as other commands read it, and the thread that writes it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.annotation.photos import make_photos
from tests.full_disk import largest_file
from tl.annotation.exports import Exports, Snapshot, Writer, journal_path, notes_path
from tl.annotation.photos import list_photos
from tl.data.manifests import read_images
from tl.errors import OutputError


def make_snapshot(count: int, **changes: dict[int, int]) -> Snapshot:
    """A snapshot in which all images are open, but for the changes by image."""
    arrays = {
        "label": np.full(count, -1, np.int32),
        "status": np.zeros(count, np.uint8),
        "version": np.zeros(count, np.int64),
        "reserved": np.zeros(count, bool),
        "is_random": np.zeros(count, bool),
    }
    for name, values in changes.items():
        for i, value in values.items():
            arrays[name][i] = value
    return Snapshot(notes={1: 'a "b",\nc', 4: "dark"}, class_names=["ant, small", "bee"], **arrays)  # type: ignore[arg-type]


def test_write__is_read_as_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl.annotation.exports.MIN_VALIDATION", 1)
    photos = list_photos(make_photos(tmp_path / "in" / "photos", 6, folders=("x", "y")), has_groups=True)
    output = tmp_path / "out" / "labels.csv"
    output.parent.mkdir()
    snapshot = make_snapshot(
        6, label={0: 0, 1: 1, 5: 1}, status={0: 1, 1: 1, 5: 1, 2: 2, 3: 3}, reserved={1: 1}, is_random={1: 1}
    )
    Exports(output, photos).write(snapshot)
    assert output.read_text().splitlines()[:2] == [
        "path,label,split,group,sampled,note",
        '../in/photos/x/0000-red.png,"ant, small",train,x,selected,',
    ]
    images = read_images(output)
    assert [(image.label, image.split, image.group) for image in images] == [
        ("ant, small", "train", "x"), ("bee", "val", "x"), ("bee", "train", "y"),
    ]  # fmt: skip
    assert all(Path(image.path).is_file() for image in images)
    assert notes_path(output).read_text().splitlines() == [
        "path,status,note", "../in/photos/x/0002-blue.png,unsure,", "../in/photos/y/0003-red.png,skipped,",
        "../in/photos/y/0004-green.png,open,dark",
    ]  # fmt: skip


def test_write__a_class_without_other_labels_is_for_training_with_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tl.annotation.exports.MIN_VALIDATION", 1)
    photos = list_photos(make_photos(tmp_path / "photos", 9, folders=("x", "y", "z")), has_groups=True)
    assert [photos.group(i) for i in range(9)] == [*"xxxyyyzzz"]
    labels = {0: 0, 3: 1, 4: 0, 6: 0}  # the only image of class 1 is reserved, and in one group with image 4
    snapshot = make_snapshot(
        9, label=labels, status=dict.fromkeys(labels, 1), reserved=dict.fromkeys([3, 4, 5, 6, 7, 8], 1)
    )
    Exports(tmp_path / "labels.csv", photos).write(snapshot)
    found = [(image.group, image.split) for image in read_images(tmp_path / "labels.csv")]
    assert found == [("x", "train"), ("y", "train"), ("y", "train"), ("z", "val")]


def test_write__without_enough_random_labels_there_is_no_split(tmp_path: Path) -> None:
    photos = list_photos(make_photos(tmp_path / "photos", 6))
    labels = {i: i % 2 for i in range(6)}
    snapshot = make_snapshot(6, label=labels, status=dict.fromkeys(labels, 1), reserved={0: 1, 1: 1})
    Exports(tmp_path / "labels.csv", photos).write(snapshot)
    assert {image.split for image in read_images(tmp_path / "labels.csv")} == {""}


def test_write__notes_only_if_there_are_any(tmp_path: Path) -> None:
    photos = list_photos(make_photos(tmp_path, 6))
    exports = Exports(tmp_path / "labels.csv", photos)
    exports.write(make_snapshot(6))
    assert notes_path(exports.output).exists()
    exports.write(make_snapshot(6, label={1: 0, 4: 0}, status={1: 1, 4: 1}))
    assert not notes_path(exports.output).exists()
    assert exports.output.read_text().splitlines()[0] == "path,label,split,sampled,note"  # no groups
    assert exports.path_of(0) == "0000-red.png"
    assert journal_path(exports.output).name == "labels.journal.jsonl"


def test_writer__writes_actions_together_and_at_the_end(tmp_path: Path) -> None:
    photos = list_photos(make_photos(tmp_path / "photos", 6))
    taken: list[float] = []

    def snapshot() -> Snapshot:
        taken.append(time.monotonic())
        return make_snapshot(6, label={0: len(taken) % 2}, status={0: 1})

    exports = Exports(tmp_path / "labels.csv", photos)
    writer = Writer(lambda: exports.write(snapshot()), lambda: None)
    began = time.monotonic()
    while not taken and time.monotonic() - began < 30:
        writer.wake()
        time.sleep(0.01)
    assert len(taken) == 1
    assert began + 0.3 < taken[0]
    count = len(taken)
    writer.wake()
    writer.close()
    assert len(taken) > count
    assert (tmp_path / "labels.csv").exists()


def test_writer__tells_what_it_cannot_write_and_tries_again(tmp_path: Path) -> None:
    photos = list_photos(make_photos(tmp_path / "photos", 6))
    told = threading.Event()
    snapshot = make_snapshot(6, label={0: 0}, status={0: 1})
    exports = Exports(tmp_path / "labels.csv", photos)
    writer = Writer(lambda: exports.write(snapshot), told.set)
    with largest_file(10):
        writer.wake()
        assert told.wait(30)
        assert "labels.csv: cannot be written" in writer.fault
        with pytest.raises(OutputError, match="cannot be written"):
            writer.write_now()
    told.clear()
    assert told.wait(30)  # without being asked
    assert writer.fault == ""
    writer.close()
    assert list(tmp_path.glob(".*partial")) == []


def test_writer__outlives_a_fault_of_the_program(caplog: pytest.LogCaptureFixture) -> None:
    faults, told = [ValueError("lone surrogate")], threading.Event()
    written: list[int] = []

    def write() -> None:
        if faults:
            raise faults[0]
        written.append(1)

    writer = Writer(write, told.set)
    writer.wake()
    assert told.wait(30)
    assert writer.fault.endswith("the journal has everything: lone surrogate")
    assert "a fault of this program while writing" in caplog.text
    faults.clear()
    writer.close()
    assert written == [1]
    Writer(write, told.set).close()  # nothing to write
    assert written == [1]
