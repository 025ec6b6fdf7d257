"""Default values of training options by task, method, optimizer and backbone. `options` applies them."""

from __future__ import annotations

from typing import Any

# Defaults that fine-tuning from a solved head changes.
COMMON: dict[str, Any] = {
    **{"head_init": "random", "batch_norm": "update", "interpolate": False, "layer_lr_decay": 1.0},
}
# Defaults for each method. Features are computed once, so epochs over them take milliseconds.
BY_METHOD: dict[str, dict[str, Any]] = {
    "scratch": {"optimizer": "adamw", "epochs": 30, "augment": "standard", "weights": "none", "batch_size": 32},
    "features": {"optimizer": "adamw", "epochs": 40, "augment": "none", "weights": "imagenet", "batch_size": 64},
    "finetune": {"optimizer": "sgd", "epochs": 10, "augment": "standard", "weights": "imagenet", "batch_size": 32},
}
# Fine-tuning that starts from a solved head, where no optimizer is given. For few images, `task` adds epochs.
FROM_SOLVED_HEAD: dict[str, Any] = {
    **{"optimizer": "adamw", "epochs": 7, "batch_size": 8, "head_init": "solved", "batch_norm": "fixed"},
}
# Such fine-tuning by the backbone's family: peak learning rate of AdamW, and layer decay. docs/explanation/defaults.md
# has the sources and measurements.
FAMILY_RATES: dict[str, tuple[float, float]] = {
    "efficientnet lite": (2e-4, 1.0),
    "batch norm": (7e-5, 1.0),
    "layer norm": (7e-5, 0.8),
    "transformer": (3e-5, 0.75),
    "no normalization": (7e-5, 1.0),
}
# Fraction of the images that scores a network; networks that are averaged, and their number with --quality best.
VAL_FRACTION, SOUP, BEST_SOUP = 0.2, 2, 3
# Several averaged networks hold out no more than this fraction together.
MAX_VAL_FRACTION = 0.8
# Few images get more epochs, up to MAX_EPOCHS, to reach this number of steps.
MIN_STEPS, MAX_EPOCHS = 240, 12
# Defaults for landmarks. Landmark data sets have dozens or hundreds of images, so epochs are short; for few images,
# `landmarks.task` adds epochs.
LANDMARKS: dict[str, Any] = {
    **{"head": "heatmap", "resize_mode": "letterbox", "optimizer": "adamw", "epochs": 60, "batch_size": 8},
    **{"augment": "standard", "monitor": "val_error_px", "head_init": "random", "crop_margin": 0.25},
}
CLASSES: dict[str, Any] = {
    **{"head": "linear", "resize_mode": "squash", "monitor": "val_top1_accuracy", "crop_margin": 0.1},
}
# Regression and multilabel select the epoch by their loss and average no networks.
NUMBERS: dict[str, Any] = CLASSES | {"monitor": "val_loss", "interpolate": False}
# Peak learning rates for landmarks by optimizer, for every method.
LANDMARK_LEARNING_RATES = {"sgd": 0.005, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 3e-4}
# Peak learning rates at batch size 32; larger batches may need higher rates.
LEARNING_RATES: dict[str, dict[str, float]] = {
    "scratch": {"sgd": 0.05, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-3},
    "features": {"sgd": 0.05, "adam": 3e-3, "adamw": 3e-3, "rmsprop": 1e-3},
    "finetune": {"sgd": 0.005, "adam": 1e-4, "adamw": 1e-4, "rmsprop": 3e-5},
}
# Overrides for trunks without normalization layers, whose gradients grow with their activations.
SMALLER_LEARNING_RATES: dict[str, dict[str, float]] = {"scratch": {"sgd": 0.01}, "finetune": {"sgd": 0.001}}
HEAD_SIZES: dict[str, tuple[int, ...]] = {
    "linear": (),
    "svm": (),
    "mlp": (512, 256),
    "conv": (32, 1024),
    "heatmap": (64,),
}
# Folds for bagging. As is usual in cross-validation, each head is fitted to four fifths of the training images.
BAG_FOLDS = 5
# For features scaled as in `heads.solvers`. benchmarks/RESULTS.md, "Solved heads", has the scores by scaling and C.
C_VALUES: dict[str, tuple[float, ...]] = {
    "svm": (1e-4, 1e-3, 1e-2),
    "linear": (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
    "ridge": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
}
# Folds that choose C for a solved head.
SOLVER_FOLDS = 5
# Images without labels that self-training uses: more cost time and change little.
MOST_UNLABELED = 4000
