"""Preprocessing of other frameworks: torchvision, timm, Ultralytics, or user-defined.

Implements their published rules and reads the files that state them (`huggingface` reads its own). Never guesses: a
setting that a preprocessing cannot express is rejected by field name.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from tl.errors import ConfigError
from tl.exporter.adoption.labels import is_number, names_from_mapping, numbers, read_object, take_size
from tl.runtime.imaging.preprocessing import Interpolation, Preprocessing, ResizeMode, build_preprocessing

PresetName = Literal["imagenet", "timm", "ultralytics", "huggingface-folder"]
Triple = tuple[float, float, float]

# Source: torchvision's ImageClassification preset; timm's IMAGENET_DEFAULT_MEAN and IMAGENET_DEFAULT_STD are equal.
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
PIXEL_SCALE = 1 / 255


@dataclass(frozen=True)
class ForeignPreprocessing:
    """Resize and crop as in a preprocessing, then `(pixel * scale - mean) / std` for each of R, G, B.

    `short_side`: size of the shorter side before the crop; None in the other resize modes.
    """

    resize_mode: ResizeMode
    short_side: int | None
    interpolation: Interpolation
    scale: float
    mean: Triple
    std: Triple

    def __post_init__(self) -> None:
        if not (all(map(math.isfinite, (self.scale, *self.mean, *self.std))) and self.scale and all(self.std)):
            raise ValueError(
                f"scale {self.scale} and std {self.std} must be finite and nonzero, and mean {self.mean} must be finite"
            )

    def preprocessing(self, input_hw: tuple[int, int]) -> Preprocessing:
        """The preprocessing for this input size. JPEGs are decoded at full size, as elsewhere. Raises ValueError."""
        return build_preprocessing(
            input_hw,
            self.resize_mode,
            short_side=self.short_side,
            interpolation=self.interpolation,
            jpeg_scale="full",
        )

    def normalize(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (N, H, W, 3) -> float32 (N, H, W, 3), computed in double precision, outside any graph."""
        wide: NDArray[np.float64] = (images.astype(np.float64) * self.scale - np.array(self.mean)) / np.array(self.std)
        return wide.astype(np.float32)


@dataclass(frozen=True)
class Overrides:
    """User overrides of a preset; None keeps the preset's value."""

    resize_mode: ResizeMode | None = None
    short_side: int | None = None
    interpolation: Interpolation | None = None
    scale: float | None = None
    mean: Triple | None = None
    std: Triple | None = None


@dataclass(frozen=True)
class Preset:
    """A framework's preprocessing before the input size is known.

    `declared_hw`: the size stated in its files, or the framework's default if `is_default_hw`; `class_names`: from its
    files, None if not stated. `build`: input (H, W) -> preprocessing. `is_multilabel`: as in `Plan`.
    """

    name: PresetName
    declared_hw: tuple[int, int]
    is_default_hw: bool
    class_names: tuple[str, ...] | None
    build: Callable[[tuple[int, int]], ForeignPreprocessing]
    is_multilabel: bool = False


def imagenet_preset() -> Preset:
    """torchvision: shorter side to 256 for 224, center crop, bilinear.

    Source: torchvision.transforms._presets.ImageClassification.
    """

    def build(hw: tuple[int, int]) -> ForeignPreprocessing:
        short_side = round(max(hw) / 0.875)
        return ForeignPreprocessing("short_side", short_side, "bilinear", PIXEL_SCALE, IMAGENET_MEAN, IMAGENET_STD)

    return Preset("imagenet", (224, 224), True, None, build)


def timm_preset(config: Path | None) -> Preset:
    """Preset from timm's `config.json` (its `pretrained_cfg`), or timm's defaults without one.

    Source: timm 1.0 `resolve_data_config` and `transforms_imagenet_eval`.
    """
    facts: Mapping[str, Any] = {}
    names = None
    if config is not None:
        whole = read_object(config)
        facts = whole.get("pretrained_cfg") or whole
        labels = whole.get("label_names") or facts.get("label_names")
        names = None if labels is None else names_from_mapping(labels, f"{config}: label_names")
    where = str(config)
    mode, crop_pct = facts.get("crop_mode") or "center", facts.get("crop_pct") or 0.875
    if not is_number(crop_pct):
        raise ConfigError(f"{where}: crop_pct: expected a number, found {crop_pct!r}")
    if mode not in ("center", "squash") or (mode == "squash" and crop_pct != 1) or not 0 < crop_pct <= 1:
        raise ConfigError(
            f"{where}: crop_mode '{mode}' with crop_pct {crop_pct:g} is not supported by tl's preprocessing"
        )
    interpolation = _interpolation(facts.get("interpolation") or "bicubic", where)
    size = facts.get("input_size")
    if size is not None and (not isinstance(size, list) or size[:1] != [3]):
        raise ConfigError(f"{where}: input_size: {size}, expected 3 channels, height and width")
    declared = (224, 224) if size is None else take_size(size[1:], f"{where}: input_size")
    mean = numbers(facts.get("mean") or IMAGENET_MEAN, f"{where}: mean")
    std = numbers(facts.get("std") or IMAGENET_STD, f"{where}: std")

    def build(hw: tuple[int, int]) -> ForeignPreprocessing:
        if mode == "squash":
            return ForeignPreprocessing("squash", None, interpolation, PIXEL_SCALE, mean, std)
        if hw[0] != hw[1]:
            raise ConfigError(
                f"timm's resize rule for a non-square input ({hw[1]}x{hw[0]}) is not supported by tl's preprocessing"
            )
        return ForeignPreprocessing("short_side", math.floor(hw[0] / crop_pct), interpolation, PIXEL_SCALE, mean, std)

    return Preset("timm", declared, size is None, names, build)


def ultralytics_preset(metadata: Mapping[str, str], where: str) -> Preset:
    """Preset from the metadata that Ultralytics writes into its ONNX files: `task`, `imgsz`, `names`.

    Source: ultralytics 8.4 `classify_transforms`; before about 8.4, non-square inputs were not distinguished.
    """
    if missing := [key for key in ("task", "imgsz", "names") if key not in metadata]:
        found = "without Ultralytics' metadata" if len(missing) == 3 else f"without the metadata {missing}"
        raise ConfigError(f"{where}: a file {found}; use another preset", options=["preset=PRESET"])
    if metadata["task"] != "classify":
        raise ConfigError(f"{where}: task '{metadata['task']}', expected 'classify': only classifiers can be adopted")
    try:
        size, names = ast.literal_eval(metadata["imgsz"]), ast.literal_eval(metadata["names"])
    except (ValueError, SyntaxError, RecursionError) as error:
        raise ConfigError(f"{where}: its metadata imgsz or names is not a Python literal ({error})") from error

    def build(hw: tuple[int, int]) -> ForeignPreprocessing:
        mode: ResizeMode = "short_side" if hw[0] == hw[1] else "squash"
        short_side = hw[0] if mode == "short_side" else None
        return ForeignPreprocessing(mode, short_side, "bilinear", PIXEL_SCALE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    declared = take_size(size, f"{where}: metadata imgsz")
    return Preset("ultralytics", declared, False, names_from_mapping(names, f"{where}: metadata names"), build)


def apply_overrides(pixel_rules: ForeignPreprocessing, given: Overrides) -> ForeignPreprocessing:
    """The preset's preprocessing with the user's overrides. Raises ValueError for impossible values."""
    changes = {each.name: value for each in fields(given) if (value := getattr(given, each.name)) is not None}
    mode = changes.get("resize_mode", pixel_rules.resize_mode)
    if mode != "short_side":
        if given.short_side is not None:
            raise ValueError(f"the short side applies only to resize mode short_side, not to {mode}")
        changes["short_side"] = None
    elif pixel_rules.short_side is None and given.short_side is None:
        raise ValueError("resize mode short_side also requires the short side")
    return replace(pixel_rules, **changes)


def _interpolation(name: object, where: str) -> Interpolation:
    if name not in get_args(Interpolation):
        raise ConfigError(f"{where}: interpolation '{name}', expected one of {', '.join(get_args(Interpolation))}")
    return cast(Interpolation, name)
