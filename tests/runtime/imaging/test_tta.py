from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.models import color_probabilities, make_contract, make_model
from tests.runtime.images import encode, noise
from tl.errors import EnsembleError
from tl.runtime import SelectivePrediction
from tl.runtime.imaging.pipeline import WHOLE, TtaKind, View, build_views, load_input, load_inputs
from tl.runtime.imaging.preprocessing import Preprocessing, build_preprocessing
from tl.runtime.imaging.regions import Part
from tl.runtime.predictor import load

# Means of a few float32 probabilities.
ROUNDING = 1e-6
QUADRANTS = np.zeros((64, 80, 3), np.uint8)
QUADRANTS[:32, :40], QUADRANTS[:32, 40:], QUADRANTS[32:, :40], QUADRANTS[32:, 40:] = (
    *((200, 0, 0), (0, 200, 0)),
    *((0, 0, 200), (90, 90, 90)),
)


@pytest.mark.parametrize(
    ("kinds", "count"), [((), 1), (("hflip",), 2), (("vflip", "hflip"), 4), (("crops",), 6), (("crops", "hflip"), 12)]
)
def test_build_views__counts(kinds: tuple[TtaKind, ...], count: int) -> None:
    views = build_views(kinds)
    assert views[0] == WHOLE
    assert len(views) == len(set(views)) == count


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (("flip",), "tta must contain each of hflip, vflip, crops at most once, got 'flip'"),
        (("hflip", "hflip"), "once, got 'hflip', 'hflip'"),
        ("hflip", "must be a list of hflip, vflip, crops, got the string 'hflip'"),
    ],
)
def test_build_views__refused(kinds: tuple[TtaKind, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_views(kinds)


def test_part__corners_meet_the_edges_and_a_pixel_remains() -> None:
    assert Part(0.125, 0.125, 0.875, 0.875).region((80, 160)) == (20, 10, 140, 70)
    assert Part(0.125, 0.125, 0.875, 0.875).region((1, 8)) == (1, 0, 7, 1)


@pytest.mark.parametrize("preprocessing", [build_preprocessing((16, 16)), build_preprocessing((16, 24), "letterbox")])
def test_load_inputs__flips_are_mirror_images_of_the_input(preprocessing: Preprocessing) -> None:
    found = load_inputs(QUADRANTS, [preprocessing], build_views(("hflip", "vflip")))[preprocessing]
    plain = load_input(QUADRANTS, preprocessing)
    for view, wanted in zip(found, (plain, plain[:, ::-1], plain[::-1], plain[::-1, ::-1]), strict=True):
        np.testing.assert_array_equal(view, wanted)


def test_load_inputs__crops_are_pillows() -> None:
    """7/8 of 64x80 is 56x70. A crop is resized like a whole image; compared with Pillow's own `box`."""
    preprocessing = build_preprocessing((16, 16))
    found = load_inputs(QUADRANTS, [preprocessing], build_views(("crops",)))[preprocessing]
    image = Image.fromarray(QUADRANTS)
    boxes = [(5, 4, 75, 60), (0, 0, 70, 56), (10, 0, 80, 56), (0, 8, 70, 64), (10, 8, 80, 64)]
    for view, box in zip(found[1:], boxes, strict=True):
        wanted = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR, box=box))
        np.testing.assert_array_equal(view, wanted)


def test_load_inputs__crops_of_a_photo_in_a_file(tmp_path: Path) -> None:
    """A large JPEG is decoded at a scale that suits each part; a file object gives the same result as its path."""
    photo = encode(noise(1000, 700), "JPEG")
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo)
    preprocessing, views = build_preprocessing((64, 64), "short_side"), build_views(("crops", "hflip"))
    from_path = load_inputs(path, [preprocessing], views)[preprocessing]
    np.testing.assert_array_equal(from_path, load_inputs(BytesIO(photo), [preprocessing], views)[preprocessing])
    np.testing.assert_array_equal(from_path[0], load_input(path, preprocessing))
    assert from_path.shape == (12, 64, 64, 3)


def by_hand(
    image: NDArray[np.uint8], kinds: tuple[TtaKind, ...], preprocessing: Preprocessing, gain: float
) -> NDArray[np.float32]:
    views: NDArray[np.uint8] = load_inputs(image, [preprocessing], build_views(kinds))[preprocessing]
    return np.mean([color_probabilities(view, gain) for view in views], axis=0)


def test_load__a_model_averages_its_views(tmp_path: Path) -> None:
    preprocessing = build_preprocessing((8, 8))
    path = make_model(tmp_path / "m.onnx", preprocessing=preprocessing)
    image = noise(50, 70, seed=3)
    plain, augmented = (load(path, device="cpu", tta=kinds) for kinds in ((), ("hflip", "crops")))
    wanted = by_hand(image, ("hflip", "crops"), preprocessing, 0.05)
    one, two = augmented.predict_batch([image, QUADRANTS])
    np.testing.assert_allclose(one.probabilities, wanted, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(
        two.probabilities, by_hand(QUADRANTS, ("hflip", "crops"), preprocessing, 0.05), rtol=0, atol=ROUNDING
    )
    assert (one.probabilities != plain.predict(image).probabilities).any()
    assert plain.ensemble.key != augmented.ensemble.key  # --resume must not mix them


def test_load__members_average_before_they_vote(tmp_path: Path) -> None:
    preprocessings = build_preprocessing((8, 8)), build_preprocessing((8, 12), "letterbox")
    paths = [
        make_model(tmp_path / f"{i}.onnx", preprocessing=r, gain=0.02 * (i + 1)) for i, r in enumerate(preprocessings)
    ]
    result = load(paths, device="cpu", tta=("crops",)).predict(QUADRANTS)
    wanted = [by_hand(QUADRANTS, ("crops",), r, 0.02 * (i + 1)) for i, r in enumerate(preprocessings)]
    assert result.votes is not None
    np.testing.assert_allclose(result.votes.probabilities, wanted, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(result.probabilities, np.mean(wanted, axis=0), rtol=0, atol=ROUNDING)


def test_load__coverage_is_refused_with_tta(tmp_path: Path) -> None:
    from tl.runtime.model_file.contract import Conformal

    contract = make_contract(conformal=Conformal((0.1, 0.2), "validation split"))
    path = make_model(tmp_path / "m.onnx", contract=contract)
    with pytest.raises(EnsembleError, match="coverage is calibrated without test-time augmentation"):
        load(path, device="cpu", selective=SelectivePrediction(coverage=0.5), tta=("hflip",))


def test_view__turn() -> None:
    image = noise(4, 5)
    np.testing.assert_array_equal(View(hflip=True, vflip=True).turn(image), image[::-1, ::-1])
