from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import tl.runtime
from tests.spots import SPOTS, USUAL_XY, make_spot_model, save_spots, spot_image
from tl.errors import EnsembleError, ParityError
from tl.runtime.imaging.decode import ImageSource
from tl.runtime.imaging.preprocessing import ResizeMode, build_preprocessing
from tl.runtime.imaging.regions import Box
from tl.runtime.results import Failure, Landmarks

# A spot's intensity is rounded to 255 steps and resized with a filter, which moves its center by hundredths of a pixel.
CLOSE = 0.15


def find(model: tl.runtime.Predictor[Landmarks], source: ImageSource) -> Landmarks:
    return model.predict(source)


@pytest.fixture(scope="module")
def spot_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_spot_model(tmp_path_factory.mktemp("models") / "spots.onnx")


@pytest.mark.parametrize("mode", ["letterbox", "squash"])
@pytest.mark.parametrize("hw", [(60, 80), (80, 60), (300, 400), (48, 48)])
def test_predict__points_are_pixels_of_the_photo(tmp_path: Path, mode: ResizeMode, hw: tuple[int, int]) -> None:
    scale = np.array([hw[1] / 80, hw[0] / 60])
    wanted = USUAL_XY * scale
    image = spot_image(wanted, hw, radius=4 * max(scale))
    with tl.runtime.load_landmarks(
        make_spot_model(tmp_path / "m.onnx", build_preprocessing((48, 48), mode)), device="cpu"
    ) as model:
        found = find(model, image)
    np.testing.assert_allclose(found.keypoints_xy, wanted, atol=CLOSE * max(1, *scale))
    assert found.keypoint_names == SPOTS
    assert found.confidence is not None
    assert found.spread_px is None
    assert (found.region_xywh, found.is_odd) == ((0, 0, hw[1], hw[0]), False)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_predict__points_of_the_upright_photo(tmp_path: Path, spot_model: Path, orientation: int) -> None:
    upright = Image.fromarray(spot_image(USUAL_XY))
    turned = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    for turn in turned:
        upright = upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright.save(tmp_path / "turned.png", exif=exif)
    with tl.runtime.load_landmarks(spot_model, device="cpu") as model:
        np.testing.assert_allclose(find(model, tmp_path / "turned.png").keypoints_xy, USUAL_XY, atol=CLOSE)


def test_predict__an_odd_shape_is_flagged(spot_model: Path) -> None:
    with tl.runtime.load_landmarks(spot_model, device="cpu") as model:
        usual = find(model, spot_image(USUAL_XY))
        turned = find(model, spot_image(USUAL_XY[:, ::-1] + [10, -5]))  # a mirror image
    assert usual.shape_distance == pytest.approx(0, abs=0.01)  # the model is accurate to hundredths of a pixel
    assert not usual.is_odd
    assert turned.is_odd
    assert turned.shape_distance is not None
    assert turned.shape_distance > 0.3


def test_predict__ensemble_merges_in_pixels_of_the_photo(tmp_path: Path) -> None:
    # Shifts of 0, 0 and 3 input pixels, with inputs of 40 and 80 pixels for an 80 px photo: 2 and 1 photo pixels each.
    small, large = (build_preprocessing((side, side), "letterbox") for side in (40, 80))
    files = [
        make_spot_model(tmp_path / "a.onnx", small),
        make_spot_model(tmp_path / "b.onnx", large),
        make_spot_model(tmp_path / "c.onnx", small, shift=3.0),
    ]
    image = spot_image(USUAL_XY)
    with tl.runtime.load_landmarks(files, device="cpu") as model:
        mean = find(model, image)
    np.testing.assert_allclose(mean.keypoints_xy - USUAL_XY, [[2, 0]] * 3, atol=CLOSE)
    assert mean.spread_px is not None
    np.testing.assert_allclose(mean.spread_px, np.sqrt((4 + 4 + 16) / 3), atol=CLOSE)
    assert mean.members_xy is not None
    assert mean.members_xy.shape == (3, 3, 2)
    with tl.runtime.load_landmarks(files, device="cpu", merge="median") as model:
        np.testing.assert_allclose(find(model, image).keypoints_xy, USUAL_XY, atol=CLOSE)


def test_predict__members_are_matched_by_name(tmp_path: Path) -> None:
    a = make_spot_model(tmp_path / "a.onnx")
    b = make_spot_model(tmp_path / "b.onnx", names=("green", "red", "blue"))  # its first output is named green
    with tl.runtime.load_landmarks([a, b], device="cpu") as model:
        found = find(model, spot_image(USUAL_XY))
    middle = (USUAL_XY[0] + USUAL_XY[1]) / 2
    np.testing.assert_allclose(found.keypoints_xy, [middle, middle, USUAL_XY[2]], atol=CLOSE)


def test_load__members_that_find_other_points_are_refused(tmp_path: Path) -> None:
    other = make_spot_model(tmp_path / "b.onnx", names=("red", "green", "tip"))
    with pytest.raises(EnsembleError, match="b predicts different points than a"):
        tl.runtime.load_landmarks([make_spot_model(tmp_path / "a.onnx"), other], device="cpu")


def test_load__classes_and_points_do_not_vote_together(tmp_path: Path, color_model: Path) -> None:
    spots = make_spot_model(tmp_path / "a.onnx")
    with pytest.raises(EnsembleError, match="not a landmark model"):
        tl.runtime.load_landmarks([spots, color_model], device="cpu")
    with pytest.raises(EnsembleError, match="not a classification model"):
        tl.runtime.load([color_model, spots], device="cpu")


# --- region of interest


def test_predict__given_boxes(tmp_path: Path) -> None:
    fine = make_spot_model(tmp_path / "fine.onnx", region="box", region_margin=0.25)
    points = USUAL_XY / 2 + [100, 70]  # a small specimen in a large photo
    path = save_spots(tmp_path / "p.png", points, (200, 300))
    with tl.runtime.load_landmarks(fine, device="cpu", boxes={str(path): (105.0, 72.0, 30.0, 26.0)}) as model:
        found = find(model, path)
        (stranger,) = model.predict_batch([save_spots(tmp_path / "q.png", points, (200, 300))])
    np.testing.assert_allclose(found.keypoints_xy, points, atol=CLOSE)
    assert found.region_xywh == (97.5, 65.5, 45.0, 39.0)  # a quarter more on every side
    assert isinstance(stranger, Failure)
    assert "contains no box for this image" in stranger.error


def test_predict__boxes_of_a_detector(tmp_path: Path) -> None:
    """A box in fractions of the photo, as in MegaDetector's JSON, is the same region as one in pixels."""
    fine = make_spot_model(tmp_path / "fine.onnx", region="box", region_margin=0.25)
    save_spots(tmp_path / "a.png", USUAL_XY)
    with Image.open(tmp_path / "a.png") as image:
        width, height = image.size
    pixels = (5.0, 5.0, 70.0, 50.0)
    relative = Box((5 / width, 5 / height, 70 / width, 50 / height), is_relative=True)
    found = [
        tl.runtime.load_landmarks(fine, device="cpu", boxes={str(tmp_path / "a.png"): box}).predict(tmp_path / "a.png")
        for box in (pixels, Box(pixels), relative)
    ]
    for other in found[1:]:
        assert other.region_xywh == pytest.approx(found[0].region_xywh)
        np.testing.assert_allclose(other.keypoints_xy, found[0].keypoints_xy, atol=1e-6)


def test_predict__a_locator_finds_the_box(tmp_path: Path) -> None:
    fine = make_spot_model(tmp_path / "fine.onnx", region="points", region_margin=0.5)
    coarse = make_spot_model(tmp_path / "coarse.onnx", build_preprocessing((32, 32), "letterbox"), shift=0.5)
    points = USUAL_XY / 2 + [100, 70]
    path = save_spots(tmp_path / "p.png", points, (200, 300))
    with tl.runtime.load_landmarks(coarse, device="cpu") as model:
        rough = find(model, path)
    with tl.runtime.load_landmarks(fine, device="cpu", locator=coarse) as model:
        found = find(model, path)
    assert np.abs(rough.keypoints_xy - points).max() > 4  # half an input pixel of 9.4 photo pixels
    np.testing.assert_allclose(found.keypoints_xy, points, atol=CLOSE)
    low, high = rough.keypoints_xy.min(axis=0), rough.keypoints_xy.max(axis=0)
    side = (high - low).max()
    left, top = (low + high) / 2 + 0.5 - side
    np.testing.assert_allclose(found.region_xywh, (left, top, 2 * side, 2 * side), rtol=1e-9)  # float64


def test_predict__each_member_uses_its_trained_region(tmp_path: Path) -> None:
    # A whole photo, and an annotated box without and with a margin; each model finds its own region, and they agree.
    files = [
        make_spot_model(tmp_path / "a.onnx"),
        make_spot_model(tmp_path / "b.onnx", region="box", region_margin=0.1),
        make_spot_model(
            tmp_path / "c.onnx", build_preprocessing((64, 64), "letterbox"), region="points", region_margin=0.4
        ),
    ]
    path = save_spots(tmp_path / "p.png", USUAL_XY)
    with tl.runtime.load_landmarks(files, device="cpu", boxes={str(path): (12.0, 8.0, 56.0, 45.0)}) as model:
        found = find(model, path)
    assert found.members_xy is not None
    np.testing.assert_allclose(found.members_xy, [USUAL_XY] * 3, atol=CLOSE)
    # 48 of 80; 48 of 56 plus a tenth on both sides; 64 of a square of 56, clipped to the photo's 60: 12 + 56 + 22.4.
    np.testing.assert_allclose([scale[0] for scale in found.input_per_photo[:2]], [0.6, 48 / 67.2], rtol=0.02)
    assert found.image_hw == (60, 80)


@pytest.mark.parametrize(
    ("region", "given", "message"),
    [
        ("points", {}, r"give a coarse model that locates it, or boxes"),
        ("box", {}, "trained on annotated boxes: give the boxes"),
        ("box", {"locator": True}, "trained on annotated boxes: give the boxes"),
        ("whole", {"locator": True}, "uses whole photos: leave out"),
        ("whole", {"crop_margin": 0.2}, "uses whole photos: leave out"),
        ("points", {"locator": True, "boxes": {"a.png": (0, 0, 5, 5)}}, "give one of them"),
    ],
)
def test_load__where_to_look_must_fit(tmp_path: Path, region: str, given: dict[str, Any], message: str) -> None:
    path = make_spot_model(tmp_path / "m.onnx", region=region)
    if given.get("locator"):
        given = {**given, "locator": make_spot_model(tmp_path / "coarse.onnx")}
    with pytest.raises(EnsembleError, match=message):
        tl.runtime.load_landmarks(path, device="cpu", **given)


def test_predict__under_three_points_no_shape(tmp_path: Path) -> None:
    with tl.runtime.load_landmarks(make_spot_model(tmp_path / "m.onnx", mean_shape=None), device="cpu") as model:
        found = find(model, spot_image(USUAL_XY))
    assert (found.shape_distance, found.is_odd) == (None, False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(st.floats(10, 70), st.floats(10, 50), st.floats(0.5, 4))
def test_predict__any_place_and_size(spot_model: Path, x: float, y: float, scale: float) -> None:
    hw = (round(60 * scale), round(80 * scale))
    wanted = np.array([[x, y], [x, 60 - y], [80 - x, y]]) * scale
    with tl.runtime.load_landmarks(spot_model, device="cpu") as model:
        found = find(model, spot_image(wanted, hw, radius=5 * scale))
    np.testing.assert_allclose(found.keypoints_xy, wanted, atol=CLOSE * max(1, scale))


# --- results


def test_as_dict__is_json(spot_model: Path) -> None:
    with tl.runtime.load_landmarks([spot_model], device="cpu") as model:
        plain = json.loads(json.dumps(find(model, spot_image(USUAL_XY)).as_dict()))
    assert list(plain["keypoints"]) == list(SPOTS)
    assert set(plain["keypoints"]["red"]) == {"x", "y", "confidence", "spread_px"}


def test_run_selftest__of_points(spot_model: Path, tmp_path: Path) -> None:
    assert tl.runtime.run_selftest(spot_model, device="cpu").max_abs_diff < 0.1
    wrong = make_spot_model(tmp_path / "m.onnx", shift=0.0)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(wrong.read_bytes().replace(b'"expected":[12.0', b'"expected":[13.0'))
    with pytest.raises(ParityError, match="golden samples differ by 1"):
        tl.runtime.run_selftest(broken, device="cpu")


def test_load_landmarks__a_median_has_no_weights(tmp_path: Path) -> None:
    files = [make_spot_model(tmp_path / f"{i}.onnx") for i in range(2)]
    with pytest.raises(EnsembleError, match="merging by median does not use weights"):
        tl.runtime.load_landmarks(files, device="cpu", merge="median", weights=[2, 1])
