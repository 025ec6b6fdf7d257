"""Plain names of metrics, for people. Files, JSON and CSV keep the technical names of the glossary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = {
    "n": "images",
    "groups": "groups",
    "loss": "loss",
    "top1_accuracy": "top-1 accuracy",
    "top5_accuracy": "top-5 accuracy",
    "macro_f1": "macro F1",
    "ece": "calibration error",
    "ece_uncalibrated": "calibration error before scaling",
    "log_loss": "log loss",
    "ci_low": "95% from",
    "ci_high": "95% to",
    "sequences": "sequences",
    "sequence_top1_accuracy": "top-1 accuracy of sequences",
    "sequence_ci_low": "sequences, 95% from",
    "sequence_ci_high": "sequences, 95% to",
    "mcnemar_p": "p against the best member",
    "tta": "augmentation",
    "gain": "gain",
    "gain_p": "p of the gain",
    "images_per_s": "images/s",
    "map": "mean average precision",
    "micro_f1": "micro F1",
    "subset_accuracy": "all labels right",
    "hamming_loss": "wrong decisions",
    "label_accuracy": "label accuracy",
    "coverage_90": "found by sets for 90%",
    "set_size_90": "labels in these sets",
    "mae": "mean absolute error",
    "baseline_mae": "error of the training mean",
    "scaled_mae": "error, standard deviations",
    "rmse": "RMSE",
    "r2": "R2",
    "error_px": "mean error, px",
    "error_mm": "mean error, mm",
    "error_input_px": "mean error, input px",
    "median_px": "median error, px",
    "rmse_px": "RMSE, px",
    "normalized_error": "error relative to the size",
    "extent_error": "error relative to the extent",
    "best_epoch": "best epoch",
    "train_seconds": "training, s",
    "trained_parameters": "trained parameters",
    "model_mb": "model, MB",
    "latency_ms": "CPU, ms per image",
}
# Each task's main metric, the first that is among a model's scores, and whether a higher value is better.
MAIN_METRICS = {"top1_accuracy": True, "map": True, "error_px": False, "mae": False}
_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_ENDS = {"_low": "95% from", "_high": "95% to"}


def main_metric(scores: Mapping[str, Any]) -> str:
    """The name of the main metric among a model's scores. Raises ValueError if there is none."""
    for name in MAIN_METRICS:
        if name in scores:
            return name
    raise ValueError(f"no main metric among {', '.join(scores)}")


def plain_name(name: str) -> str:
    """`val_top1_accuracy` -> `validation top-1 accuracy`; names that are no metrics are returned unchanged."""
    if name in _NAMES:
        return _NAMES[name]
    for end, words in _ENDS.items():
        mean = name.removesuffix(end)
        if mean != name and (known := plain_name(mean)) != mean:
            return f"{known}, {words}"
    split, _, rest = name.partition("_")
    return f"{_SPLITS[split]} {_NAMES[rest]}" if split in _SPLITS and rest in _NAMES else name
