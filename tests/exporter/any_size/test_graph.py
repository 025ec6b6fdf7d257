from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from tl.exporter.any_size.graph import PREPARED, resizing_alone
from tl.runtime.imaging.geometry import crop_to_input, working_image
from tl.runtime.imaging.preprocessing import ResizeMode, build_preprocessing

MODES: list[tuple[tuple[int, int], dict[str, Any]]] = [
    ((64, 64), {"resize_mode": "squash"}),
    ((48, 65), {"resize_mode": "squash", "interpolation": "bicubic"}),
    ((56, 50), {"resize_mode": "short_side", "short_side": 65}),
    ((55, 56), {"resize_mode": "short_side", "short_side": 64, "interpolation": "bicubic"}),
    ((64, 40), {"resize_mode": "letterbox", "pad_rgb": (7, 7, 7)}),
    ((49, 48), {"resize_mode": "letterbox", "pad_rgb": (10, 200, 30), "interpolation": "bicubic"}),
]
# Odd and even margins, enlarged and reduced sides, one pixel, and equal sizes.
SIZES = [(120, 160), (75, 50), (64, 64), (33, 31), (1, 1), (3, 90), (90, 3), (57, 250), (250, 83), (65, 66), (48, 65)]


def photo(hw: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Smooth waves with some noise, as in a photo."""
    y, x = np.mgrid[: hw[0], : hw[1]] / 20
    waves = [127 + 60 * np.sin(x * (c + 1) + y + seed) + 40 * np.cos(y * (3 - c)) for c in range(3)]
    noise = np.random.default_rng(seed).normal(0, 4, (*hw, 3))
    return np.clip(np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("input_hw", "options"), MODES, ids=lambda value: value.get("resize_mode", "") if isinstance(value, dict) else ""
)
def test_resizing_alone__is_the_runtime_s_resizing(input_hw: tuple[int, int], options: dict[str, Any]) -> None:
    preprocessing = build_preprocessing(input_hw, **options)
    session = session_of(resizing_alone(preprocessing))
    for seed, hw in enumerate(SIZES):
        image = photo(hw, seed)
        wanted = crop_to_input(working_image(image, preprocessing), preprocessing)
        (found,) = session.run([PREPARED], {"images": image[None]})
        difference = np.abs(found[0].astype(int) - wanted)
        # Pillow 13 resizes the columns of tall images first, which rounds other values; a shift by a pixel gives > 5.
        assert difference.max() <= 4, hw
        assert difference.mean() <= 0.35, hw


def test_resizing_alone__several_images_of_one_size() -> None:
    preprocessing = build_preprocessing((24, 24), "short_side", short_side=28)
    session = session_of(resizing_alone(preprocessing))
    images = np.stack([photo((40, 61), seed) for seed in range(3)])
    (together,) = session.run([PREPARED], {"images": images})
    for image, found in zip(images, together, strict=True):
        np.testing.assert_array_equal(session.run([PREPARED], {"images": image[None]})[0][0], found)


def test_resizing_alone__rounds_margins_to_even_as_python_does() -> None:
    """Margins of half pixels: every pixel has its own value, so a crop that is off by one differs everywhere."""
    for short in range(16, 24):
        preprocessing = build_preprocessing((11, 12), "short_side", short_side=short)
        image = np.arange(short * (short + 3) * 3, dtype=np.uint32).reshape(short, short + 3, 3).astype(np.uint8)
        (found,) = session_of(resizing_alone(preprocessing)).run([PREPARED], {"images": image[None]})
        np.testing.assert_array_equal(found[0], crop_to_input(working_image(image, preprocessing), preprocessing))


@pytest.mark.parametrize(
    "options", [{"resize_mode": "squash"}, {"resize_mode": "short_side"}, {"resize_mode": "letterbox"}]
)
@pytest.mark.parametrize("hw", [(0, 5), (5, 0), (0, 0)])
def test_resizing_alone__an_empty_image_is_an_error_not_a_crash(options: dict[str, Any], hw: tuple[int, int]) -> None:
    session = session_of(resizing_alone(build_preprocessing((16, 16), **options)))
    with pytest.raises(Exception, match=r"[Zz]ero|0"):
        session.run([PREPARED], {"images": np.zeros((1, *hw, 3), np.uint8)})


def test_resizing_alone__loads_where_tl_does() -> None:
    model = resizing_alone(build_preprocessing((16, 16), "letterbox"))
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 18
    assert model.ir_version <= 10
    assert {node.domain for node in model.graph.node} == {""}


@pytest.mark.parametrize("mode", ["squash", "short_side", "letterbox"])
def test_resizing_alone__has_no_unused_constants(mode: ResizeMode) -> None:
    """onnxruntime would print a warning for each."""
    graph = resizing_alone(build_preprocessing((16, 16), mode)).graph
    used = {name for node in graph.node for name in node.input}
    assert [constant.name for constant in graph.initializer if constant.name not in used] == []
