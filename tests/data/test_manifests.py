from __future__ import annotations

import os
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.make import make_class_folders, make_images, make_manifest
from tl.data.manifests import LabeledImage, ManifestColumns, bind_class_names, class_ids, read_images
from tl.data.splits import assign_splits, cut_parts, limit_per_class
from tl.errors import DataError

GROUPED = ("path", "label", "split", "group")


def refused(tmp_path: Path, rows: list[tuple[str, ...]], columns: tuple[str, ...] = ("path", "label")) -> str:
    manifest = make_manifest(tmp_path / "labels.csv", rows, columns)
    with pytest.raises(DataError) as caught:
        read_images(manifest)
    return str(caught.value)


def test_read_images__class_folders(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "d", 2, ("b", "a"))
    (root / ".hidden").mkdir()
    (root / "a" / "notes.txt").touch()
    (root / "a" / "deep").mkdir()
    os.replace(root / "a" / "1.png", root / "a" / "deep" / "1.png")
    assert read_images(root) == [
        LabeledImage(str(root / name), name, label)
        for name, label in (("a/0.png", "a"), ("a/deep/1.png", "a"), ("b/0.png", "b"), ("b/1.png", "b"))
    ]


def test_read_images__split_folders(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        make_class_folders(tmp_path / "d" / split, count, ("a", "b"))
    images = read_images(tmp_path / "d")
    assert Counter((p.split, p.label) for p in images) == {
        (split, label): n for split, n in (("train", 3), ("val", 2), ("test", 1)) for label in ("a", "b")
    }
    assert images[0].name == "train/a/0.png"


def test_read_images__manifest_with_split_and_group(tmp_path: Path) -> None:
    rows = [("x/1.png", "a", "train", "s1"), ("x/2.png", "b", " val ", "")]
    manifest = make_manifest(tmp_path / "labels.csv", rows, GROUPED)
    assert read_images(manifest) == [
        LabeledImage(str(tmp_path / "x/1.png"), "x/1.png", "a", "train", "s1"),
        LabeledImage(str(tmp_path / "x/2.png"), "x/2.png", "b", "val", ""),
    ]


def test_read_images__another_split_column(tmp_path: Path) -> None:
    rows = [("1.png", "a", "train", "test"), ("2.png", "b", "val", "train")]
    manifest = make_manifest(tmp_path / "labels.csv", rows, ("path", "label", "split", "fold1"))
    assert [p.split for p in read_images(manifest, ManifestColumns("fold1"))] == ["test", "train"]
    with pytest.raises(DataError, match=r"has no column 'fold2' \(found: path, label, split, fold1\)"):
        read_images(manifest, ManifestColumns("fold2"))


def test_read_images__manifest_of_a_spreadsheet(tmp_path: Path) -> None:
    (tmp_path / "1.png").touch()
    manifest = tmp_path / "labels.csv"
    manifest.write_bytes("\ufeffpath,label\r\n1.png,Käfer\r\n".encode())  # byte order mark and CRLF, as in Excel
    assert [p.label for p in read_images(manifest)] == ["Käfer"]


def test_read_images__missing_files_are_counted_and_the_first_named(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path / "labels.csv", [("1.png", "a"), ("2.png", "b"), ("3.png", "b")])
    (tmp_path / "2.png").unlink()
    (tmp_path / "3.png").unlink()
    with pytest.raises(DataError, match=r"labels.csv: 2 of 3 images do not exist, first 2.png \(paths are relative to"):
        read_images(manifest)


def test_read_images__duplicate_rows(tmp_path: Path) -> None:
    text = refused(tmp_path, [("1.png", "a"), ("2.png", "b"), ("1.png", "b")])
    assert "1 image appears in several rows, first 1.png" in text


@pytest.mark.parametrize("row", [("2.png", ""), ("", "b"), ("2.png",)])
def test_read_images__empty_cell_names_the_row(tmp_path: Path, row: tuple[str, ...]) -> None:
    assert "labels.csv row 3: path and label must not be empty" in refused(tmp_path, [("1.png", "a"), row])


@pytest.mark.parametrize("other", ["Worm", "worm ", "  worm"])
def test_read_images__labels_that_differ_by_case_or_space(tmp_path: Path, other: str) -> None:
    assert "differ only in case or spaces" in refused(tmp_path, [("1.png", "worm"), ("2.png", other)])


def test_read_images__label_with_a_space_at_its_end(tmp_path: Path) -> None:
    assert "label 'fly ' of 2.png begins or ends with a space: remove the space" in refused(
        tmp_path, [("1.png", "a"), ("2.png", "fly ")]
    )


def test_read_images__unknown_split_word(tmp_path: Path) -> None:
    rows = [("1.png", "a", "train", ""), ("2.png", "b", "fold 1", "")]
    assert "labels.csv row 3: split 'fold 1' is not one of train, val, test" in refused(tmp_path, rows, GROUPED)


def test_read_images__missing_columns(tmp_path: Path) -> None:
    text = refused(tmp_path, [("1.png", "a")], ("where", "what"))
    assert "has no column path and label (found: where, what)" in text


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\xff\xfe\x00", b"", b"just words\n"])
def test_read_images__not_a_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"labels.csv: (not a readable CSV|has no column path|contains NUL)"):
        read_images(tmp_path / "labels.csv")


def test_read_images__empty_class_folder(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "d", 1, ("a", "b"))
    (root / "c").mkdir()
    with pytest.raises(DataError, match="c: this class folder contains no images: add images or remove it"):
        read_images(root)


def test_read_images__nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder or CSV file"):
        read_images(tmp_path / "none")
    with pytest.raises(DataError, match="contains no class folders"):
        read_images(tmp_path)


def test_bind_class_names__sorted_and_from_training_alone() -> None:
    images = make_images(["b", "a"], "train") + make_images(["c"], "val")
    assert bind_class_names(images) == ("a", "b")


def test_bind_class_names__one_class() -> None:
    with pytest.raises(DataError, match=r"has 1 class \(a\): at least two"):
        bind_class_names(make_images(["a", "a"], "train"))


def test_class_ids__by_name() -> None:
    assert class_ids(make_images(["b", "a", "b"]), ("a", "b")) == [1, 0, 1]


def test_class_ids__class_only_in_validation() -> None:
    images = make_images(["worm", "fly"], "train") + make_images(["wrom"], "val")
    with pytest.raises(DataError, match=r"class 'wrom' of 0.png \(nearest: 'worm'\)"):
        class_ids(images, bind_class_names(images))


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_assign_splits__stratified(fraction: float) -> None:
    images = make_images(["a"] * 60 + ["b"] * 30 + ["c"] * 10)
    assigned = assign_splits(images, fraction, seed=0)
    held_out = Counter(p.label for p in assigned if p.split == "val")
    assert held_out == {"a": 60 * fraction, "b": 30 * fraction, "c": 10 * fraction}
    assert [p.name for p in assigned] == [p.name for p in images]
    assert {p.split for p in assigned} == {"train", "val"}


@pytest.mark.parametrize("counts", [(98, 2), (50, 2, 2), (2, 2), (500, 300, 3)])
def test_assign_splits__every_class_on_both_sides(counts: tuple[int, ...]) -> None:
    images = make_images([chr(97 + c) for c, count in enumerate(counts) for _ in range(count)])
    assigned = assign_splits(images, 0.2, seed=0)
    for split in ("train", "val"):
        assert {p.label for p in assigned if p.split == split} == {p.label for p in images}, split


def test_assign_splits__depends_on_the_seed_alone() -> None:
    images = make_images(["a", "b"] * 20)
    assert assign_splits(images, 0.2, seed=1) == assign_splits(images, 0.2, seed=1)
    assert assign_splits(images, 0.2, seed=1) != assign_splits(images, 0.2, seed=2)


@pytest.mark.parametrize("seed", range(3))
def test_assign_splits__groups_stay_on_one_side(seed: int) -> None:
    groups = [f"specimen {i // 4}" for i in range(80)]
    assigned = assign_splits(make_images(["a", "b"] * 40, groups=groups), 0.2, seed)
    homes: dict[str, set[str]] = {}
    for image in assigned:
        homes.setdefault(image.group, set()).add(image.split)
    assert all(len(splits) == 1 for splits in homes.values())
    assert sum(p.split == "val" for p in assigned) == 16  # a fifth of 80, in whole groups of 4


@pytest.mark.parametrize("labels", [["a", "b"] * 4, ["a"] * 40 + ["b"] * 4])
def test_assign_splits__fewer_images_in_a_class_than_folds(labels: list[str]) -> None:
    # Four images per class and five folds must neither raise nor trigger scikit-learn's warning.
    images = make_images(labels, groups=[str(i) for i in range(len(labels))])
    assigned = assign_splits(images, 0.2, seed=0)
    assert {p.split for p in assigned} == {"train", "val"}


def test_assign_splits__given_splits_stay() -> None:
    images = make_images(["a", "b"], "train") + make_images(["a", "b"], "val")
    assert assign_splits(images, 0.2, seed=0) == images


def test_assign_splits__validation_is_cut_from_training() -> None:
    images = make_images(["a", "b"] * 10, "train") + make_images(["a"] * 4, "test")
    assigned = assign_splits(images, 0.2, seed=0)
    assert Counter(p.split for p in assigned) == {"train": 16, "val": 4, "test": 4}
    assert all(p.split == "test" for p in assigned[20:])


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (make_images(["a", "b"], "train") + make_images(["a"]), "has no split, but other images do"),
        (make_images(["a", "b"], "val"), "no training split"),
        (make_images(["a", "b"], "test"), "no training split"),
        (make_images(["a", "a", "b"]), "class 'b' has only one image"),
        (make_images(["a"] * 4, groups=["g"] * 4), "all images belong to one group"),
        (
            make_images(["a"], "train", ["g"]) + make_images(["a"], "val", ["g"]),
            "group 'g' has images in both train and val",
        ),
    ],
)
def test_assign_splits__refusals(images: list[LabeledImage], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        assign_splits(images, 0.2, seed=0)


@pytest.mark.parametrize(
    "names", [("Train", "Val", "TEST"), ("train", "valid", "testing"), ("training", "Validation", "test")]
)
def test_read_images__split_folders_by_other_usual_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        make_class_folders(tmp_path / name, 1, ("a", "b"))
    assert [image.split for image in read_images(tmp_path)] == ["train", "train", "val", "val", "test", "test"]


def test_read_images__one_name_in_both_unicode_forms(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD"))
    root = make_class_folders(tmp_path / "d", 1, (composed, "worm"))
    (root / decomposed).mkdir()
    (root / decomposed / "1.png").touch()
    (root / "__MACOSX").mkdir()
    assert [image.label for image in read_images(root)] == [composed, composed, "worm"]
    assert class_ids(read_images(root), (decomposed, "worm")) == [0, 0, 1]  # the classes of an older model file
    shutil.rmtree(root / decomposed)
    rows = [(f"d/{decomposed}/0.png", decomposed), ("d/worm/0.png", "worm")]
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"{','.join(row)}\n" for row in rows))
    images = read_images(tmp_path / "labels.csv")
    assert [image.label for image in images] == [composed, "worm"]
    assert [os.path.isfile(image.path) for image in images] == [True] * 2


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("filename,class", "reads column 'filename' as path, 'class' as label"),
        ("Path,Label", "reads column 'Path' as path, 'Label' as label"),
        ("image,species", "reads column 'image' as path, 'species' as label"),
        ("Image Path;Class_Name", "reads column 'Image Path' as path, 'Class_Name' as label"),
    ],
)
def test_read_images__usual_columns(tmp_path: Path, header: str, said: str) -> None:
    (tmp_path / "1.png").touch()
    separator = ";" if ";" in header else ","
    (tmp_path / "labels.csv").write_text(f"{header}\n1.png{separator}a\n")
    heard: list[str] = []
    assert [(image.name, image.label) for image in read_images(tmp_path / "labels.csv", say=heard.append)] == [
        ("1.png", "a")
    ]
    assert heard == [f"labels.csv: {said}"]


def test_read_images__columns_that_are_ambiguous_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "1.png").touch()
    (tmp_path / "labels.csv").write_text("file,species,class\n1.png,b,a\n")
    with pytest.raises(DataError, match="columns 'species' and 'class' could all be the label") as caught:
        read_images(tmp_path / "labels.csv")
    assert caught.value.options == ("label_column=species", "label_column=class")
    chosen = read_images(tmp_path / "labels.csv", ManifestColumns(label="class"))
    assert [image.label for image in chosen] == ["a"]
    with pytest.raises(DataError, match="has no column 'genus'"):
        read_images(tmp_path / "labels.csv", ManifestColumns(label="genus"))
    with pytest.raises(DataError, match="is a folder, but a path column"):
        read_images(tmp_path, ManifestColumns(label="class"))


def test_read_images__lists_from_windows(tmp_path: Path) -> None:
    for name in ("images/A.jpg", "images/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "labels.csv").write_text("path,label\nimages\\a.JPG,x\nimages\\b.jpg,y\n")
    assert [image.name for image in read_images(tmp_path / "labels.csv")] == ["images/A.jpg", "images/b.jpg"]
    (tmp_path / "labels.csv").write_text("path,label\nC:\\lab\\A.jpg,x\nD:\\b.jpg,y\n")
    with pytest.raises(DataError, match="2 of 2 images do not exist") as caught:
        read_images(tmp_path / "labels.csv")
    assert caught.value.options == ("images=FOLDER",)
    found = read_images(tmp_path / "labels.csv", ManifestColumns(images=str(tmp_path / "images")))
    assert [image.path for image in found] == [str(tmp_path / "images" / name) for name in ("A.jpg", "b.jpg")]


def test_read_images__labels_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "1.png").touch()
    (tmp_path / "labels.csv").write_bytes("path,label\n1.png,Käfer\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"labels.csv row 2: .*is not UTF-8: save the file as UTF-8"):
        read_images(tmp_path / "labels.csv")


def test_read_images__a_label_that_marks_rejected_images(tmp_path: Path) -> None:
    assert "label '?' of 1.png marks rejected images" in refused(tmp_path, [("1.png", "?"), ("2.png", "b")])


def test_read_images__asks_about_several_labels_in_one(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        (tmp_path / name).touch()
    (tmp_path / "labels.csv").write_text("path,label\n1.png,dog|old\n2.png,cat\n")
    heard: list[str] = []
    read_images(tmp_path / "labels.csv", say=heard.append)
    assert "1 labels look like several labels of one image, first 'dog|old'" in heard[0]


@pytest.mark.parametrize(("count", "numbers"), [(12, True), (9, False)])
def test_read_images__labels_that_are_numbers(tmp_path: Path, count: int, numbers: bool) -> None:
    heard: list[str] = []
    rows = [[f"{i}.jpg", f"{i % count / 4}"] for i in range(24)]
    read_images(make_manifest(tmp_path / "d.csv", rows), say=heard.append)
    assert heard == ["the labels are 12 different numbers: to predict numbers, train for task regression"] * numbers


def test_read_images__says_what_it_passes_over(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/notes.txt", "a/.hidden.png", "b/2.png", "loose.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    said: list[str] = []
    assert len(read_images(tmp_path, say=said.append)) == 2
    assert "skipped 1 hidden files and 2 that are not images" in said[0]


def test_limit_per_class__keeps_as_many_of_each_and_every_other_split() -> None:
    images = make_images(["a", "b", "a", "b", "a"] * 4, "train") + make_images(["a", "b", "b"], "val")
    kept = limit_per_class(images, 3, seed=0)
    assert Counter((p.split, p.label) for p in kept) == {
        ("train", "a"): 3,
        ("train", "b"): 3,
        ("val", "a"): 1,
        ("val", "b"): 2,
    }
    places = [images.index(image) for image in kept]
    assert places == sorted(places)  # the order of the data set


def test_limit_per_class__depends_on_the_seed_alone() -> None:
    images = make_images(["a", "b"] * 20, "train")
    assert limit_per_class(images, 4, seed=1) == limit_per_class(images, 4, seed=1)
    assert limit_per_class(images, 4, seed=1) != limit_per_class(images, 4, seed=2)


def test_limit_per_class__more_images_of_a_class_are_a_superset() -> None:
    # Learning curves are comparable: the images for 2 per class are a subset of those for 5 per class.
    images = make_images(["Käfer", "b", "c"] * 10, "train")
    few, more = (set(limit_per_class(images, count, seed=3)) for count in (2, 5))
    assert few < more


def test_limit_per_class__exactly_as_many_as_there_are() -> None:
    images = make_images(["a", "b"], "train") + make_images(["a"], "test")
    assert limit_per_class(images, 1, seed=0) == images


def test_limit_per_class__too_few_names_every_class() -> None:
    images = make_images(["b", "Käfer", "b", "c", "c", "c"], "train") + make_images(["b"] * 9, "val")
    with pytest.raises(DataError) as caught:
        limit_per_class(images, 3, seed=0)
    assert str(caught.value) == "per_class 3: too few training images: class 'Käfer' has 1, 'b' has 2"


def test_cut_parts__similar_parts_without_a_gap() -> None:
    ids = np.array([0] * 7 + [1] * 4 + [2])
    parts = cut_parts(ids, [f"{i}" for i in range(12)], [""] * 12, 3, seed=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(12))
    assert [len(part) for part in parts] == [4, 4, 4]
    for class_id, sizes in ((0, {2, 3}), (1, {1, 2})):
        assert {int((ids[part] == class_id).sum()) for part in parts} == sizes
    again = cut_parts(ids, [f"{i}" for i in range(12)], [""] * 12, 3, seed=0)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))


def test_cut_parts__groups_and_equal_files_stay_together() -> None:
    groups = ["a", "a", "a", "", "", "b", "", "b"]
    hashes = ["0", "1", "2", "3", "3", "5", "6", "7"]
    parts = cut_parts(np.zeros(8, np.int64), hashes, groups, 2, seed=1)
    assert len(parts) == 2
    for together in ({0, 1, 2}, {3, 4}, {5, 7}):
        assert any(together <= set(part.tolist()) for part in parts)


def test_cut_parts__fewer_than_asked_for_where_there_are_too_few_images() -> None:
    assert [part.tolist() for part in cut_parts(np.array([0, 1]), ["0", "0"], ["", ""], 2, seed=0)] == [[0, 1]]


@pytest.mark.parametrize(
    ("name", "content", "is_said"),
    [
        ("landmarks.csv", "path,x0,y0\n0.png,1,2\n", True),
        ("points.tps", "LM=1\n1 2\nIMAGE=0.png\n", True),
        ("coco.json", '{"categories": [{"keypoints": ["a"]}]}', True),
        ("0.json", '{"shapes": [], "imagePath": "0.png"}', False),  # of one image, as annotation tools write them
        ("places.csv", "path,x,y,camera\n0.png,1,2,c\n", False),
    ],
)
def test_read_images__says_a_landmark_file_in_a_class_folder(
    tmp_path: Path, name: str, content: str, is_said: bool
) -> None:
    root = make_class_folders(tmp_path / "d", 1, ("a", "wings"))
    (root / "wings" / name).write_text(content)
    heard: list[str] = []
    assert len(read_images(root, say=heard.append)) == 2
    assert any(f"{name}: contains landmarks, but its folder is the class 'wings'" in line for line in heard) is is_said
