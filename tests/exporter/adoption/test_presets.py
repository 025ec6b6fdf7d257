from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tl.errors import ConfigError
from tl.exporter.adoption.presets import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ForeignPreprocessing,
    Overrides,
    apply_overrides,
    imagenet_preset,
    timm_preset,
    ultralytics_preset,
)

METADATA = {"task": "classify", "imgsz": "[64, 64]", "names": "{0: 'ant', 1: 'bee'}"}


def write_config(path: Path, **pretrained: Any) -> Path:
    facts = {
        "input_size": [3, 288, 288],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.5, 0.125],
    }
    config = {"architecture": "net", "label_names": ["ant", "bee"], "pretrained_cfg": facts | pretrained}
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.mark.parametrize(("size", "short_side"), [(224, 256), (299, 342), (384, 439)])
def test_imagenet_preset__torchvisions_rule(size: int, short_side: int) -> None:
    found = imagenet_preset().build((size, size))
    assert found == ForeignPreprocessing("short_side", short_side, "bilinear", 1 / 255, IMAGENET_MEAN, IMAGENET_STD)


def test_timm_preset__defaults() -> None:
    preset = timm_preset(None)
    assert (preset.declared_hw, preset.is_default_hw, preset.class_names) == ((224, 224), True, None)
    assert preset.build((224, 224)) == ForeignPreprocessing(
        "short_side", 256, "bicubic", 1 / 255, IMAGENET_MEAN, IMAGENET_STD
    )
    assert preset.build((240, 240)).short_side == 274  # 240 / 0.875 = 274.3, rounded down


def test_timm_preset__by_config(tmp_path: Path) -> None:
    preset = timm_preset(write_config(tmp_path / "config.json"))
    assert (preset.declared_hw, preset.is_default_hw, preset.class_names) == ((288, 288), False, ("ant", "bee"))
    found = preset.build((288, 288))
    assert found == ForeignPreprocessing("short_side", 303, "bicubic", 1 / 255, (0.5,) * 3, (0.25, 0.5, 0.125))


def test_timm_preset__squash(tmp_path: Path) -> None:
    preset = timm_preset(write_config(tmp_path / "config.json", crop_mode="squash", crop_pct=1.0))
    assert (preset.build((288, 288)).resize_mode, preset.build((288, 288)).short_side) == ("squash", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_mode": "border"}, "crop_mode 'border' with crop_pct 0.95"),
        ({"crop_mode": "squash"}, "crop_mode 'squash' with crop_pct 0.95"),
        ({"crop_pct": 1.1}, "crop_pct 1.1"),
        ({"crop_pct": "most"}, "crop_pct: expected a number, found 'most'"),
        ({"interpolation": "random"}, "interpolation 'random', expected one of nearest"),
        ({"mean": [0.5, 0.5]}, "mean: expected one number or three"),
        ({"std": ["a", 1, 1]}, "std: expected one number or three"),
        ({"input_size": [1, 28, 28]}, "input_size: .* expected 3 channels"),
        ({"input_size": [3, 28.5, 28]}, "expected a size in pixels"),
    ],
)
def test_timm_preset__refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        timm_preset(write_config(tmp_path / "config.json", **changes))


def test_timm_preset__other_than_square(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a non-square input \(320x288\) is not supported"):
        timm_preset(None).build((288, 320))


def test_ultralytics_preset__square_and_not() -> None:
    preset = ultralytics_preset(METADATA, "yolo.onnx")
    assert (preset.declared_hw, preset.is_default_hw, preset.class_names) == ((64, 64), False, ("ant", "bee"))
    assert preset.build((64, 64)) == ForeignPreprocessing("short_side", 64, "bilinear", 1 / 255, (0.0,) * 3, (1.0,) * 3)
    assert preset.build((64, 96)).resize_mode == "squash"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "detect"}, "task 'detect', expected 'classify'"),
        ({"names": "{0: print(1)}"}, "not a Python literal"),
        ({"imgsz": "64 64"}, "not a Python literal"),
        ({"imgsz": "'big'"}, "expected a size in pixels"),
        ({"names": None}, r"without the metadata \['names'\]"),
        ({"task": None, "imgsz": None, "names": None}, "without Ultralytics' metadata; use another preset"),
    ],
)
def test_ultralytics_preset__refused(changes: dict[str, str | None], message: str) -> None:
    metadata = {name: value for name, value in (METADATA | changes).items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        ultralytics_preset(metadata, "yolo.onnx")


def test_preprocessing__normalize_by_hand() -> None:
    pixels = ForeignPreprocessing("squash", None, "bilinear", 1 / 255, (0.5, 0.0, 1.0), (0.5, 1.0, 0.25))
    image = np.array([[[[255, 51, 0]]]], np.uint8)
    found = pixels.normalize(image)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([[[[1.0, 0.2, -4.0]]]], np.float32))


def test_apply_overrides__only_what_is_given() -> None:
    base = imagenet_preset().build((224, 224))
    assert apply_overrides(base, Overrides()) == base
    assert apply_overrides(base, Overrides(short_side=232)).short_side == 232
    assert apply_overrides(base, Overrides(resize_mode="squash")).short_side is None
    squashed = apply_overrides(base, Overrides(resize_mode="squash"))
    with pytest.raises(ValueError, match="resize mode short_side also requires the short side"):
        apply_overrides(squashed, Overrides(resize_mode="short_side"))
