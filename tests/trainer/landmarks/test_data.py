from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.runtime.exif_photos import make_exif
from tests.spots import SPOTS
from tests.trainer.landmarks.make import make_landmark_config, make_spots, moved_spots
from tl.errors import ConfigError, DataError
from tl.runtime.imaging.regions import region_of_points
from tl.runtime.landmarks import wide_csv
from tl.runtime.landmarks.sets import LandmarkSet, image_landmarks
from tl.trainer.config import TrainConfig
from tl.trainer.landmarks.data import find_odd, mark_points, read_annotated, reference_shape
from tl.trainer.options import resolve

NAN = float("nan")


def read(data: Path, **changes: Any) -> Any:
    return read_annotated(make_landmark_config(data, data.parent / "run", **changes))


def landmarks_of(shapes: list[NDArray[np.float64]]) -> LandmarkSet:
    names = [chr(ord("a") + k) for k in range(len(shapes[0]))]
    return LandmarkSet(tuple(names), tuple(image_landmarks(f"{i}.png", xy) for i, xy in enumerate(shapes)))


def many_shapes(count: int = 12, points: int = 6) -> list[NDArray[np.float64]]:
    """One shape of six points with a little noise, rotated, scaled and shifted."""
    base = np.random.default_rng(99).uniform(10, 90, (points, 2))
    return [base + np.random.default_rng(i).normal(0, 0.5, base.shape) + i for i in range(count)]


def test_region_of_points__square_with_margin_by_hand() -> None:
    points = np.array([[10.0, 20.0], [30.0, 25.0], [NAN, NAN]])
    # 20 wide and 5 high around (20, 22.5), counted from edges: a square of 20, and half of that more on every side.
    assert region_of_points(points, 0.5) == (20.5 - 20, 23 - 20, 40, 40)
    assert region_of_points(points[:1], 0.0) == (10, 20, 1, 1)
    with pytest.raises(ValueError, match="no annotated points"):
        region_of_points(points[2:], 0.0)


def test_read_annotated__regions(tmp_path: Path) -> None:
    boxed = make_spots(tmp_path / "a", 2, box_xywh=(10.0, 10.0, 40.0, 20.0))
    assert [p.region for p in read(boxed).images] == [None, None]
    assert read(boxed, crop="box", crop_margin=0.5).images[0].region == (-10, 0, 80, 40)
    around = read(boxed, crop="points", crop_margin=0.1).images[0].region
    assert around == pytest.approx(region_of_points(moved_spots(0), 0.1), abs=1e-6)  # the file has nine digits
    with pytest.raises(DataError, match="1 images have no box, first images/0"):
        read(make_spots(tmp_path / "b", 1), crop="box")


def test_read_annotated__bursts_are_groups(tmp_path: Path) -> None:
    path = make_spots(tmp_path, 4)
    for i in range(4):
        with Image.open(tmp_path / f"images/{i}.png") as image:
            image.load()
        image.save(tmp_path / f"images/{i}.png", exif=make_exif(f"2026:05:01 12:{10 * (i // 2):02d}:0{i}").tobytes())
    found = read_annotated(TrainConfig(data=str(path), sequence="exif:30s")).images
    assert [image.group for image in found] == ["images/0.png"] * 2 + ["images/2.png"] * 2
    with pytest.raises(ConfigError, match="in landmark files, the column is called group"):
        resolve(TrainConfig(data=str(path), sequence="visit"))


def test_read_annotated__partners(spots: Path) -> None:
    assert read(spots).partners == (0, 1, 2)
    assert read(spots, flip_pairs=("red:blue",)).partners == (2, 1, 0)
    with pytest.raises(ConfigError, match="unknown point 'tip'; the points are red, green, blue"):
        read(spots, flip_pairs=("red:tip",))


def test_read_annotated__skeleton(spots: Path) -> None:
    lines = (("red", "blue"), ("red", "green"))  # a point may be part of several lines
    assert read(spots, skeleton=("red:blue", "red:green")).landmarks.skeleton == lines
    with pytest.raises(ConfigError, match="skeleton: unknown point 'tip'"):
        read(spots, skeleton=("red:tip",))


def test_read_annotated__faults(tmp_path: Path) -> None:
    path = make_spots(tmp_path, 2)
    rows = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*rows, rows[1]]), encoding="utf-8")
    with pytest.raises(DataError, match=r"1 image appears in several rows, first images/0\.png"):
        read(path)


def test_read_annotated__a_crop_about_all_points_wherever_some_are_missing(tmp_path: Path) -> None:
    shapes = many_shapes()
    whole = region_of_points(shapes[0], 0.1)
    shapes[0][2] = NAN
    path = tmp_path / "points.csv"
    path.write_text(wide_csv.write(landmarks_of(shapes)), encoding="utf-8")
    for i in range(len(shapes)):
        (tmp_path / f"{i}.png").touch()
    found = read(path, crop="points", crop_margin=0.1).images[0].region
    # The missing point comes from the mean of shapes with noise of half a pixel.
    np.testing.assert_allclose(found, whole, atol=2)
    shapes[0][3:] = NAN
    path.write_text(wide_csv.write(landmarks_of(shapes)), encoding="utf-8")
    with pytest.raises(DataError, match=r"crop points: 0\.png lacks 4 of 6 points.*annotate at least three points"):
        read(path, crop="points")


def test_read_annotated__a_point_has_one_partner(spots: Path) -> None:
    with pytest.raises(ConfigError, match="'red' appears in two pairs"):
        read(spots, flip_pairs=("red:blue", "red:green"))


def test_mark_points__another_point_is_another_label(spots: Path) -> None:
    images = read(spots).images[:2]
    points = {image.name: moved_spots(i) for i, image in enumerate(images)}
    before = mark_points(images, points)
    points[images[0].name][0, 0] += 1e-6
    after = mark_points(images, points)
    assert [a.label == b.label for a, b in zip(before, after, strict=True)] == [False, True]


def test_find_odd__nothing_to_say() -> None:
    assert find_odd(landmarks_of(many_shapes()), [(200, 200)] * 12) == []


def test_find_odd__each_kind() -> None:
    shapes = many_shapes()
    shapes[1] = np.full_like(shapes[1], NAN)
    shapes[2][0] = (300, 5)
    shapes[3] = shapes[4].copy()
    shapes[6][[1, 3]] = shapes[6][[3, 1]]
    found = {(finding.kind, finding.path): finding for finding in find_odd(landmarks_of(shapes), [(200, 200)] * 12)}
    assert "no point" in found["no points", "1.png"].detail
    assert "a: outside the image of 200x200" in found["point outside", "2.png"].detail
    assert found["equal points", "3.png"].other == "4.png"
    assert "b and d may be swapped" in found["odd shape", "6.png"].detail
    assert ("odd shape", "5.png") not in found
    (turned,) = [f for f in find_odd(landmarks_of(shapes), [(200, 200)] * 12, {"2.png"}) if f.kind == "point outside"]
    assert "convert with from_stored" in turned.detail


def test_reference_shape__limit_lies_beyond_the_usual() -> None:
    shapes = many_shapes()
    mean, limit = reference_shape(shapes)
    assert mean.shape == (6, 2)
    assert 0 < limit < 0.2  # noise of half a pixel on a shape of about a hundred
    assert reference_shape([shape[:2] for shape in shapes]) == (None, 0.0)  # two points have no shape


def test_make_spots__names(spots: Path) -> None:
    annotated = read(spots)
    assert annotated.landmarks.keypoint_names == SPOTS
    assert dataclasses.astuple(annotated.images[0])[1:5] == ("images/0.png", "", "", "")
