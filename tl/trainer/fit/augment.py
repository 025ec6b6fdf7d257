"""Random augmentation of training images and their points: albumentations presets, named transforms, or pipeline files.

The only file that imports albumentations. Never used in validation. Contains no file access to images, no tensors and
no models.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.errors import ConfigError
from tl.runtime.imaging.geometry import crop_to_input
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.trainer.config import PRESETS
from tl.trainer.options import nearest


class Augment:
    """(working image uint8 (h, w, 3), seed) -> uint8 (input_h, input_w, 3).

    The result depends only on the image and the seed, never on workers or order.
    """

    def __init__(self, name: str, pipeline: Any, preprocessing: Preprocessing, *, mirror: bool = False) -> None:
        self._name, self._pipeline, self._preprocessing, self._mirror = name, pipeline, preprocessing, mirror

    @property
    def fingerprint(self) -> str:
        """A string that identifies the whole pipeline and the versions of the libraries that run it."""
        versions = [metadata.version(name) for name in ("albumentations", "albucore")]
        text = json.dumps([self._pipeline.to_dict(), versions], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def __call__(self, working: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Augment an image. Raises `ConfigError` if the pipeline returns an image smaller than the input size."""
        return crop_to_input(self._change(working, seed)["image"], self._preprocessing)

    def with_points(
        self, working: NDArray[np.uint8], points_xy: NDArray[np.floating], seed: int, partners: Sequence[int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Augment an image of the input size and its points (K, 2) in pixels of that image, NaN where missing.

        `partners`: for each point, the point that replaces it in a mirror image, usually itself. A point that leaves
        the image becomes missing. Raises `ConfigError` as `__call__` does, and if the pipeline changes the size.
        """
        present = ~np.isnan(points_xy).any(axis=1)
        height, width = working.shape[:2]
        corners = np.array([[0.0, 0.0], [width - 1, 0.0], [width - 1, height - 1]])
        marked = np.concatenate([points_xy[present], corners])
        changed = self._change(working, seed, keypoints=marked)
        image, moved = changed["image"], np.asarray(changed["keypoints"], np.float64)
        if image.shape[:2] != self._preprocessing.input_hw or len(moved) != len(marked):
            raise ConfigError(
                f"augmentation {self._name} changes the image size or loses points: landmarks require size "
                f"{self._preprocessing.input_hw} and all points (for distortions, set keypoint remapping to 'direct')"
            )
        points = np.full(points_xy.shape, np.nan)
        points[present] = moved[: -len(corners), :2]
        along, down = np.diff(moved[-len(corners) :, :2], axis=0)
        if along[0] * down[1] - along[1] * down[0] < 0:  # the corners have the opposite orientation: a mirror image
            if not self._mirror:
                raise ConfigError(
                    f"augmentation {self._name} mirrors images: give the pairs of points that swap "
                    "(flip_pairs), or declare that none do (mirror)",
                    options=["flip_pairs=left:right", "mirror"],
                )
            points = points[list(partners)]
        is_inside = np.all((points >= -0.5) & (points <= (width - 0.5, height - 0.5)), axis=1, keepdims=True)
        return image, np.where(is_inside, points, np.nan).astype(np.float32)

    def _change(self, working: NDArray[np.uint8], seed: int, **more: Any) -> dict[str, Any]:
        self._pipeline.set_random_seed(seed)
        try:
            found: dict[str, Any] = self._pipeline(image=working, **more)
        except Exception as error:  # albumentations and OpenCV raise arbitrary exceptions, e.g. if a crop is too large
            raise ConfigError(
                f"augmentation {self._name} failed on an image of {working.shape[1]}x{working.shape[0]} pixels "
                f"({' '.join(str(error).split())}); images are resized to image_size first"
            ) from error
        changed = found["image"]
        input_h, input_w = self._preprocessing.input_hw
        num_channels = self._preprocessing.num_channels
        is_image = changed.dtype == np.uint8 and changed.ndim == 3 and changed.shape[2] == num_channels
        if not is_image or changed.shape[0] < input_h or changed.shape[1] < input_w:
            raise ConfigError(
                f"augmentation {self._name} returned {changed.dtype} {changed.shape}; "
                f"expected uint8 of at least ({input_h}, {input_w}, {num_channels})"
            )
        return {**found, "image": changed}


def build_augment(
    name: str, preprocessing: Preprocessing, *, points: bool = False, mirror: bool = False
) -> Augment | None:
    """Build the augmentation from a preset, a file, or a list of transforms; None for `none`.

    With `points`, builds one for `Augment.with_points`. `mirror`: whether mirror images are valid for the points; the
    presets then include mirroring. Raises `ConfigError` for an unknown preset, a file that is not an albumentations
    pipeline, or an invalid transform.
    """
    if name == "none":
        return None
    albumentations = _import_albumentations()
    if name in PRESETS:
        changes = _points_preset(name, mirror, preprocessing, albumentations) if points else None
        pipeline = albumentations.Compose(changes or _preset(name, preprocessing, albumentations))
    elif "(" in name:
        pipeline = albumentations.Compose(_parse_changes(name, albumentations))
    else:
        pipeline = _load_pipeline(name, albumentations)
    if points:
        kept = albumentations.KeypointParams("xy", remove_invisible=False)
        pipeline = albumentations.Compose([pipeline], keypoint_params=kept)
    return Augment(name, pipeline, preprocessing, mirror=mirror)


def _points_preset(name: str, mirror: bool, preprocessing: Preprocessing, albumentations: Any) -> list[Any]:
    """Transforms that move points exactly: no crops with resizing, and mirroring only if enabled."""
    a = albumentations
    turn, zoom, shift = {"flip": (0, 0, 0), "light": (10, 0.05, 0.03), "standard": (20, 0.15, 0.06)}.get(
        name, (35, 0.25, 0.1)
    )
    changes = [a.HorizontalFlip(p=0.5)] if mirror else []
    if turn:
        changes += [
            a.Affine(
                rotate=(-turn, turn),
                scale=(1 - zoom, 1 + zoom),
                translate_percent=(-shift, shift),
                **_border(preprocessing),
                p=0.9,
            )
        ]
    if name in ("standard", "strong"):
        strength = 0.2 if name == "standard" else 0.4
        changes += [_jitter(strength, 0.02, 0.5, preprocessing, a)]
    if name == "strong":
        changes += [a.GaussianBlur(blur_limit=(3, 5), p=0.2), *_to_gray(preprocessing, a)]
    return changes or [a.NoOp()]


def _border(preprocessing: Preprocessing) -> dict[str, Any]:
    """What is beyond the edges of a turned image: the color of padding, or the pixels at the edge."""
    if preprocessing.num_channels <= 4:
        return {"fill": preprocessing.pad_rgb}
    return {"border_mode": 1}  # OpenCV's BORDER_REPLICATE; it takes colors of up to 4 channels


def _preset(name: str, preprocessing: Preprocessing, albumentations: Any) -> list[Any]:
    a = albumentations
    fill = preprocessing.pad_rgb
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
            a.RandomResizedCrop(size=preprocessing.input_hw, scale=(0.5, 1.0), ratio=(4 / 5, 5 / 4), p=1),
            flip,
            a.Affine(rotate=(-10, 10), border_mode=2, p=0.5),
            _jitter(0.2, 0.02, 0.5, preprocessing, a),
        ]
    return [
        a.RandomResizedCrop(size=preprocessing.input_hw, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3), p=1),
        flip,
        a.Affine(rotate=(-25, 25), shear=(-8, 8), border_mode=2, p=0.7),
        _jitter(0.4, 0.05, 0.8, preprocessing, a),
        a.GaussianBlur(blur_limit=(3, 7), p=0.2),
        *_to_gray(preprocessing, a),
        a.CoarseDropout(
            num_holes_range=(1, 3), hole_height_range=(0.1, 0.25), hole_width_range=(0.1, 0.25), fill=fill, p=0.3
        ),
    ]


def _jitter(strength: float, hue: float, p: float, preprocessing: Preprocessing, albumentations: Any) -> Any:
    """Change colors; with more than 3 channels, which have no hue and saturation, only brightness and contrast."""
    if preprocessing.num_channels > 3:
        return albumentations.RandomBrightnessContrast(brightness_limit=strength, contrast_limit=strength, p=p)
    span = (1 - strength, 1 + strength)
    return albumentations.ColorJitter(brightness=span, contrast=span, saturation=span, hue=(-hue, hue), p=p)


def _to_gray(preprocessing: Preprocessing, albumentations: Any) -> list[Any]:
    return [albumentations.ToGray(p=0.1)] if preprocessing.num_channels == 3 else []


def _parse_changes(text: str, albumentations: Any) -> list[Any]:
    """`HorizontalFlip(p=0.5) + Affine(rotate=(-10, 10), p=1)` -> the transforms in order."""
    try:
        calls = _summands(ast.parse(text.strip(), mode="eval").body)
        return [_build_change(call, albumentations) for call in calls]
    except (SyntaxError, ValueError, TypeError, UserWarning) as error:
        raise ConfigError(
            f"augment: '{text}': {' '.join(str(error).split())[:300]}; expected albumentations "
            "transforms such as HorizontalFlip(p=0.5) + Affine(rotate=(-10, 10), p=1)"
        ) from error


def _summands(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_summands(node.left), *_summands(node.right)]
    return [node]


def _build_change(call: ast.expr, albumentations: Any) -> Any:
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args):
        raise ValueError(f"'{ast.unparse(call)}' is not a transform with keyword arguments")
    kind = getattr(albumentations, call.func.id, None)
    if not (isinstance(kind, type) and issubclass(kind, albumentations.BasicTransform)):
        known = [name for name in vars(albumentations) if name[0].isupper()]
        raise ValueError(f"albumentations has no {call.func.id}{nearest(call.func.id, known)}")
    values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # albumentations only warns about a misspelled name
        return kind(**values)


def _load_pipeline(path: str, albumentations: Any) -> Any:
    if not Path(path).is_file():
        known = ", ".join(PRESETS)
        raise ConfigError(
            f"augment: '{path}' is not a preset ({known}){nearest(path, list(PRESETS))}, a file, or "
            "transforms such as HorizontalFlip(p=0.5)"
        )
    data_format = "yaml" if Path(path).suffix.lower() in (".yaml", ".yml") else "json"
    try:
        pipeline = albumentations.load(path, data_format=data_format)
    except Exception as error:  # albumentations raises whatever its parsers raise
        raise ConfigError(
            f"augment: {path} is not a pipeline saved by albumentations ({' '.join(str(error).split())})"
        ) from error
    return pipeline if isinstance(pipeline, albumentations.BaseCompose) else albumentations.Compose([pipeline])


def _import_albumentations() -> Any:
    # Source: albumentations 2.0.8 check_version.py contacts a server on import unless this is set.
    before = os.environ.get("NO_ALBUMENTATIONS_UPDATE")
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    try:
        import albumentations
    finally:
        if before is None:
            del os.environ["NO_ALBUMENTATIONS_UPDATE"]
    return albumentations
