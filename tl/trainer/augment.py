"""Random changes to training pictures: presets of albumentations, or a pipeline that albumentations saved.

Knows albumentations and working pictures. Does not know files of pictures, tensors or models; validation never comes
here. The only file that imports albumentations.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.errors import ConfigError
from tl.runtime.geometry import crop_to_input
from tl.runtime.recipe import Recipe
from tl.trainer.options import nearest

PRESETS = ("none", "flip", "light", "standard", "strong")


class Augment:
    """(working picture uint8 (h, w, 3), seed) -> uint8 (input_h, input_w, 3).

    The result depends on the picture and the seed alone, never on workers or order.
    """

    def __init__(self, name: str, pipeline: Any, recipe: Recipe) -> None:
        self._name, self._pipeline, self._recipe = name, pipeline, recipe

    @property
    def fingerprint(self) -> str:
        """Names what the changes are: the whole pipeline and the versions of what carries it out."""
        versions = [metadata.version(name) for name in ("albumentations", "albucore")]
        text = json.dumps([self._pipeline.to_dict(), versions], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def __call__(self, working: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Change a picture. Raises `ConfigError` if the pipeline gives no picture of at least the input size."""
        self._pipeline.set_random_seed(seed)
        try:
            changed: NDArray[np.uint8] = self._pipeline(image=working)["image"]
        except Exception as error:  # albumentations and OpenCV raise whatever they find, such as a crop too large
            raise ConfigError(
                f"augmentation {self._name} cannot change a picture of {working.shape[1]}x{working.shape[0]} pixels "
                f"({' '.join(str(error).split())}); pictures are resized to --image-size before"
            ) from error
        input_h, input_w = self._recipe.input_hw
        is_picture = changed.dtype == np.uint8 and changed.ndim == 3 and changed.shape[2] == 3
        if not is_picture or changed.shape[0] < input_h or changed.shape[1] < input_w:
            raise ConfigError(
                f"augmentation {self._name} gives {changed.dtype} {changed.shape}; "
                f"expected uint8 of at least ({input_h}, {input_w}, 3)"
            )
        return crop_to_input(changed, self._recipe)


def build_augment(name: str, recipe: Recipe) -> Augment | None:
    """The augmentation of a preset or a file; None for `none`.

    Raises `ConfigError` for an unknown preset or a file that is no albumentations pipeline.
    """
    if name == "none":
        return None
    albumentations = _import_albumentations()
    if name in PRESETS:
        pipeline = albumentations.Compose(_preset(name, recipe, albumentations))
    else:
        pipeline = _load_pipeline(name, albumentations)
    return Augment(name, pipeline, recipe)


def _preset(name: str, recipe: Recipe, albumentations: Any) -> list[Any]:
    a = albumentations
    fill = recipe.pad_rgb
    flip = a.HorizontalFlip(p=0.5)
    if name == "flip":
        return [flip]
    if name == "light":
        return [
            flip,
            a.Affine(rotate=(-10, 10), scale=(0.95, 1.05), translate_percent=(-0.05, 0.05), border_mode=2, p=0.8),
        ]
    if name == "standard":
        return [
            a.RandomResizedCrop(size=recipe.input_hw, scale=(0.5, 1.0), ratio=(4 / 5, 5 / 4), p=1),
            flip,
            a.Affine(rotate=(-10, 10), border_mode=2, p=0.5),
            a.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(-0.02, 0.02), p=0.5),
        ]
    return [
        a.RandomResizedCrop(size=recipe.input_hw, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3), p=1),
        flip,
        a.Affine(rotate=(-25, 25), shear=(-8, 8), border_mode=2, p=0.7),
        a.ColorJitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=(-0.05, 0.05), p=0.8),
        a.GaussianBlur(blur_limit=(3, 7), p=0.2),
        a.ToGray(p=0.1),
        a.CoarseDropout(
            num_holes_range=(1, 3), hole_height_range=(0.1, 0.25), hole_width_range=(0.1, 0.25), fill=fill, p=0.3
        ),
    ]


def _load_pipeline(path: str, albumentations: Any) -> Any:
    if not Path(path).is_file():
        known = ", ".join(PRESETS)
        raise ConfigError(f"augment: '{path}' is neither a preset ({known}){nearest(path, list(PRESETS))} nor a file")
    data_format = "yaml" if Path(path).suffix.lower() in (".yaml", ".yml") else "json"
    try:
        pipeline = albumentations.load(path, data_format=data_format)
    except Exception as error:  # albumentations raises whatever its parsers raise
        raise ConfigError(
            f"augment: {path} is no pipeline that albumentations saved ({' '.join(str(error).split())})"
        ) from error
    return pipeline if isinstance(pipeline, albumentations.BaseCompose) else albumentations.Compose([pipeline])


def _import_albumentations() -> Any:
    # Source: albumentations 2.0.8 check_version.py asks a server for updates on import unless this is set.
    before = os.environ.get("NO_ALBUMENTATIONS_UPDATE")
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    try:
        import albumentations
    finally:
        if before is None:
            del os.environ["NO_ALBUMENTATIONS_UPDATE"]
    return albumentations
