from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.trainer.make import make_png
from tl.data.label_sets import (
    assign_label_splits,
    check_label_matrix,
    label_folds,
    label_matrix,
    read_label_sets,
    read_label_sets_of,
    show_label,
)
from tl.data.manifests import LabeledImage, ManifestColumns
from tl.data.stratification import stratified_parts
from tl.errors import DataError


def write(folder: Path, text: str) -> str:
    """A CSV, and an image for every path in its first column."""
    for line in text.strip().splitlines()[1:]:
        make_png(folder / line.split(",")[0], np.zeros((4, 4, 3), np.uint8))
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def read(folder: Path, text: str, *targets: str) -> tuple[tuple[str, ...], list[LabeledImage]]:
    return read_label_sets(write(folder, text), ManifestColumns(targets=targets), lambda line: None)


def refused(folder: Path, text: str, *targets: str) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, text, *targets)
    return str(caught.value)


def test_read_label_sets__columns(tmp_path: Path) -> None:
    names, images = read(tmp_path, "path,wing,leg,split\na.png,1,0,train\nb.png,0.0,,val\nc.png,0,0,\n", "leg", "wing")
    assert names == ("leg", "wing")
    assert [image.label for image in images] == ["wing", "?leg", ""]
    np.testing.assert_array_equal(label_matrix(images, names), [[0, 1], [np.nan, 0], [0, 0]])


def test_read_label_sets__names_in_a_cell(tmp_path: Path) -> None:
    names, images = read(tmp_path, "path,labels\na.png, wing;leg ;wing\nb.png,\nc.png,?wing;e\u0301lan\n")
    assert names == ("leg", "wing", "\u00e9lan")  # composed, each once
    assert [image.label for image in images] == ["leg;wing", "", "?wing;\u00e9lan"]


def test_label_matrix__text_and_numbers_are_inverse() -> None:
    names = ("a", "b", "c")
    row = np.array([1, np.nan, 0])
    assert show_label(row, names) == "a;?b"
    np.testing.assert_array_equal(label_matrix([LabeledImage("", "x", "a;?b")], names), [row])


@pytest.mark.parametrize(
    ("text", "targets", "message"),
    [
        ("path,wing\na.png,1\nb.png,2\n", ["wing"], "row 3: column 'wing' must be 1 (has the label), 0 (lacks it)"),
        ("path,wing\na.png,1\n", ["wings"], "no column 'wings' (nearest: 'wing')"),
        ("path,a,b\na.png,,\n", ["a", "b"], "row 2: every label is unknown"),
        ("path,labels\na.png,\nb.png,\n", [], "names no label"),
        ("path,labels\na.png,x;?x\n", [], "row 2: '?x' contradicts the label 'x'"),
        ("path,labels\na.png,x;?\n", [], "row 2: '?' without a name"),
        ("path,labels\na.png,x;X\n", [], "differ only in case"),
        ("path,species_count\na.png,3\n", [], "has no column labels"),
        ("path,a;b\na.png,1\n", ["a;b"], "'a;b' cannot be the name of a label"),
        ("path,?a\na.png,1\n", ["?a"], "'?a' cannot be the name of a label"),
    ],
)
def test_read_label_sets__faults(tmp_path: Path, text: str, targets: list[str], message: str) -> None:
    assert message in refused(tmp_path, text, *targets)


def test_read_label_sets__a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="read from a CSV file"):
        read_label_sets(str(tmp_path), ManifestColumns(), lambda line: None)


def test_read_label_sets_of__columns_or_names(tmp_path: Path) -> None:
    by_column = write(tmp_path, "path,b,a\nx.png,1,0\n")
    assert [image.label for image in read_label_sets_of(by_column, ("a", "b"))] == ["b"]
    by_name = write(tmp_path, "path,label\nx.png,?a\n")
    assert [image.label for image in read_label_sets_of(by_name, ("a", "b"))] == ["?a"]
    with pytest.raises(DataError, match=r"'wing' is not one of the 2 labels \(nearest: 'wings'\)"):
        read_label_sets_of(write(tmp_path, "path,labels\nx.png,wing\n"), ("wings", "legs"))
    with pytest.raises(DataError, match="has no column 'legs', a label of the model"):
        read_label_sets_of(write(tmp_path, "path,wings\nx.png,1\n"), ("wings", "legs"))


def test_check_label_matrix() -> None:
    check_label_matrix(np.array([[1, 0], [0, 1], [np.nan, 1]]), ("a", "b"))
    with pytest.raises(DataError, match="no training image has the label 'b'"):
        check_label_matrix(np.array([[1, 0], [0, np.nan]]), ("a", "b"))
    with pytest.raises(DataError, match="known to lack the label 'a'"):
        check_label_matrix(np.array([[1, 0], [np.nan, 1]]), ("a", "b"))


def test_stratified_parts__every_label_in_its_share() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((400, 6)) < np.array([0.5, 0.3, 0.2, 0.1, 0.05, 0.025])
    parts = stratified_parts(labels, range(400), (0.8, 0.2), seed=1)
    held, all_of = labels[parts == 1].sum(axis=0), labels.sum(axis=0)
    assert np.abs(held - 0.2 * all_of).max() <= 1.5  # at random: several images
    assert 70 <= (parts == 1).sum() <= 90


def test_stratified_parts__groups_stay_whole() -> None:
    rng = np.random.default_rng(0)
    labels, tied = rng.random((60, 3)) < 0.4, np.repeat(np.arange(20), 3)
    parts = stratified_parts(labels, tied, [0.25] * 4, seed=0)
    assert all(len(set(parts[tied == unit])) == 1 for unit in range(20))
    assert min(np.bincount(parts)) >= 9


def test_assign_label_splits__groups_and_a_rare_label() -> None:
    images = [
        LabeledImage("", f"{i}.png", "rare;common" if i < 6 else "common" if i % 2 else "", group=f"g{i // 2}")
        for i in range(40)
    ]
    split = assign_label_splits(images, ("common", "rare"), 0.25, 0)
    sides: dict[str, set[str]] = {}
    for image in split:
        sides.setdefault(image.group, set()).add(image.split)
    assert all(len(each) == 1 for each in sides.values())
    assert {image.split for image in split if "rare" in image.label} == {"train", "val"}
    with pytest.raises(DataError, match="too few groups"):
        assign_label_splits([LabeledImage("", f"{i}", "a", group="g") for i in range(4)], ("a",), 0.25, 0)


def test_label_folds__hold_out_every_image_once() -> None:
    labels = np.array([[i % 2, np.nan] for i in range(11)], float)
    folds = label_folds(labels, [str(i // 2) for i in range(11)], [""] * 11, 5, 0)
    assert folds is not None
    assert sorted(np.concatenate([held for _, held in folds]).tolist()) == list(range(11))
    for own, held in folds:
        assert not {i // 2 for i in own} & {i // 2 for i in held}
    assert label_folds(labels, ["same"] * 11, [""] * 11, 5, 0) is None
