from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.make import make_images, make_manifest
from tl.data.manifests import ManifestColumns
from tl.data.targets import assign_number_splits, check_numbers, numbers_of, read_numbers, read_numbers_of, strata_of
from tl.errors import DataError


def test_read_numbers__columns_decimal_commas_and_missing_numbers(tmp_path: Path) -> None:
    rows = [["a.png", "1,5", "NA"], ["b.png", "2", "7"], ["c.png", "", "-3e2"]]
    path = make_manifest(tmp_path / "d.csv", [], [])
    path.write_text("path;age;mass\n" + "".join(";".join(row) + "\n" for row in rows))
    for row in rows:
        (tmp_path / row[0]).touch()
    names, images = read_numbers(str(path), ManifestColumns(targets=("age", "mass")), print)
    assert names == ("age", "mass")
    assert [image.label for image in images] == ["1.5;", "2.0;7.0", ";-300.0"]
    np.testing.assert_array_equal(numbers_of(images, 2), [[1.5, np.nan], [2, 7], [np.nan, -300]])
    with pytest.raises(DataError, match=r"d.csv row 2: has no number in mass"):
        read_numbers(str(path), ManifestColumns(label="mass"), print)


def test_read_numbers_of__columns_of_the_model_or_the_label_column(tmp_path: Path) -> None:
    named = make_manifest(tmp_path / "named.csv", [["a.png", "4", "x"]], ["path", "age", "label"])
    assert [image.label for image in read_numbers_of(named, ["age"])] == ["4.0"]
    joined = make_manifest(tmp_path / "run.csv", [["a.png", "4.0;"]])
    assert [image.label for image in read_numbers_of(joined, ["age", "mass"])] == ["4.0;"]
    other = make_manifest(tmp_path / "other.csv", [["a.png", "4"]], ["path", "size"])
    with pytest.raises(
        DataError, match=r"other.csv: has no column 'age', which the model predicts \(found: path, size\)"
    ):
        read_numbers_of(other, ["age"])
    with pytest.raises(DataError, match="numbers are read from a CSV file"):
        read_numbers_of(tmp_path, ["age"])


def test_numbers_of__another_label() -> None:
    with pytest.raises(DataError, match=r"0.png: expected a number as label, found 'cat'"):
        numbers_of(make_images(["cat"]), 1)
    with pytest.raises(DataError, match=r"0.png: expected 3 numbers joined by ';' as label, found '1;2'"):
        numbers_of(make_images(["1;2"]), 3)


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), min_size=1, max_size=60))
def test_strata_of__parts_of_similar_size_in_order(values: list[float]) -> None:
    numbers = np.array(values)[:, None]
    strata = strata_of(numbers)
    sizes = np.bincount(strata)
    assert sizes.max() - sizes.min() <= 1
    assert len(values) < 10 or sizes.min() >= 5
    order = np.argsort(numbers[:, 0], kind="stable")
    assert (np.diff(strata[order]) >= 0).all()


def test_assign_number_splits__all_sizes_are_held_out_and_test_images_stay() -> None:
    images = make_images([f"{i}.0" for i in range(50)], split="train") + make_images(["1000.0"] * 3, split="test")
    assigned = assign_number_splits(images, 0.2, 0)
    held_out = sorted(float(image.label) for image in assigned if image.split == "val")
    assert len(held_out) == 10
    assert [int(value // 5) for value in held_out] == list(range(10))  # one of each stratum
    assert [image.split for image in assigned[50:]] == ["test"] * 3


def test_check_numbers__what_cannot_be_learned() -> None:
    check_numbers(np.array([[2000.0], [2010.0], [np.nan]]), ["year"])
    with pytest.raises(DataError, match="'year' has 1 different numbers in the training images"):
        check_numbers(np.array([[2000.0], [2000.0]]), ["year"])
    with pytest.raises(DataError, match=r"'time' varies by 0\.5 around 1\.6.*subtract a constant"):
        check_numbers(np.array([[1.6e9], [1.6e9 + 1]]), ["time"])
