from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.exporter.adoption.foreign_models import make_huggingface
from tl.errors import ConfigError
from tl.exporter.adoption.huggingface import find_model, huggingface_preset
from tl.exporter.adoption.presets import ForeignPreprocessing

SQUARE = {"size": {"height": 32, "width": 32}, "do_center_crop": False}


def pixel_rules(folder: Path) -> ForeignPreprocessing:
    preset = huggingface_preset(folder)
    return preset.build(preset.declared_hw)


def test_huggingface_preset__shortest_edge_and_crop(tmp_path: Path) -> None:
    preset = huggingface_preset(make_huggingface(tmp_path))
    assert (preset.declared_hw, preset.is_default_hw, preset.class_names) == ((32, 32), False, ("red", "green", "blue"))
    found = preset.build((32, 32))
    assert found == ForeignPreprocessing("short_side", 40, "bilinear", 1 / 255, (0.5,) * 3, (0.5, 0.25, 0.125))


@pytest.mark.parametrize("name", ["ViTImageProcessor", "ViTImageProcessorFast", "ViTFeatureExtractor"])
def test_huggingface_preset__squash(tmp_path: Path, name: str) -> None:
    field = "feature_extractor_type" if name.endswith("Extractor") else "image_processor_type"
    facts = {"image_processor_type": None, field: name, "resample": 3, **SQUARE}
    found = pixel_rules(make_huggingface(tmp_path, processor=facts))
    assert (found.resize_mode, found.short_side, found.interpolation) == ("squash", None, "bicubic")


@pytest.mark.parametrize(
    ("edge", "mode", "short_side"),
    [(32, "short_side", 36), (384, "squash", None)],  # int(32 / 0.875) = 36
)
def test_huggingface_preset__convnext(tmp_path: Path, edge: int, mode: str, short_side: int | None) -> None:
    facts = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": edge}, "crop_pct": 0.875}
    preset = huggingface_preset(make_huggingface(tmp_path, processor=facts))
    assert preset.declared_hw == (edge, edge)
    found = preset.build((edge, edge))
    assert (found.resize_mode, found.short_side) == (mode, short_side)


def test_huggingface_preset__flags(tmp_path: Path) -> None:
    facts = {"do_rescale": False, "do_normalize": False, "image_mean": None, "rescale_factor": None}
    found = pixel_rules(make_huggingface(tmp_path, processor=facts))
    assert (found.scale, found.mean, found.std) == (1.0, (0.0,) * 3, (1.0,) * 3)


def test_huggingface_preset__harmless_fields(tmp_path: Path) -> None:
    facts = {
        "do_convert_rgb": True,
        "data_format": "channels_first",
        "do_pad": False,
        "device": "cuda",
        "crop_pct": None,
    }
    assert pixel_rules(make_huggingface(tmp_path, processor=facts)).short_side == 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_processor_type": "LevitImageProcessor"},
            "image_processor_type: 'LevitImageProcessor' is not a supported image processor",
        ),
        ({"image_processor_type": None}, "feature_extractor_type: missing"),
        ({"resample": None}, "resample: missing, and defaults differ between processors; to write a complete file"),
        ({"resample": 4}, "resample: 4, expected one of"),
        ({"do_rescale": None}, "do_rescale: missing"),
        ({"do_rescale": "yes"}, "do_rescale: expected true or false"),
        ({"rescale_factor": "1/255"}, "rescale_factor: expected a number"),
        ({"do_resize": False}, "do_resize: expected true, found false"),
        ({"size": 224}, "size: 224 is ambiguous"),
        ({"size": {"longest_edge": 40}}, "size: .* expected height and width, or shortest_edge"),
        ({"size": {"height": 40, "width": 40}}, r"crop_size: a crop after resizing both sides to \(40, 40\)"),
        ({"size": {"shortest_edge": 24}}, r"crop_size: \(32, 32\) is larger than the shorter side, 24"),
        ({"do_center_crop": False}, "do_center_crop: expected a center crop"),
        ({"crop_pct": 0.9}, "crop_pct: 0.9 is not supported by tl's preprocessing"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order: True is not supported by tl's preprocessing"),
        ({"do_pad": True}, "do_pad: True is not supported by tl's preprocessing"),
        ({"image_mean": [0.5]}, "image_mean: expected one number or three"),
        ({"image_std": None}, "image_std: missing"),
        ({"image_processor_type": "ConvNextImageProcessor", "crop_pct": 1.5}, "crop_pct: expected more than 0"),
        ({"image_processor_type": "ConvNextImageProcessor", **SQUARE}, "size: expected shortest_edge"),
    ],
)
def test_huggingface_preset__refused_by_field(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"preprocessor_config.json: {message}"):
        huggingface_preset(make_huggingface(tmp_path, processor=changes))


def test_huggingface_preset__another_input_size(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="declares input size 32x32, but the input of the graph is 64x64"):
        huggingface_preset(make_huggingface(tmp_path)).build((64, 64))


def test_huggingface_preset__missing_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"preprocessor_config.json: No such file"):
        huggingface_preset(tmp_path)


def test_huggingface_preset__no_class_names(tmp_path: Path) -> None:
    folder = make_huggingface(tmp_path)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert huggingface_preset(folder).class_names is None


def test_find_model__places(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"contains neither model.onnx nor onnx/model.onnx"):
        find_model(tmp_path)
    inner = make_huggingface(tmp_path / "onnx") / "model.onnx"
    assert find_model(tmp_path) == inner
