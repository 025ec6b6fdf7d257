from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.spots import USUAL_XY, spot_image
from tl.errors import ConfigError
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.trainer.fit.augment import PRESETS, Augment, build_augment

RECIPE = build_preprocessing((60, 80))
NAN = float("nan")


def build(name: str, *, mirror: bool = True) -> Augment:
    augment = build_augment(name, RECIPE, points=True, mirror=mirror)
    assert augment is not None
    return augment


def middles(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The center of each color's intensity, (3, 2)."""
    light = image.astype(float)
    total = light.sum(axis=(0, 1))
    x = (light.sum(axis=0) * np.arange(image.shape[1])[:, None]).sum(axis=0) / total
    y = (light.sum(axis=1) * np.arange(image.shape[0])[:, None]).sum(axis=0) / total
    return np.stack([x, y], axis=1)


@pytest.mark.parametrize("name", ["flip", "light"])
def test_with_points__points_stay_on_what_they_mark(name: str) -> None:
    augment = build(name)
    seen = set()
    for seed in range(20):
        image, points = augment.with_points(spot_image(USUAL_XY), USUAL_XY, seed, (0, 1, 2))
        assert image.shape == (60, 80, 3)
        # Resampled spots of four pixels; an offset of half a pixel would be an error of convention.
        np.testing.assert_allclose(points, middles(image), atol=0.15)
        seen.add(bool(points[0, 0] > points[1, 0]))
    assert seen == {True, False}  # some are mirrored


def test_with_points__partners_change_places_in_a_mirror_image() -> None:
    augment = build("flip")
    for seed in range(10):
        image, points = augment.with_points(spot_image(USUAL_XY), USUAL_XY, seed, (1, 0, 2))
        is_mirrored = bool(middles(image)[0, 0] > middles(image)[1, 0])
        wanted = middles(image)[[1, 0, 2]] if is_mirrored else middles(image)
        np.testing.assert_allclose(points, wanted, atol=0.15)


def test_with_points__never_mirrored_unless_asked() -> None:
    augment = build("strong", mirror=False)
    for seed in range(20):
        _, points = augment.with_points(spot_image(USUAL_XY), USUAL_XY, seed, (0, 1, 2))
        (ax, ay), (bx, by), (cx, cy) = points
        sides = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        assert np.isnan(sides) or sides > 0  # the corners keep their orientation


def test_with_points__missing_stays_missing_and_what_leaves_is_missing() -> None:
    augment = build("strong")
    points = USUAL_XY.copy()
    points[1] = NAN
    edge = np.array([[1.0, 1.0], [78.0, 58.0], [40, 30]])
    left = 0
    for seed in range(20):
        _, found = augment.with_points(spot_image(points), points, seed, (0, 1, 2))
        assert np.isnan(found[1]).all()
        _, moved = augment.with_points(spot_image(edge), edge, seed, (0, 1, 2))
        present = moved[~np.isnan(moved).any(axis=1)]
        assert ((present >= -0.5) & (present <= (79.5, 59.5))).all()
        left += int(np.isnan(moved).any(axis=1).sum())
    assert left > 0


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "none"])
def test_with_points__depends_on_image_and_seed_alone(name: str) -> None:
    first, second = build(name), build(name)
    first.with_points(spot_image(USUAL_XY), USUAL_XY, 5, (0, 1, 2))
    for left, right in zip(
        first.with_points(spot_image(USUAL_XY), USUAL_XY, 7, (0, 1, 2)),
        second.with_points(spot_image(USUAL_XY), USUAL_XY, 7, (0, 1, 2)),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)


def test_with_points__a_pipeline_that_changes_the_size_is_refused(tmp_path: pytest.TempPathFactory) -> None:
    import albumentations

    path = str(tmp_path / "crop.json")  # type: ignore[operator]
    albumentations.save(albumentations.Compose([albumentations.Resize(90, 100)]), path, data_format="json")
    augment = build_augment(path, RECIPE, points=True)
    assert augment is not None
    with pytest.raises(ConfigError, match="changes the image size or loses points"):
        augment.with_points(spot_image(USUAL_XY), USUAL_XY, 0, (0, 1, 2))
