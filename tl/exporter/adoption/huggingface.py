"""Read a Hugging Face folder: `model.onnx`, `config.json` (class names), `preprocessor_config.json` (preprocessing).

Maps image processors of transformers to a preprocessing, and rejects by name every field that it cannot express.
Never imports transformers, and does not depend on graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl.errors import ConfigError
from tl.exporter.adoption.labels import is_number, names_from_mapping, numbers, read_object, take_size
from tl.exporter.adoption.presets import ForeignPreprocessing, Preset
from tl.runtime.imaging.preprocessing import Interpolation, ResizeMode

# Processors that only resize to `size`, crop to `crop_size`, rescale and normalize, as set by their fields.
# Source: transformers 4.57, image_processing_*.py of each.
_PLAIN = ("ViT", "MobileNetV1", "MobileNetV2", "CLIP", "ChineseCLIP", "Bit", "Siglip", "DeiT", "Beit", "Pvt")
_CONVNEXT = "ConvNext"
_CONVNEXT_WARPS_FROM = 384  # from this size on, ConvNextImageProcessor neither crops nor keeps the aspect ratio
# Pillow's enum values. Source: PIL.Image.Resampling
_RESAMPLE: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}

# Without effect on the network's input. Our images are always RGB.
_HARMLESS = {
    "image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys", "do_convert_rgb",
    "default_to_square", "return_tensors", "device", "disable_grouping", "data_format", "input_data_format",
}  # fmt: skip
_USED = {
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "crop_pct", "do_rescale", "rescale_factor",
    "do_normalize", "image_mean", "image_std",
}  # fmt: skip
_CURE = (
    'to write a complete file: python -c "from transformers import AutoImageProcessor as A; '
    "A.from_pretrained('FOLDER').save_pretrained('FOLDER')\""
)


def find_model(folder: Path) -> Path:
    """The folder's model file, at the paths used by optimum and the Hub. Raises `ConfigError`."""
    places = [folder / "model.onnx", folder / "onnx" / "model.onnx"]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(
        f"{folder}: contains neither model.onnx nor onnx/model.onnx; create one with optimum-cli export onnx"
    )


def huggingface_preset(folder: Path) -> Preset:
    """The preprocessing and class names of a folder. Raises `ConfigError`."""
    path = folder / "preprocessor_config.json"
    facts = _Facts(read_object(path), str(path))
    family = facts.family()
    facts.check_fields()
    scale = facts.number("rescale_factor") if facts.flag("do_rescale") else 1.0
    is_normalized = facts.flag("do_normalize")
    mean = numbers(facts.need("image_mean"), f"{path}: image_mean") if is_normalized else (0.0, 0.0, 0.0)
    std = numbers(facts.need("image_std"), f"{path}: image_std") if is_normalized else (1.0, 1.0, 1.0)
    mode, short_side, declared = facts.convnext_geometry() if family == _CONVNEXT else facts.geometry()
    interpolation = facts.interpolation()

    def build(hw: tuple[int, int]) -> ForeignPreprocessing:
        if hw != declared:
            raise ConfigError(
                f"{path}: declares input size {declared[1]}x{declared[0]}, but the input "
                f"of the graph is {hw[1]}x{hw[0]}"
            )
        return ForeignPreprocessing(mode, short_side, interpolation, scale, mean, std)

    config = read_object(folder / "config.json")
    names = None
    if config.get("id2label") is not None:
        names = names_from_mapping(config["id2label"], f"{folder / 'config.json'}: id2label")
    is_multilabel = config.get("problem_type") == "multi_label_classification"
    return Preset("huggingface-folder", declared, False, names, build, is_multilabel)


class _Facts:
    """The fields of a preprocessor_config.json. A missing or unsupported field raises `ConfigError` that names it."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self._fields = fields
        self._where = where

    def fault(self, field: str, text: str) -> ConfigError:
        return ConfigError(f"{self._where}: {field}: {text}")

    def need(self, field: str) -> Any:
        if self._fields.get(field) is None:
            raise self.fault(field, f"missing, and defaults differ between processors; {_CURE}")
        return self._fields[field]

    def flag(self, field: str) -> bool:
        value = self.need(field)
        if not isinstance(value, bool):
            raise self.fault(field, f"expected true or false, found {value!r}")
        return value

    def number(self, field: str) -> float:
        value = self.need(field)
        if not is_number(value):
            raise self.fault(field, f"expected a number, found {value!r}")
        return float(value)

    def family(self) -> str:
        """The image processor's name without its suffixes."""
        field = "image_processor_type" if self._fields.get("image_processor_type") else "feature_extractor_type"
        full = str(self.need(field))
        name = full.removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
        if name not in (*_PLAIN, _CONVNEXT):
            known = ", ".join((*_PLAIN, _CONVNEXT))
            raise self.fault(
                field,
                f"'{full}' is not a supported image processor ({known}); use another preset and "
                "override its preprocessing",
            )
        return name

    def check_fields(self) -> None:
        """Reject fields that would change pixels but cannot be expressed in a preprocessing."""
        for field, value in self._fields.items():
            if field not in _HARMLESS | _USED and value not in (None, False):
                raise self.fault(field, f"{value!r} is not supported by tl's preprocessing")
        if not self.flag("do_resize"):
            raise self.fault("do_resize", "expected true, found false: all images must be resized to the input size")

    def interpolation(self) -> Interpolation:
        value = self.need("resample")
        if value not in _RESAMPLE:
            raise self.fault("resample", f"{value!r}, expected one of {_RESAMPLE}")
        return _RESAMPLE[value]

    def geometry(self) -> tuple[ResizeMode, int | None, tuple[int, int]]:
        """Resize mode, shorter side and input size of a plain processor."""
        if self._fields.get("crop_pct") is not None:
            raise self.fault("crop_pct", f"{self._fields['crop_pct']!r} is not supported by tl's preprocessing")
        size = self._size("size")
        crop = self._size("crop_size") if self._fields.get("do_center_crop") else None
        if isinstance(size, tuple):
            if crop not in (None, size):
                raise self.fault(
                    "crop_size", f"a crop after resizing both sides to {size} is not supported by tl's preprocessing"
                )
            return "squash", None, size
        if not isinstance(crop, tuple):
            raise self.fault(
                "do_center_crop",
                "expected a center crop, since resizing only the shorter side gives varying input sizes",
            )
        if size < max(crop):
            raise self.fault(
                "crop_size",
                f"{crop} is larger than the shorter side, {size}: tl does not pad here",
            )
        return "short_side", size, crop

    def convnext_geometry(self) -> tuple[ResizeMode, int | None, tuple[int, int]]:
        """Like `geometry`, for ConvNextImageProcessor, which has no `crop_size`."""
        edge = self._size("size")
        if isinstance(edge, tuple):
            raise self.fault("size", f"expected shortest_edge, found {self._fields['size']!r}")
        if edge >= _CONVNEXT_WARPS_FROM:
            return "squash", None, (edge, edge)
        crop_pct = self.number("crop_pct")
        if not 0 < crop_pct <= 1:
            raise self.fault("crop_pct", f"expected more than 0 and at most 1, found {crop_pct}")
        return "short_side", int(edge / crop_pct), (edge, edge)

    def _size(self, field: str) -> tuple[int, int] | int:
        """(H, W), or the length of the shorter side."""
        value = self.need(field)
        if isinstance(value, dict) and set(value) == {"height", "width"}:
            return take_size([value["height"], value["width"]], f"{self._where}: {field}")
        if isinstance(value, dict) and set(value) == {"shortest_edge"}:
            return take_size(value["shortest_edge"], f"{self._where}: {field}")[0]
        if isinstance(value, int):
            raise self.fault(
                field, f"{value} is ambiguous: some processors read it as a square, others as the shorter side; {_CURE}"
            )
        raise self.fault(field, f"{value!r}: expected height and width, or shortest_edge")
