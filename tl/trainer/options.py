"""Complete and check training options: a `TrainConfig` in, a resolved one out.

Contains the rules for which options can be combined. Does not depend on torch, images or networks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from tl.data.sequences import sequence_faults
from tl.errors import ConfigError
from tl.runtime.imaging.preprocessing import parse_channels, stack_faults
from tl.runtime.labeling.tools import has_several_labels
from tl.runtime.landmarks.files import is_landmark_file
from tl.runtime.sources.durations import parse_seconds
from tl.trainer.config import Kind, TrainConfig
from tl.trainer.defaults import (
    BAG_FOLDS,
    BEST_SOUP,
    BY_METHOD,
    C_VALUES,
    CLASSES,
    COMMON,
    FAMILY_RATES,
    FROM_SOLVED_HEAD,
    HEAD_SIZES,
    LANDMARK_LEARNING_RATES,
    LANDMARKS,
    LEARNING_RATES,
    MAX_VAL_FRACTION,
    NUMBERS,
    SMALLER_LEARNING_RATES,
    SOUP,
    VAL_FRACTION,
)
from tl.trainer.models.backbone_info import family_of, has_norm
from tl.trainer.task_options import task_faults

_MAX_IMAGE_SIZE = 8192

_Value = TypeVar("_Value")


def resolve(config: TrainConfig, where: str = "options") -> TrainConfig:
    """Fill unset options and check every value. Raises `ConfigError`, prefixed with `where`, that lists all errors.

    Of method auto, only the method and the output folder are filled: `candidates` has the configs of its methods.
    """
    if config.task is None:
        config = dataclasses.replace(config, task="regression" if config.target else find_task(config.data))
    if config.method is None and config.task in ("multilabel", "regression"):
        config = dataclasses.replace(config, method="features")
    if config.method is None:
        asks_auto = config.budget is not None or config.quality != TrainConfig.quality
        config = dataclasses.replace(config, method="finetune" if _auto_faults(config) and not asks_auto else "auto")
    if config.method != "auto":
        return _resolve_method(config, where)
    raise_faults([*_auto_faults(config), *_budget_faults(config)], where)
    for candidate in candidates(config):
        _resolve_method(candidate, where)
    return dataclasses.replace(config, out=config.out or _default_out(config))


def candidates(config: TrainConfig) -> tuple[TrainConfig, TrainConfig]:
    """The configs that method auto compares, not resolved: features and finetune, with the same validation split."""
    common = dataclasses.replace(config, quality="balanced", budget=None, out=config.out or _default_out(config))
    soup = 1 if config.refit is False else (BEST_SOUP if config.quality == "best" else SOUP)
    common = _fill(common, {"val_fraction": _val_fraction(soup)})
    features = dataclasses.replace(common, method="features", augment=None)
    return features, dataclasses.replace(common, method="finetune", soup=soup)


def _val_fraction(soup: int) -> float:
    """Default fraction of the images that is held out for `soup` networks."""
    return min(round(soup * VAL_FRACTION, 2), MAX_VAL_FRACTION)


def _default_out(config: TrainConfig) -> str:
    name = Path(config.data).stem or "run"
    return f"runs/{name}" if config.method == "auto" else f"runs/{name}-{config.method}"


def _resolve_method(config: TrainConfig, where: str) -> TrainConfig:
    method = settled(config.method)
    is_landmarks = config.task == "landmarks"
    by_task = {"landmarks": LANDMARKS, "multilabel": NUMBERS, "regression": NUMBERS}
    chosen = COMMON | BY_METHOD[method] | by_task.get(str(config.task), CLASSES)
    if config.task == "regression" and method != "features":
        chosen["augment"] = "flip"  # others change sizes and colors, which the numbers may depend on
    asked, config = config, _fill(config, {name: chosen[name] for name in CLASSES})
    is_frozen_linear = method == "features" and config.head == "linear" and not _streams(config)
    is_stepped = config.lr is not None or config.epochs is not None
    if config.head == "svm" or (not is_landmarks and is_frozen_linear and (config.c_values or not is_stepped)):
        chosen["optimizer"] = "lbfgs"
    if not _start_faults(config):
        if config.optimizer is None and config.head_init != "random":
            lr, decay = FAMILY_RATES[family_of(config.backbone)]
            selects_epoch = asked.monitor is not None or asked.patience is not None
            chosen |= FROM_SOLVED_HEAD | {"lr": lr, "layer_lr_decay": decay}
            is_class = config.task == "classification"
            chosen["interpolate"] = is_class and not selects_epoch and config.batch_norm != "update"
        elif not has_norm(config.backbone):
            chosen["head_init"] = "solved"
    is_interpolated = chosen["interpolate"] if config.interpolate is None else config.interpolate
    is_averaged = is_interpolated and config.refit is not False and config.schedule != "plateau"
    config = _fill(config, {"soup": SOUP if is_averaged else 1})
    chosen["val_fraction"] = _val_fraction(settled(config.soup))
    if (config.optimizer or chosen["optimizer"]) == "lbfgs":
        del chosen["epochs"]  # this head is not trained in epochs
    head = settled(config.head)
    solver = "ridge" if config.task == "regression" and head == "linear" else head
    config = _fill(config, chosen | {"head_sizes": HEAD_SIZES[head], "c_values": C_VALUES.get(solver, ())})
    if config.bag:
        config = _fill(config, {"folds": BAG_FOLDS})
    if config.drop_epochs is None and config.epochs is not None:
        config = dataclasses.replace(config, drop_epochs=max(1, config.epochs // 3))
    if config.lr is None:
        rates = LANDMARK_LEARNING_RATES if is_landmarks else _learning_rates(config.backbone, method)
        config = dataclasses.replace(config, lr=rates.get(str(config.optimizer)))
    if not config.out:
        config = dataclasses.replace(config, out=_default_out(config))
    raise_faults([*_range_faults(config), *_image_faults(config), *_combination_faults(config)], where)
    return config


def _fill(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """Set options that are still unset."""
    return dataclasses.replace(config, **{n: value for n, value in values.items() if getattr(config, n) is None})


def settled(value: _Value | None) -> _Value:
    """The value of an option that is always set in a resolved config. Raises ValueError for None."""
    if value is None:
        raise ValueError("resolve the config first: an option has no value yet")
    return value


def can_refit(config: TrainConfig) -> bool:
    """Whether the network of a resolved config can be fitted to the validation images too: C is chosen first and then
    kept, or networks that were scored by different images are averaged, and no epoch is selected on them.
    """
    if is_solved(config):
        return not config.bag and config.views is None
    return _can_average(config) and config.soup != 1


def _can_average(config: TrainConfig) -> bool:
    return bool(config.interpolate) and config.schedule != "plateau"


def find_task(data: str) -> Kind:
    """The task of a data set: landmarks for a landmark file, several labels for a table of Roboflow in which an image
    has several, classes otherwise, also for a missing path.
    """
    if is_landmark_file(data):
        return "landmarks"
    return "multilabel" if has_several_labels(data) else "classification"


def is_solved(config: TrainConfig) -> bool:
    """Whether a resolved config's head is computed by a solver instead of trained step by step."""
    return config.head == "svm" or config.optimizer == "lbfgs"


def nearest(word: str, known: list[str]) -> str:
    """`" (nearest: 'x')"` for a misspelled word, or ''."""
    matches = get_close_matches(word, known, n=1)
    return f" (nearest: '{matches[0]}')" if matches else ""


def _streams(config: TrainConfig) -> bool:
    """Whether frozen features change each epoch because images are augmented again."""
    return config.augment not in (None, "none") and config.views is None


# Options of method auto that would not apply to both of its methods.
_ONE_METHOD_ONLY = (
    *("freeze", "unfreeze_every", "layer_lr_decay", "head_init", "batch_norm", "interpolate", "soup", "head_sizes"),
    *("dropout", "bag", "folds", "views", "epochs", "batch_size", "accumulate", "optimizer", "lr", "momentum"),
    *("weight_decay", "schedule", "warmup_epochs", "drop_epochs", "drop_factor", "clip_norm", "ema_decay"),
    *("label_smoothing", "mixup", "cutmix", "sampler", "patience", "monitor", "compile"),
)


def _auto_faults(config: TrainConfig) -> list[str]:
    """Why method auto does not apply to a config."""
    given = [name for name in _ONE_METHOD_ONLY if getattr(config, name) != getattr(TrainConfig, name)]
    rules = {
        "method auto is only for classification": config.task != "classification",
        f"method auto sets {', '.join(given)} itself: leave them out, or give another method": bool(given),
        "method auto requires head linear": config.head not in (None, "linear"),
        "method auto requires pooling gap": config.pooling != "gap",
        "method auto requires pretrained weights: give weights, or method scratch": config.weights == "none",
    }
    return [text for text, is_broken in rules.items() if is_broken]


def _budget_faults(config: TrainConfig) -> list[str]:
    is_valid = config.budget is None or parse_seconds(config.budget)
    return [] if is_valid else [f"budget must be a duration such as 90s, 10m or 2h, found '{config.budget}'"]


def _image_faults(config: TrainConfig) -> list[str]:
    faults = sequence_faults(config.sequence, for_landmarks=config.task == "landmarks")
    faults += stack_faults(parse_channels(config.channels), config.project)
    if not 255 < config.bit_depth_max <= 65535:
        faults.append(f"bit_depth_max must be 256..65535, found {config.bit_depth_max}")
    if config.image_size is not None and config.image_size > _MAX_IMAGE_SIZE:
        faults.append(f"image_size must be at most {_MAX_IMAGE_SIZE}, found {config.image_size}")
    return faults


def _range_faults(config: TrainConfig) -> list[str]:
    positive = (
        *("per_class", "image_size", "views", "epochs", "batch_size", "accumulate", "drop_epochs", "patience"),
        *("threads", "unfreeze_every", "soup"),
    )
    not_negative = ("crop_margin", "momentum", "weight_decay", "warmup_epochs", "workers", "seed", "mixup", "cutmix")
    faults = [f"{n} must be at least 1, found {v}" for n in positive if _below(v := getattr(config, n), 1)]
    faults += [f"{n} must not be negative, found {v}" for n in not_negative if _below(v := getattr(config, n), 0)]
    faults += [f"{n} must be finite, found {v}" for n in not_negative if (v := getattr(config, n)) == math.inf]
    faults += [f"seed must be below {2**32}, found {config.seed}"] * (config.seed >= 2**32)  # as numpy requires
    if config.momentum >= 1:
        faults.append(f"momentum must be below 1, found {config.momentum}")
    if config.lr not in (None, "auto") and not (isinstance(config.lr, float) and 0 < config.lr < math.inf):
        faults.append(f"lr must be a positive finite number, found {config.lr}")
    for name in ("val_fraction", "ema_decay", "drop_factor"):
        value = getattr(config, name)
        if value is not None and not 0 < value < 1:
            faults.append(f"{name} must be between 0 and 1, found {value}")
    for name in ("dropout", "label_smoothing"):
        if not 0 <= getattr(config, name) < 1:
            faults.append(f"{name} must be at least 0 and below 1, found {getattr(config, name)}")
    if not 0 < settled(config.layer_lr_decay) <= 1:
        faults.append(f"layer_lr_decay must be above 0 and at most 1, found {config.layer_lr_decay}")
    if config.clip_norm is not None and not 0 < config.clip_norm < math.inf:
        faults.append(f"clip_norm must be positive, found {config.clip_norm}")
    for name in ("head_sizes", "c_values"):
        if not all(0 < value < math.inf for value in getattr(config, name)):
            faults.append(f"{name} must be positive, found {getattr(config, name)}")
    return faults


def _combination_faults(config: TrainConfig) -> list[str]:
    frozen = config.method == "features"
    rules = {
        "method features with weights none would freeze a randomly initialized backbone: give weights": (
            frozen and config.weights == "none"
        ),
        "freeze, unfreeze_every and layer_lr_decay apply only to method finetune: features freezes the "
        "whole backbone": (
            frozen and (config.freeze != "none" or config.unfreeze_every is not None or config.layer_lr_decay != 1)
        ),
        "unfreeze_every starts with the whole backbone frozen: leave out freeze": (
            config.unfreeze_every is not None and config.freeze != "none"
        ),
        "views requires method features and an augmentation": (
            config.views is not None and (not frozen or config.augment == "none")
        ),
        "mixup and cutmix mix images and cannot be used with cached features: leave them out": (
            frozen and not _streams(config) and (config.mixup > 0 or config.cutmix > 0)
        ),
        "head svm uses its own solver: leave out optimizer": config.head == "svm" and config.optimizer != "lbfgs",
        "folds applies only with bag (to compare heads by cross-validation, use tl probe): also set bag, "
        "or leave out folds": (config.folds is not None and not config.bag),
        "bag requires a solved linear head on cached features: method features with head linear or svm, "
        "without epochs": (config.bag and not is_solved(config)),
        f"folds must be at least 2, found {config.folds}": _below(config.folds, 2),
        "unlabeled requires a logistic head that is solved: method features with head linear, without epochs, bag and "
        "views": (
            config.unlabeled is not None
            and not (is_solved(config) and config.head == "linear" and not config.bag and config.views is None)
        ),
        "refit requires a solved head (method features with head linear or svm, without epochs), without bag and "
        "views, or fine-tuning with interpolate and a soup of at least 2": (
            config.refit is True and not can_refit(config)
        ),
        "soup requires fine-tuning with interpolate, without refit off and schedule plateau": (
            config.soup != 1 and (config.refit is False or not _can_average(config))
        ),
        "interpolate requires head_init solved, and the last epoch: leave out patience": (
            bool(config.interpolate) and (config.head_init != "solved" or config.patience is not None)
        ),
        "quality and budget apply only to method auto": (
            config.budget is not None or config.quality != TrainConfig.quality
        ),
        "head conv requires head_sizes: channels, then dense layer sizes": config.head == "conv"
        and not config.head_sizes,
    }
    faults = [text for text, is_broken in rules.items() if is_broken]
    if config.head_init == "solved" and (lacking := _start_faults(config)):
        faults.append(f"head_init solved requires {', '.join(lacking)}")
    faults += task_faults(config)
    return [*faults, *_solver_faults(config)] if is_solved(config) else faults


def _start_faults(config: TrainConfig) -> list[str]:
    """Options that prevent solving the head before fine-tuning."""
    needs = {
        "classes, labels or numbers": config.task != "landmarks",
        "method finetune": config.method == "finetune",
        "head linear": config.head == "linear",
        "pooling gap": config.pooling == "gap",
        "pretrained weights": config.weights != "none",
    }
    return [need for need, is_met in needs.items() if not is_met]


def _learning_rates(backbone: str, method: str) -> dict[str, float]:
    return LEARNING_RATES[method] | ({} if has_norm(backbone) else SMALLER_LEARNING_RATES.get(method, {}))


# Options that only take effect when training by steps.
_STEPPED_ONLY = (
    *("momentum", "weight_decay", "schedule", "warmup_epochs", "drop_factor", "clip_norm", "ema_decay", "accumulate"),
    *("label_smoothing", "sampler", "patience", "compile"),
)


def _solver_faults(config: TrainConfig) -> list[str]:
    name = "head svm" if config.head == "svm" else "optimizer lbfgs"
    rules = {
        f"{name} requires method features: it works only on frozen features": config.method != "features",
        f"{name} with augmentation requires a number of views, such as views 5": (
            config.method == "features" and _streams(config)
        ),
        f"optimizer lbfgs applies only to the linear head, found head {config.head}": config.head
        not in ("linear", "svm"),
        "c_values must contain at least one value": config.head in ("linear", "svm") and not config.c_values,
    }
    faults = [text for text, is_broken in rules.items() if is_broken]
    if not faults and config.optimizer == "lbfgs" and (config.lr is not None or config.epochs is not None):
        faults.append(f"{name} has no learning rate and no epochs: leave out lr and epochs")
    ignored = [n for n in _STEPPED_ONLY if getattr(config, n) != getattr(TrainConfig, n)]
    if ignored:
        faults.append(f"{name} is solved, not trained by steps: leave out {', '.join(ignored)}, or give an optimizer")
    return faults


def _below(value: float | None, limit: float) -> bool:
    return value is not None and not value >= limit


def raise_faults(faults: list[str], where: str) -> None:
    """Raise `ConfigError` that lists all faults, if there are any."""
    if faults:
        raise ConfigError(f"{where}: " + "; ".join(faults))
