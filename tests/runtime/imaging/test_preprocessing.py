from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tl.runtime.imaging.preprocessing import Preprocessing, ResizeMode, build_preprocessing


@pytest.mark.parametrize(
    ("input_hw", "short_side"),
    [((224, 224), 256), ((112, 224), 256), ((8, 8), 9), ((1, 1), 1)],  # 224 / 0.875 = 256; 8 / 0.875 = 9.14
)
def test_build_recipe__short_side_by_default(input_hw: tuple[int, int], short_side: int) -> None:
    assert build_preprocessing(input_hw, "short_side").short_side == short_side


def test_build_recipe__given_short_side_is_kept() -> None:
    assert build_preprocessing((224, 224), "short_side", short_side=232).short_side == 232


@pytest.mark.parametrize("mode", ["squash", "letterbox"])
def test_build_recipe__no_short_side_in_other_modes(mode: ResizeMode) -> None:
    assert build_preprocessing((224, 224), mode).short_side is None
    with pytest.raises(ValueError, match="short_side applies only to"):
        build_preprocessing((224, 224), mode, short_side=256)


def test_build_recipe__states_every_rule() -> None:
    assert dataclasses.asdict(
        build_preprocessing((6, 8), pad_rgb=(1, 2, 3), bit_depth_max=4095, interpolation="bicubic")
    ) == {
        "input_hw": (6, 8),
        "resize_mode": "squash",
        "short_side": None,
        "interpolation": "bicubic",
        "pad_rgb": (1, 2, 3),
        "bit_depth_max": 4095,
        "orientation": "exif",
        "alpha": "white",
        "icc": "ignored",
        "cmyk": "pillow",
        "decoder": "simplejpeg+pillow",
        "jpeg_scale": "2x",
        "channels": None,
        "project": None,
        "resized_by": "runtime",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_hw": (0, 8)}, "input_hw must be positive"),
        ({"input_hw": (8, -1)}, "input_hw must be positive"),
        ({"resize_mode": "short_side", "short_side": 7}, "smaller than the crop"),
        ({"resize_mode": "short_side", "short_side": 9, "input_hw": (8, 10)}, "smaller than the crop"),
        ({"pad_rgb": (0, 256, 0)}, "pad_rgb must be 0..255"),
        ({"pad_rgb": (-1, 0, 0)}, "pad_rgb must be 0..255"),
        ({"bit_depth_max": 255}, "bit_depth_max must be 256..65535"),
        ({"bit_depth_max": 65536}, "bit_depth_max must be 256..65535"),
        ({"input_hw": (60_000, 60_000)}, "exceeds 134217728 pixels"),
        ({"resize_mode": "short_side", "short_side": 60_000}, "exceeds 134217728 pixels"),
    ],
)
def test_build_recipe__impossible_values(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_preprocessing(**({"input_hw": (8, 8)} | changes))


def test_recipe__short_side_mode_needs_its_size() -> None:
    with pytest.raises(ValueError, match="short_side applies only to"):
        dataclasses.replace(build_preprocessing((8, 8)), resize_mode="short_side")


def test_recipe__is_a_key() -> None:
    preprocessing: Preprocessing = build_preprocessing((8, 8))
    assert {preprocessing: 1}[build_preprocessing((8, 8))] == 1
    assert preprocessing != build_preprocessing((8, 9))


def test_decode_key__depends_on_decoding_alone() -> None:
    key = build_preprocessing((8, 8)).decode_key
    assert key == build_preprocessing((16, 24), "letterbox", pad_rgb=(9, 9, 9), interpolation="nearest").decode_key
    assert key != build_preprocessing((8, 8), bit_depth_max=4095).decode_key
