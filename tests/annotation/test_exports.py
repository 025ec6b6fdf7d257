"""labels.csv as other commands read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.annotation.photos import make_photos
from tl.annotation.exports import Exports, Snapshot, notes_path
from tl.annotation.outputs import journal_path
from tl.annotation.photos import list_photos
from tl.data.manifests import read_images


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
