"""Every training option, defined once: flags, config files and docs are made from `TrainConfig`.

Knows names, types and defaults; `options` reads, fills and checks them. Does not know torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from tl.data import Cache

Kind = Literal["classification", "landmarks"]
Method = Literal["scratch", "features", "finetune"]
Head = Literal["linear", "mlp", "conv", "svm", "heatmap"]
PointLoss = Literal["mse", "smooth_l1", "wing"]
Crop = Literal["whole", "box", "points"]
HeadStart = Literal["random", "solved"]
Pooling = Literal["gap", "flatten"]
Optimizer = Literal["sgd", "adam", "adamw", "rmsprop", "lbfgs"]
Schedule = Literal["cosine", "constant", "onecycle", "step", "plateau"]
Monitor = Literal[
    "val_top1_accuracy",
    "val_loss",
    "val_macro_f1",
    "val_ece",
    "train_loss",
    "train_top1_accuracy",
    "val_error_px",
    "val_error_input_px",
    "train_error_input_px",
]
Sampling = Literal["shuffle", "balanced"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Log = Literal["mlflow"]


def _option(default: Any, help_text: str, panel: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text, "panel": panel})


@dataclass(frozen=True)
class TrainConfig:
    """The options of one training run. None means: chosen by `options.resolve` from the others."""

    data: str = _option(
        "",
        "Folder of class folders, train/ val/ [test/] of them, or CSV with path,label. For landmarks: CSV, TPS, COCO "
        "keypoints or DeepLabCut.",
        "Data",
    )
    task: Kind | None = _option(None, "What is learned. Default: what the data hold.", "Data")
    out: str = _option("", "Run folder to make. Default: runs/DATA-METHOD.", "Data")
    split_column: str = _option("split", "Column of the CSV that holds train, val or test.", "Data")
    val_fraction: float = _option(0.2, "Share of images held out for validation where the data has no split.", "Data")
    per_class: int | None = _option(None, "Train on only this many images of each class.", "Data")
    images: str | None = _option(
        None, "Landmarks: folder that images' names count from, if they are not beside the file.", "Data"
    )
    skip_bad: bool = _option(False, "Go on without unreadable images and list them in skipped.csv.", "Data")
    audit: bool = _option(True, "Look for leaks and other faults of the data before training (findings.csv).", "Data")
    test: bool = _option(False, "Also evaluate the test split, once, with the best checkpoint.", "Data")

    method: Method = _option(
        "finetune", "scratch: random start. features: frozen backbone. finetune: train the backbone too.", "Model"
    )
    backbone: str = _option(
        "mobilenet_v2", "A torchvision classification model, smallcnn, vgg_cnn_s, or timm:NAME.", "Model"
    )
    trunk_until: str | None = _option(None, "Cut the backbone after this layer, such as features.13.", "Model")
    weights: str | None = _option(
        None, "imagenet, none, a .pth/.safetensors file, a folder of them, or a run folder.", "Model"
    )
    freeze: str = _option(
        "none",
        "Of the backbone: none, all, half, all-but-bn, a number of stages, or names and regular expressions.",
        "Model",
    )
    unfreeze_every: int | None = _option(
        None, "Start with the head alone and thaw one more stage after each N epochs.", "Model"
    )
    pooling: Pooling = _option("gap", "How the feature map becomes a vector.", "Model")
    head: Head | None = _option(
        None,
        "What is trained on top of the backbone: linear (the default), mlp, conv or svm. Landmarks: heatmap (the "
        "default), or linear or mlp, which regress coordinates.",
        "Model",
    )
    head_sizes: tuple[int, ...] | None = _option(
        None,
        "Repeatable. Sizes of the mlp head (512, 256), channels, then sizes, of conv (32, 1024), or the channels of "
        "heatmap (64).",
        "Model",
    )
    head_init: HeadStart | None = _option(
        None,
        "Where finetune's linear head begins: solved on the frozen backbone's features (the default where that has no "
        "normalization layers), or random.",
        "Model",
    )
    dropout: float = _option(0.2, "Dropout of the mlp and conv heads.", "Model")
    c_values: tuple[float, ...] | None = _option(
        None,
        "Repeatable. C that svm (0.0001 to 0.01) and lbfgs (0.001 to 1) try on validation data.",
        "Model",
    )

    bag: bool = _option(
        False,
        "Linear heads on kept features: solve one on all but each of --folds folds and ship their mean, one linear "
        "head again.",
        "Model",
    )
    folds: int | None = _option(None, "With --bag: folds that the training images are cut into (5).", "Model")

    crop: Crop = _option(
        "whole",
        "Landmarks: look at the whole image, at its box in the data, or at the part with the annotated points.",
        "Images",
    )
    crop_margin: float = _option(0.25, "Share of the cropped part's size that is added on every side.", "Images")
    image_size: int | None = _option(None, "Side of the network's square input. Default: the backbone's own.", "Images")
    resize_mode: Literal["squash", "letterbox", "short_side"] | None = _option(
        None,
        "squash keeps everything in view (the default); letterbox pads (the default for landmarks); short_side crops "
        "the center.",
        "Images",
    )
    jpeg_scale: Literal["full", "2x"] = _option(
        "2x",
        "2x decodes large JPEGs at no less than twice the size they are resized to, several times as fast.",
        "Images",
    )
    bit_depth_max: int = _option(65535, "Largest value of 16-bit images (4095 for a 12-bit camera).", "Images")
    normalize: Literal["backbone", "dataset"] = _option(
        "backbone", "Mean and spread of colors: the backbone's own, or measured on the training images.", "Images"
    )
    augment: str | None = _option(
        None,
        "none, flip, light, standard, strong, a file that albumentations saved, or its changes by name, as in "
        "'HorizontalFlip(p=0.5) + Affine(rotate=(-10, 10), p=1)'.",
        "Images",
    )
    mirror: bool | None = _option(
        None,
        "Landmarks: also learn from mirror images. Default: where flip pairs say which points change places.",
        "Images",
    )
    flip_pairs: tuple[str, ...] | None = _option(
        None, "Landmarks: points that change places in a mirror image, as left:right. Repeatable.", "Images"
    )
    skeleton: tuple[str, ...] | None = _option(
        None, "Landmarks: points that drawings join by a line, as tip:base. Repeatable.", "Images"
    )
    views: int | None = _option(
        None, "With --method features: keep the features of this many augmented views per image.", "Images"
    )

    epochs: int | None = _option(
        None,
        "Passes over the training images; by default more for few annotated photos.",
        "Optimization",
    )
    batch_size: int | None = _option(None, "Images per step.", "Optimization")
    accumulate: int = _option(1, "Steps whose gradients are added up before the weights change.", "Optimization")
    optimizer: Optimizer | None = _option(
        None, "Optimizer; lbfgs solves a linear head on frozen features exactly.", "Optimization"
    )
    lr: float | Literal["auto"] | None = _option(
        None, "Peak learning rate, or auto to search one. Default: by method and optimizer.", "Optimization"
    )
    layer_lr_decay: float = _option(
        1.0, "Learning rate of each stage as a share of the next one's; the head has the full rate.", "Optimization"
    )
    momentum: float = _option(0.9, "Momentum of sgd (Nesterov) and rmsprop.", "Optimization")
    weight_decay: float = _option(1e-4, "L2 penalty, decoupled for adamw.", "Optimization")
    schedule: Schedule = _option("cosine", "How the learning rate goes on after the warm-up.", "Optimization")
    warmup_epochs: float = _option(1.0, "Epochs over which the learning rate rises.", "Optimization")
    drop_epochs: int | None = _option(
        None, "Schedule step: epochs between drops. plateau: epochs without a better --monitor.", "Optimization"
    )
    drop_factor: float = _option(0.1, "Schedules step and plateau: what a drop multiplies by.", "Optimization")
    clip_norm: float | None = _option(None, "Largest norm of the gradient; longer ones are scaled.", "Optimization")
    ema_decay: float | None = _option(
        None, "Keep and use an exponential moving average of the weights, such as 0.99.", "Optimization"
    )
    point_loss: PointLoss = _option(
        "wing", "Landmarks with a linear or mlp head: mse, smooth_l1 or wing, in input pixels.", "Optimization"
    )
    label_smoothing: float = _option(0.0, "Share of the target spread over all classes.", "Optimization")
    mixup: float = _option(0.0, "Alpha of mixup, such as 0.2; 0 is off.", "Optimization")
    cutmix: float = _option(0.0, "Alpha of cutmix, such as 1; 0 is off. With mixup, one is drawn.", "Optimization")
    class_weights: Literal["none", "balanced"] = _option(
        "none", "balanced: rare classes weigh more in the loss.", "Optimization"
    )
    sampler: Sampling = _option(
        "shuffle", "balanced: draw every class equally often, with replacement.", "Optimization"
    )
    patience: int | None = _option(None, "Stop after this many epochs without improvement.", "Optimization")
    monitor: Monitor | None = _option(
        None,
        "What picks the best checkpoint. Default: val_top1_accuracy, or val_error_px for landmarks.",
        "Optimization",
    )
    seed: int = _option(0, "Seed of splits, initial weights, order and augmentation.", "Optimization")

    device: str = _option("auto", "auto, cpu, cuda or cuda:N.", "Machine")
    precision: Precision = _option("auto", "Arithmetic on CUDA; auto is bf16 where it is fast. CPU: fp32.", "Machine")
    compile: bool = _option(False, "Compile the network with torch.compile.", "Machine")
    threads: int | None = _option(None, "CPU threads. Default: all usable cores.", "Machine")
    workers: int | None = _option(
        None, "Processes that augment. Default: 0 on CPU, the cores less one on CUDA.", "Machine"
    )
    log: Log | None = _option(
        None, "mlflow: write the run to MLflow too (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME).", "Machine"
    )
    cache: Cache = _option(
        "auto", "Keep resized images: ram, disk (also for later runs), none, or auto where they fit.", "Machine"
    )


# What each method fills in. Features are computed once, so epochs over them cost milliseconds.
BY_METHOD: dict[str, dict[str, Any]] = {
    "scratch": {"optimizer": "adamw", "epochs": 30, "augment": "standard", "weights": "none", "batch_size": 32},
    "features": {"optimizer": "adamw", "epochs": 40, "augment": "none", "weights": "imagenet", "batch_size": 64},
    "finetune": {"optimizer": "sgd", "epochs": 10, "augment": "standard", "weights": "imagenet", "batch_size": 32},
}
# What landmarks fill in instead. They come in dozens or hundreds, so that epochs are short; where images are few,
# `landmarks.task` adds epochs.
LANDMARKS: dict[str, Any] = {
    **{"head": "heatmap", "resize_mode": "letterbox", "optimizer": "adamw", "epochs": 60, "batch_size": 8},
    **{"augment": "standard", "monitor": "val_error_px", "head_init": "random"},
}
CLASSES: dict[str, Any] = {"head": "linear", "resize_mode": "squash", "monitor": "val_top1_accuracy"}
# Peak learning rates of landmarks for each optimizer, whatever the method.
LANDMARK_LEARNING_RATES = {"sgd": 0.005, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 3e-4}
# Peak learning rates at batch 32; larger batches may want more.
LEARNING_RATES: dict[str, dict[str, float]] = {
    "scratch": {"sgd": 0.05, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-3},
    "features": {"sgd": 0.05, "adam": 3e-3, "adamw": 3e-3, "rmsprop": 1e-3},
    "finetune": {"sgd": 0.005, "adam": 1e-4, "adamw": 1e-4, "rmsprop": 3e-5},
}
# The same for trunks without normalization layers, whose gradients grow with their activations.
SMALLER_LEARNING_RATES: dict[str, dict[str, float]] = {"scratch": {"sgd": 0.01}, "finetune": {"sgd": 0.001}}
WITHOUT_NORM = ("alexnet", "squeezenet", "vgg")
HEAD_SIZES: dict[str, tuple[int, ...]] = {
    "linear": (),
    "svm": (),
    "mlp": (512, 256),
    "conv": (32, 1024),
    "heatmap": (64,),
}
# Of a bag: as usual in cross-validation, each head sees four fifths of the training images.
BAG_FOLDS = 5
C_VALUES: dict[str, tuple[float, ...]] = {"svm": (1e-4, 1e-3, 1e-2), "linear": (1e-3, 1e-2, 1e-1, 1.0)}
