"""Check which training options apply to a task."""

from __future__ import annotations

from collections.abc import Sequence

from tl.trainer.box_options import box_faults
from tl.trainer.config import TrainConfig
from tl.trainer.defaults import LANDMARKS

_BOXES = ("boxes", "min_box_confidence", "box_categories", "box_labels", "crop_square")
# Options for classification only.
_CLASSES_ONLY = (
    *("per_class", "path_column", "label_column", "views", "mixup", "cutmix", "label_smoothing", "class_weights"),
    "unlabeled",
    *("sampler", "taxonomy", *_BOXES),
)
# Options of classification that regression does not have.
_CLASSES_NOT_NUMBERS = (
    *("per_class", "mixup", "cutmix", "label_smoothing", "class_weights", "sampler", "bag", "views", "taxonomy"),
    "unlabeled",
    *_BOXES,
)
_NUMBERS_ONLY = ("unit", "number_loss", "quantile")
_TARGETS_ONLY = ("target", *_NUMBERS_ONLY)
_PREDICTED = {"regression": "numbers", "multilabel": "several labels"}
# Ends of the names of metrics that can select the epoch.
_MONITORS = {"regression": ("loss", "mae"), "multilabel": ("loss", "f1")}
_LANDMARKS_ONLY = ("crop", "mirror", "flip_pairs", "skeleton", "point_loss")


def task_faults(config: TrainConfig) -> list[str]:
    """Options of a resolved config that its task does not have, or that contradict each other there."""
    if config.task == "landmarks":
        return [*_given(config, _TARGETS_ONLY, "regression"), *_landmark_faults(config)]
    faults = _given(config, _LANDMARKS_ONLY, "landmarks")
    if config.head == "heatmap":
        faults.append(f"head heatmap is only for landmarks, but the task is {config.task}")
    if not str(config.monitor).endswith(_MONITORS.get(str(config.task), ("loss", "accuracy", "f1", "ece"))):
        faults.append(f"monitor {config.monitor} does not exist for {config.task}")
    if config.task == "regression":
        return [*faults, *_target_faults(config, _CLASSES_NOT_NUMBERS), *_number_faults(config)]
    if config.task == "multilabel":
        faults += _target_faults(config, [name for name in _CLASSES_NOT_NUMBERS if name != "class_weights"])
        return [*faults, *_given(config, _NUMBERS_ONLY, "regression")]
    return [*faults, *_given(config, _TARGETS_ONLY, "regression and multilabel"), *box_faults(config)]


def _target_faults(config: TrainConfig, not_available: Sequence[str]) -> list[str]:
    """Faults of regression and multilabel, whose labels may be in columns of their own."""
    faults = _given(config, not_available, "classification")
    if config.head not in ("linear", "mlp"):
        faults.append(f"head {config.head} does not predict {_PREDICTED[str(config.task)]}: use linear or mlp")
    if config.interpolate or config.soup not in (None, 1):
        faults.append("interpolate and soup are only for classification")
    if config.target and len(set(config.target)) < len(config.target):
        faults.append(f"target names a column twice: {', '.join(config.target)}")
    if config.target and config.label_column is not None:
        faults.append("target and label_column both name the column to predict: give one of them")
    return faults


def _number_faults(config: TrainConfig) -> list[str]:
    faults = []
    if config.unit is not None and len(config.unit) != len(config.target or ("label",)):
        faults.append(f"unit requires one unit for each target, found {len(config.unit)}")
    if not 0 < config.quantile < 1:
        faults.append(f"quantile must be between 0 and 1, found {config.quantile}")
    if config.quantile != TrainConfig.quantile and config.number_loss != "quantile":
        faults.append("quantile requires number_loss quantile")
    if config.optimizer == "lbfgs" and config.number_loss != "mse":
        faults.append(f"number_loss {config.number_loss} requires training by steps: give an optimizer, such as adamw")
    return faults


def _given(config: TrainConfig, names: Sequence[str], task: str) -> list[str]:
    """The fault of options that only another task has."""
    given = [name for name in names if getattr(config, name) != getattr(TrainConfig, name)]
    return [f"{', '.join(given)}: only for {task}, but the task is {config.task}"] if given else []


def _landmark_faults(config: TrainConfig) -> list[str]:
    given = [name for name in _CLASSES_ONLY if getattr(config, name) != getattr(TrainConfig, name)]
    rules = {
        f"{', '.join(given)}: only for classification, but the task is landmarks": bool(given),
        f"head {config.head} is only for classification; for landmarks use heatmap, linear or mlp": config.head
        in ("conv", "svm"),
        "resize_mode short_side would crop landmarks away: use letterbox or squash": (
            config.resize_mode == "short_side"
        ),
        f"monitor {config.monitor} is only for classification, but the task is landmarks": not str(
            config.monitor
        ).endswith(("loss", "px")),
        "head heatmap requires the feature map: leave out pooling": config.head == "heatmap"
        and config.pooling != "gap",
        "head heatmap requires exactly one value in head_sizes, the number of channels": config.head == "heatmap"
        and len(config.head_sizes or ()) != 1,
        "split_column: in landmark files, the column is always called split": config.split_column != "split",
        "optimizer lbfgs is only for classification; choose another for landmarks": config.optimizer == "lbfgs",
        "mirror requires an augmentation": bool(config.mirror) and config.augment == "none",
        "augment flip mirrors images, which requires flip_pairs or mirror": (
            config.augment == "flip" and not config.flip_pairs and config.mirror is not True
        ),
        "point_loss applies only to the linear and mlp heads": (
            config.head == "heatmap" and config.point_loss != TrainConfig.point_loss
        ),
        "crop_margin requires crop box or points": (
            config.crop == "whole" and config.crop_margin not in (None, LANDMARKS["crop_margin"])
        ),
    }
    faults = [text for text, is_broken in rules.items() if is_broken]
    for name in ("flip_pairs", "skeleton"):
        faults += [
            f"{name}: expected NAME:NAME with different names, found '{pair}'"
            for pair in getattr(config, name) or ()
            if not _is_pair(pair)
        ]
    return faults


def _is_pair(text: str) -> bool:
    first, colon, second = text.partition(":")
    return bool(first and colon and second and ":" not in second and first != second)
