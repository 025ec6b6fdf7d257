from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import tl.runtime
from tests.models import color_probabilities, make_cam_model, make_model, solid
from tests.runtime.images import noise
from tl.errors import ConfigError
from tl.runtime.explain.drawing import draw_explanation, save_drawing
from tl.runtime.imaging.preprocessing import build_preprocessing

# A red top left corner; the rest is blue.
CORNER = solid((0, 0, 120))
CORNER[:4, :4] = (250, 0, 0)
ROUNDING = 1e-5


def test_explain__a_class_activation_map(tmp_path: Path) -> None:
    with tl.runtime.load(make_cam_model(tmp_path / "m.onnx"), device="cpu") as model:
        found = tl.runtime.explain(model, CORNER, "red")
        usual = tl.runtime.explain(model, CORNER)
    assert (found.label, found.method, usual.label) == ("red", "cam", "blue")
    red, blue = np.array([[12.5, 0], [0, 0]]), np.array([[0, 6], [6, 6]])  # 0.05 x the means of quarters
    np.testing.assert_allclose(found.heat, red - (red + blue) / 3, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(usual.heat, blue - (red + blue) / 3, rtol=0, atol=ROUNDING)


def test_explain__occlusion_by_hand(tmp_path: Path) -> None:
    """49 patches of 2x2 pixels at every row and column of 8x8, each replaced by the mean color."""
    with tl.runtime.load(make_model(tmp_path / "m.onnx"), device="cpu") as model:
        found = tl.runtime.explain(model, CORNER, "red")
    mean = CORNER.reshape(-1, 3).mean(axis=0).round()
    whole = color_probabilities(CORNER)[0]
    drops, covers = np.zeros((8, 8)), np.zeros((8, 8))
    for top in range(7):
        for left in range(7):
            covered = CORNER.copy()
            covered[top : top + 2, left : left + 2] = mean
            drops[top : top + 2, left : left + 2] += whole - color_probabilities(covered)[0]
            covers[top : top + 2, left : left + 2] += 1
    assert found.method == "occlusion"
    np.testing.assert_allclose(found.heat, drops / covers, rtol=0, atol=ROUNDING)
    assert found.heat[:4, :4].min() > 0 > found.heat[5:, 5:].max()


@pytest.mark.parametrize("vote", ["soft", "hard"])
def test_explain__of_an_ensemble_the_mean_of_its_members(tmp_path: Path, vote: str) -> None:
    paths = [
        make_model(tmp_path / "a.onnx", gain=0.02),
        make_model(tmp_path / "b.onnx", gain=0.05, preprocessing=build_preprocessing((16, 16))),
    ]
    with tl.runtime.load(paths, device="cpu", vote=vote, weights=[3, 1]) as both:  # type: ignore[arg-type]
        found = tl.runtime.explain(both, CORNER, "red")
    heats = []
    for path in paths:
        with tl.runtime.load(path, device="cpu") as model:
            heats.append(tl.runtime.explain(model, CORNER, "red").heat)
    fine = heats[1].reshape(8, 2, 8, 2).mean(axis=(1, 3))
    # The second model's patches cover whole pixels of the first model's input, but its input has resized edges.
    assert np.corrcoef((3 * heats[0] + fine).ravel(), found.heat.ravel())[0, 1] > 0.98


def test_explain__members_that_prepare_otherwise_are_covered_at_the_same_place(tmp_path: Path) -> None:
    """A photo four times as wide as high, red at its left end. All rows are equal, and so are the explanations."""
    photo = np.zeros((16, 64, 3), np.uint8)
    photo[..., 2] = 120
    photo[:, :16] = (250, 0, 0)
    kinds = ("squash", "letterbox")
    paths = [make_model(tmp_path / f"{kind}.onnx", preprocessing=build_preprocessing((64, 64), kind)) for kind in kinds]
    with tl.runtime.load(paths, device="cpu") as model:
        heat = tl.runtime.explain(model, photo, "red").heat
    np.testing.assert_allclose(heat[20:44], np.broadcast_to(heat[32], (24, 64)), rtol=0, atol=1e-3)
    assert heat[:, :12].min() > 0 > heat[:, 24:].max()
    with tl.runtime.load(paths[::-1], device="cpu") as model:  # the letterboxed one first: its padding has no effect
        heat = tl.runtime.explain(model, photo, "red").heat
    assert (heat[:24] == 0).all()
    assert (heat[40:] == 0).all()
    assert heat[24:40, :12].min() > 0


def test_explain__refused(tmp_path: Path) -> None:
    path = make_model(tmp_path / "m.onnx")
    with (
        tl.runtime.load(path, device="cpu") as model,
        pytest.raises(ConfigError, match="'brown' is not one of the classes red, green, blue"),
    ):
        tl.runtime.explain(model, CORNER, "brown")
    with (
        tl.runtime.load(path, device="cpu", tta=("hflip",)) as model,
        pytest.raises(ConfigError, match="leave out test-time augmentation"),
    ):
        tl.runtime.explain(model, CORNER)


def test_draw_explanation__marks_the_supporting_region(tmp_path: Path) -> None:
    """A letterboxed photo twice as wide as high: its top left quarter supports red, the rest does not."""
    photo = np.zeros((80, 160, 3), np.uint8)
    photo[..., 2] = 120
    photo[:40, :80] = (250, 0, 0)
    preprocessing = build_preprocessing((64, 64), "letterbox")
    with tl.runtime.load(make_model(tmp_path / "m.onnx", preprocessing=preprocessing), device="cpu") as model:
        found = tl.runtime.explain(model, photo, "red")
    drawn = np.asarray(draw_explanation(photo, found, preprocessing)).astype(int)
    assert drawn.shape[1] >= 320
    np.testing.assert_array_equal(drawn[:80, :160], photo)
    beside = drawn[:80, 160:320]
    warm = beside[..., 0] - beside[..., 2]  # orange has more red, blue more blue
    assert warm[4:34, 5:75].min() > 50
    assert warm[45:78, 85:155].max() < 0


def test_draw_explanation__what_was_cropped_away_stays_gray(tmp_path: Path) -> None:
    photo = noise(32, 96)
    preprocessing = build_preprocessing((32, 32), "short_side", short_side=32)
    with tl.runtime.load(make_model(tmp_path / "m.onnx", preprocessing=preprocessing), device="cpu") as model:
        found = tl.runtime.explain(model, photo)
    beside = np.asarray(draw_explanation(photo, found, preprocessing))[:32, 96:192].astype(int)
    gray = beside.max(axis=2) == beside.min(axis=2)
    assert gray[:, :30].all()
    assert gray[:, 66:].all()
    assert not gray[:, 36:60].all()


@pytest.mark.parametrize("kind", ["cam", "occlusion"])
def test_draw_explanation__says_what_it_shows(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make = make_cam_model if kind == "cam" else make_model
    with tl.runtime.load(make(tmp_path / "m.onnx"), device="cpu") as model:
        found = tl.runtime.explain(model, CORNER, "red")
        preprocessing = model.ensemble.sessions[0].contract.preprocessing  # type: ignore[union-attr]
    assert found.probability == pytest.approx(color_probabilities(CORNER)[0], abs=ROUNDING)
    texts: list[str] = []
    write = ImageDraw.ImageDraw.text

    def text(pen: ImageDraw.ImageDraw, place: tuple[float, float], line: str, **options: Any) -> None:
        texts.append(line)
        write(pen, place, line, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    drawn = np.asarray(draw_explanation(CORNER, found, preprocessing)).astype(int)
    largest = f"{np.abs(found.heat).max():.2g}"
    unit = "logits" if kind == "cam" else "probability"
    assert texts[0] == f"red: probability {found.probability:.1%}"
    assert texts[1].startswith("Class activation map" if kind == "cam" else "Occlusion")
    assert texts[2:] == [f"against it (-{largest})", f"for it (+{largest} {unit})"]
    key = drawn[8:]
    warm = key[..., 0] - key[..., 2]
    assert warm.min() < -50 < 50 < warm.max()  # both ends of the color key
    assert (drawn[8:, -3:] == 255).all()  # no text is cut off


def test_save_drawing__is_named_after_its_image(tmp_path: Path) -> None:
    path = save_drawing(Image.fromarray(CORNER), tmp_path, "../a/1.jpg", "why")
    assert path == tmp_path / "__" / "a" / "1.jpg.why.jpg"
    with Image.open(path) as drawing:
        assert drawing.size == (8, 8)
