from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.exif_photos import save_photo
from tests.trainer.make import make_class_folders, make_manifest
from tl.data.manifests import LabeledImage, ManifestColumns, read_images
from tl.data.sequences import sequence_faults, tie_sequences
from tl.data.splits import assign_splits
from tl.errors import ConfigError, DataError
from tl.evaluation.sequences import sequences_of
from tl.runtime.imaging.regions import Box

COLUMNS = ("path", "label", "group", "visit")


def read(tmp_path: Path, rows: list[tuple[str, ...]], rule: str = "visit") -> list[LabeledImage]:
    manifest = make_manifest(tmp_path / "labels.csv", rows, COLUMNS)
    return tie_sequences(read_images(manifest, ManifestColumns(sequence=rule)), rule)


def test_tie_sequences__a_column_becomes_the_group(tmp_path: Path) -> None:
    rows = [("a.png", "x", "", "v1"), ("b.png", "y", "", " v1 "), ("c.png", "x", "", "")]
    found = read(tmp_path, rows)
    assert [(image.sequence, image.group) for image in found] == [("v1", "v1"), ("v1", "v1"), ("", "")]


def test_tie_sequences__within_groups_of_the_data(tmp_path: Path) -> None:
    rows = [
        ("a.png", "x", "site 1", "v1"),
        ("b.png", "y", "", "v1"),
        ("c.png", "x", "site 1", "v2"),
        ("d.png", "y", "", "v3"),
    ]
    found = read(tmp_path, rows)
    assert [image.group for image in found] == ["site 1", "site 1", "site 1", "v3"]
    assert [image.sequence for image in found] == ["v1", "v1", "v2", "v3"]
    with pytest.raises(DataError, match=r"'v1' has images in group 'g' and in group 'h', for example hv1\.png"):
        read(tmp_path, [(f"{g}.png", "x", g[0], g[1:]) for g in ("gv1", "gv2", "hv1", "hv3")])


def test_tie_sequences__groups_of_one_image_require_nothing(tmp_path: Path) -> None:
    rows = [("a.png", "x", "g", "v1"), ("b.png", "y", "h", "v1"), ("c.png", "x", "i", ""), ("d.png", "x", "", "v1")]
    assert [image.group for image in read(tmp_path, rows)] == ["v1", "v1", "i", "v1"]


def test_tie_sequences__boxes_of_images(tmp_path: Path) -> None:
    """Boxes of one image are a group, which becomes part of the sequence; each image is counted once."""
    said: list[str] = []
    images = []
    for name, when, count in (("a", "10:00:00", 2), ("b", "10:00:01", 1), ("c", "11:00:00", 2), ("d", "", 2)):
        path = save_photo(tmp_path / f"{name}.jpg", f"2026:05:01 {when}" if when else "")
        for n in range(count):
            box = Box((n, 0, 4, 4), number=n)
            images.append(LabeledImage(str(path), path.name, "x", group=path.name, box=box))
    found = tie_sequences(images, "exif:5s", said.append)
    assert [(i.sequence, i.group) for i in found] == [("a.jpg", "a.jpg")] * 3 + [("", "c.jpg")] * 2 + [
        *[("", "d.jpg")] * 2,
    ]
    assert said == ["1 images have no capture time, first d.jpg: each is a sequence of its own"]
    assert sequences_of(found) == ["a.jpg"] * 3 + [str(tmp_path / "c.jpg")] * 2 + [str(tmp_path / "d.jpg")] * 2
    assert sequences_of(found[3:]) == [""] * 4


def test_read_images__column_of_sequences_faults(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'visits' for sequences \(nearest: 'visit'\)"):
        read(tmp_path, [("a.png", "x", "", "v1")], "visits")
    folder = make_class_folders(tmp_path / "photos", 2)
    with pytest.raises(DataError, match="is a folder, but the column 'visit' of sequences is one of a CSV file"):
        read_images(folder, ManifestColumns(sequence="visit"))
    assert len(read_images(folder, ManifestColumns(sequence="exif:3s"))) == 6
    with pytest.raises(ConfigError, match="expected a duration"):
        read_images(folder, ManifestColumns(sequence="exif:3y"))


def test_tie_sequences__by_capture_time_stay_in_one_split(tmp_path: Path) -> None:
    said: list[str] = []
    for label in ("deer", "fox"):
        for burst in range(6):
            for i in range(3):
                save_photo(tmp_path / f"d/{label}/{burst}{i}.jpg", f"2026:05:01 {10 + burst}:00:0{i}")
    save_photo(tmp_path / "d/fox/plain.jpg")
    save_photo(tmp_path / "d/fox/later.jpg", "2098:05:01 10:00:00")
    images = tie_sequences(read_images(tmp_path / "d"), "exif:5s", said.append)
    groups = {image.group for image in images}
    assert groups == {f"{label}/{burst}0.jpg" for label in ("deer", "fox") for burst in range(6)} | {""}
    assert len(said) == 2
    assert said[0].startswith("1 images have no capture time, first fox/plain.jpg")
    assert said[1].startswith("1 images were taken in the future by their EXIF data, first fox/later.jpg")
    split = assign_splits(images, 0.3, 0)
    homes: dict[str, set[str]] = {}
    for image in split:
        if image.group:
            homes.setdefault(image.group, set()).add(image.split)
    assert all(len(home) == 1 for home in homes.values())
    assert {image.split for image in split} == {"train", "val"}


def test_tie_sequences__without_any_time(tmp_path: Path) -> None:
    images = read_images(make_class_folders(tmp_path / "d", 2))
    with pytest.raises(DataError, match="none of the 6 images has a capture time"):
        tie_sequences(images, "exif:5s")
    assert tie_sequences(images, None) == images


def test_sequence_faults__by_hand() -> None:
    assert sequence_faults(None, for_landmarks=True) == sequence_faults("visit", for_landmarks=False) == []
    assert "only exif:30s" in sequence_faults("visit", for_landmarks=True)[0]
    assert "expected a duration" in sequence_faults("exif:3", for_landmarks=False)[0]
