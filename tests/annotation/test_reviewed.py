"""Decisions become a data set, and changes to read."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from tests.annotation.review_data import make_photos
from tl.annotation.groups import Grouped, group_images
from tl.annotation.review_table import read_review_table
from tl.annotation.reviewed import (
    CHANGE_COLUMNS,
    Decision,
    Remark,
    Result,
    ReviewedFiles,
    changes_text,
    write_changes,
)
from tl.data.manifests import LabeledImage, ManifestColumns, read_images
from tl.data.splits import check_groups


def rows_of(path: Path, separator: str = ",") -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter=separator))


def image(name: str, split: str = "", group: str = "") -> LabeledImage:
    return LabeledImage(f"/x/{name}", name, "a", split, group)


def test_group_images__joins_groups_in_the_split_of_the_other() -> None:
    images = [image("0", "train"), image("1", "val", "p"), image("2", "val", "p"), image("3", "train", "q")]
    found = group_images(images, {0: Decision("group", of=1)})
    assert found == {0: Grouped("p", "val", 1)}
    found = group_images(images, {1: Decision("group", of=3)})
    assert found == {1: Grouped("q", "train", 3), 2: Grouped("q", "train", 3)}


def test_group_images__makes_a_name_and_leaves_out_what_is_removed() -> None:
    images = [image("0"), image("1"), image("2", group="same-1"), image("3")]
    decisions = {0: Decision("group", of=1), 3: Decision("group", of=1), 1: Decision("drop")}
    assert group_images(images, decisions) == {0: Grouped("same-2", "", 1), 3: Grouped("same-2", "", 1)}
    assert group_images(images, {2: Decision("keep"), 3: Decision("duplicate", of=2)}) == {}


def test_write_reviewed__class_folders_with_splits(tmp_path: Path) -> None:
    data = make_photos(tmp_path / "photos", splits=("train", "val"))
    table = read_review_table(data)
    places = {image.name: i for i, image in enumerate(table.images)}
    twin, moved = places["val/bee/01.png"], places["train/bee/00.png"]
    decisions = {
        places["train/ant/00.png"]: Decision("relabel", "bee"),
        places["train/ant/02.png"]: Decision("drop"),
        moved: Decision("group", of=twin),
    }
    output = tmp_path / "out" / "reviewed.csv"
    Result(table, decisions).write(ReviewedFiles(output))
    rows = {row["path"]: row for row in rows_of(output)}
    assert list(next(iter(rows.values()))) == ["path", "label", "split", "group"]
    assert rows["../photos/train/ant/00.png"]["label"] == "bee"
    assert "../photos/train/ant/02.png" not in rows
    assert rows["../photos/train/bee/00.png"]["split"] == "val"
    assert {row["path"] for row in rows.values() if row["group"] == "same-1"} == {
        "../photos/train/bee/00.png",
        "../photos/val/bee/01.png",
    }
    images = read_images(output)
    check_groups(images)
    assert len(images) == len(table.images) - 1
    assert {os.path.normpath(one.path) for one in images} < {one.path for one in table.images}


def test_write_reviewed__keeps_the_columns_and_the_separator_of_a_manifest(tmp_path: Path) -> None:
    make_photos(tmp_path / "data/photos")
    lines = ["Datei;Art;Fundort;mm", "photos/ant/00.png;ant;Wald;1,5", "photos\\bee\\00.png;bee;Wiese;2,5"]
    (tmp_path / "data/labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = ManifestColumns(path="Datei", label="Art")
    table = read_review_table(tmp_path / "data/labels.csv", columns)
    output = tmp_path / "reviewed.csv"
    Result(table, {1: Decision("relabel", "ant")}).write(ReviewedFiles(output))
    assert output.read_text(encoding="utf-8").splitlines() == [
        "Datei;Art;Fundort;mm",
        "data/photos/ant/00.png;ant;Wald;1,5",
        "data/photos/bee/00.png;ant;Wiese;2,5",
    ]
    assert [one.label for one in read_images(output, columns)] == ["ant", "ant"]


def test_write_reviewed__keeps_names_that_are_not_utf_8(tmp_path: Path) -> None:
    data = make_photos(tmp_path / "photos")
    odd = os.fsencode(data / "ant") + b"/\xff.png"
    try:
        os.rename(data / "ant/00.png", odd)
    except OSError:
        pytest.skip("this file system only has names in UTF-8")
    table = read_review_table(data)
    Result(table, {}).write(ReviewedFiles(tmp_path / "reviewed.csv"))
    assert b"photos/ant/\xff.png,ant" in (tmp_path / "reviewed.csv").read_bytes()
    changes = Result(table, {i: Decision("drop") for i in range(len(table.images))}, {}).changes()
    write_changes(changes, ReviewedFiles(tmp_path / "reviewed.csv"), "odd")
    assert b"ant/\xff.png,drop,ant" in (tmp_path / "reviewed.changes.csv").read_bytes()


def test_list_changes__names_everything_once(tmp_path: Path) -> None:
    table = read_review_table(make_photos(tmp_path / "photos", splits=("train", "val")))
    decisions = {0: Decision("relabel", "bee"), 1: Decision("duplicate", of=2), 3: Decision("group", of=12)}
    remarks = {0: Remark(("label", "error"), "Predicted bee.", "sure"), 4: Remark(note="blurred")}
    changes = {change.path: change for change in Result(table, decisions, remarks).changes()}
    names = [image.name for image in table.images]
    assert [one.change for one in changes.values()] == ["relabel", "duplicate", "group", "note", "group"]
    assert changes[names[0]].cells == (
        *(names[0], "relabel", "ant", "bee", "", "label;error", "Predicted bee.", "sure", "", "", ""),
    )
    assert changes[names[1]].of == names[2]
    assert (changes[names[3]].old_split, changes[names[3]].new_split) == ("train", "val")
    assert changes[names[3]].new_group == changes[names[12]].new_group == "same-1"
    assert (changes[names[3]].of, changes[names[12]].of) == (names[12], names[3])
    files = ReviewedFiles(tmp_path / "reviewed.csv")
    write_changes(list(changes.values()), files, "t")
    assert tuple(rows_of(files.changes)[0]) == CHANGE_COLUMNS
    assert [row["path"] for row in rows_of(files.changes)] == [f"photos/{name}" for name in changes]
    assert rows_of(files.changes)[1]["of"] == f"photos/{names[2]}"


def test_changes_text__is_no_markup_of_names(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    (photos / "ant/00.png").rename(photos / "ant/`x` <img src=y> *.png")
    table = read_review_table(photos)
    place = next(i for i, image in enumerate(table.images) if "img" in image.name)
    remark = Remark(("label",), "Predicted *bee*.", "see [this](http://a.b) <b>")
    text = changes_text(
        Result(table, {place: Decision("relabel", "bee")}, {place: remark}).changes(), "photos to x.csv"
    )
    assert text.splitlines() == [
        "# photos to x.csv",
        "",
        "- Other labels: 1",
        "",
        "## Other labels (1)",
        "",
        "### ~~`ant`~~ → `bee` (1)",
        "",
        "- `` ant/`x` <img src=y> *.png ``: Predicted \\*bee\\*. Note: see \\[this\\](http://a.b) \\<b\\>",
    ]


def test_read_review_table__run_keeps_its_manifest(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos")
    run = tmp_path / "runs/a"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("task: classification\n", encoding="utf-8")
    lines = [
        "path,label,split,group,sha256",
        "../../photos/ant/00.png,ant,val,,abc",
        "../../photos/bee/00.png,bee,train,,d",
    ]
    (run / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = read_review_table(run)
    Result(table, {0: Decision("relabel", "bee")}).write(ReviewedFiles(tmp_path / "reviewed.csv"))
    assert rows_of(tmp_path / "reviewed.csv")[0] == {
        **{"path": "photos/ant/00.png", "label": "bee", "split": "val", "group": "", "sha256": "abc"},
    }
