"""Define every training option once. Flags, config files and docs are generated from `TrainConfig`.

Contains names, types and defaults; `options` reads, resolves and validates them. Never imports torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from tl.data import Cache
from tl.trainer.models.backbone_info import BUNDLED

Kind = Literal["classification", "multilabel", "regression", "landmarks"]
Method = Literal["auto", "scratch", "features", "finetune"]
Head = Literal["linear", "mlp", "conv", "svm", "heatmap"]
PointLoss = Literal["mse", "smooth_l1", "wing"]
NumberLoss = Literal["mse", "smooth_l1", "quantile"]
Crop = Literal["whole", "box", "points"]
HeadStart = Literal["random", "solved"]
BatchNorm = Literal["fixed", "update"]
Quality = Literal["fast", "balanced", "best"]
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
    "val_scaled_mae",
    "train_scaled_mae",
]
Sampling = Literal["shuffle", "balanced"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Log = Literal["mlflow"]
# Names of augmentations, defined in `fit.augment`.
PRESETS = ("none", "flip", "light", "standard", "strong")


def _option(default: Any, help_text: str, panel: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text, "panel": panel})


@dataclass(frozen=True)
class TrainConfig:
    """Options of one training run. `options.resolve` derives each None from the other options."""

    data: str = _option(
        "",
        "Folder of class folders, or of train/, val/ and optional test/ folders that hold them, or CSV with "
        "path,label. For landmarks: CSV, TPS, COCO keypoints or DeepLabCut.",
        "Data",
    )
    task: Kind | None = _option(
        None,
        "Task to train for: classification, multilabel (several labels an image), regression (numbers) or landmarks. "
        "Default: inferred from the data and --target.",
        "Data",
    )
    out: str = _option("", "Run folder to create. Default: runs/DATA, or runs/DATA-METHOD with a method.", "Data")
    split_column: str = _option("split", "CSV column that holds train, val or test.", "Data")
    path_column: str | None = _option(None, "CSV column that holds the images' paths, if not called path.", "Data")
    label_column: str | None = _option(None, "CSV column that holds the labels, if not called label.", "Data")
    val_fraction: float | None = _option(
        None,
        "Fraction of images held out for validation if the data has no split. Default: 0.2, or 0.2 for each of several "
        "networks that are averaged (--soup).",
        "Data",
    )
    per_class: int | None = _option(None, "Train on only this many images per class.", "Data")
    unlabeled: str | None = _option(
        None,
        "Folder of more images, without labels: a solved head is fitted again, also to its own answers for the 90% of "
        "them that it is most certain of (self-training). Requires --method features.",
        "Data",
    )
    images: str | None = _option(
        None, "CSV and landmark files: folder that the images' paths are relative to, if not the file's own.", "Data"
    )
    target: tuple[str, ...] | None = _option(
        None,
        "CSV column to predict: numbers, or for multilabel 1, 0 or empty (unknown). Repeatable. Default: the label.",
        "Data",
    )
    unit: tuple[str, ...] | None = _option(
        None, "Regression: unit of each target, such as mm. Repeatable, in the order of --target.", "Data"
    )
    sequence: str | None = _option(
        None,
        "Keep images of one subject in one split: a column of the CSV, or exif:30s for photos of one camera taken at "
        "most 30 s apart.",
        "Data",
    )
    taxonomy: str | None = _option(
        None,
        "CSV with class,genus,family,... (most special first), or names if the class names are lineages A;B;C: also "
        "score each rank, and export it.",
        "Data",
    )
    boxes: str | None = _option(
        None,
        "Classes: boxes around the objects, to train on these instead of whole images: MegaDetector's JSON, COCO JSON, "
        "or CSV with path,box_x,box_y,box_w,box_h[,label].",
        "Boxes",
    )
    min_box_confidence: float | None = _option(
        None, "Leave out boxes whose detector confidence is lower. Default: 0.2.", "Boxes"
    )
    box_categories: tuple[str, ...] | None = _option(
        None, "Category of boxes to use. Repeatable. Default: animal if the file has it, else all.", "Boxes"
    )
    box_labels: Literal["auto", "image", "box"] = _option(
        "auto", "Label of a box: that of its image, or its own; auto uses its own if the file has labels.", "Boxes"
    )
    crop_square: bool = _option(True, "Classes: extend boxes to squares, so that objects are not stretched.", "Boxes")
    skip_bad: bool = _option(False, "Skip unreadable images and list them in skipped.csv.", "Data")
    audit: bool = _option(True, "Check the data for leaks and other problems before training (findings.csv).", "Data")
    test: bool = _option(False, "Also evaluate the best checkpoint on the test split, once.", "Data")

    method: Method | None = _option(
        None,
        "auto (default): solve a head on features of the frozen backbone, fine-tune the backbone too, and keep the "
        "better one on held-out images. features, finetune: only that one. scratch: random initialization. Default "
        "for landmarks and with options that auto sets itself, such as the learning rate: finetune; for multilabel "
        "and regression: features.",
        "Model",
    )
    quality: Quality = _option(
        "balanced",
        "Method auto: fast solves the head only; best averages three fine-tuned networks instead of two.",
        "Model",
    )
    budget: str | None = _option(
        None, "Method auto: time limit, such as 90s, 10m or 2h. Fine-tuning is shortened to fit.", "Model"
    )
    backbone: str = _option(
        BUNDLED,
        "efficientnet_lite0 (its ImageNet weights are installed with tl), any torchvision classification model, "
        "smallcnn, vgg_cnn_s, or timm:NAME.",
        "Model",
    )
    trunk_until: str | None = _option(None, "Cut the backbone after this layer, such as features.13.", "Model")
    weights: str | None = _option(
        None, "imagenet, none, a .pth/.safetensors file, a folder of such files, or a run folder.", "Model"
    )
    freeze: str = _option(
        "none",
        "Part of the backbone to freeze: none, all, half, all-but-bn, a number of stages, or names and regular "
        "expressions.",
        "Model",
    )
    unfreeze_every: int | None = _option(
        None, "Start by training only the head, and unfreeze one more stage every N epochs.", "Model"
    )
    pooling: Pooling = _option("gap", "How to reduce the feature map to a vector.", "Model")
    head: Head | None = _option(
        None,
        "Head to train on top of the backbone: linear (default), mlp, conv or svm. For landmarks: heatmap (default), "
        "or linear or mlp, which regress coordinates.",
        "Model",
    )
    head_sizes: tuple[int, ...] | None = _option(
        None,
        "Layer sizes of the mlp head (512, 256), channels followed by layer sizes of conv (32, 1024), or channels of "
        "heatmap (64). Repeatable.",
        "Model",
    )
    head_init: HeadStart | None = _option(
        None,
        "Initialization of finetune's linear head: solved on the frozen backbone's features (default unless an "
        "optimizer is given), or random.",
        "Model",
    )
    batch_norm: BatchNorm | None = _option(
        None,
        "Batch-norm statistics in fine-tuning: fixed at pretrained values (default with a solved head) or update.",
        "Model",
    )
    interpolate: bool | None = _option(
        None,
        "After fine-tuning, use the weights on the line between the initial and the final ones that have the lowest "
        "loss on validation images. Default: on with a solved head and fixed batch norm, unless --monitor or "
        "--patience selects an epoch.",
        "Model",
    )
    dropout: float = _option(0.2, "Dropout rate of the mlp and conv heads.", "Model")
    c_values: tuple[float, ...] | None = _option(
        None,
        "Values of C to try, for svm (0.0001 to 0.01), lbfgs (0.0001 to 10), and ridge regression (0.00001 to "
        "100), where C is 1 / alpha. Repeatable.",
        "Model",
    )
    refit: bool | None = _option(
        None,
        "Fit the final network to the training and validation images, and report scores of held-out images. Solved "
        "heads are scored out of fold, on the images of the data's own validation split if it has one; fine-tuned "
        "networks as --soup says. Default: yes for a head that is solved or "
        "starts from a solved one, unless the data has its own validation split.",
        "Model",
    )
    soup: int | None = _option(
        None,
        "With --refit and --interpolate: number of networks to train and average. Each is trained on all images except "
        "another part of the validation images, which scores it. Default: 2, or 3 with --quality best.",
        "Model",
    )

    bag: bool = _option(
        False,
        "Bagging for linear heads on cached features: fit one head per fold, on all the other folds (--folds), and "
        "export their mean, which is a single linear head.",
        "Model",
    )
    folds: int | None = _option(
        None, "With --bag: number of folds that the training images are split into (5).", "Model"
    )

    crop: Crop = _option(
        "whole",
        "Landmarks: region to use: the whole image, its box from the data, or the part with the annotated points.",
        "Images",
    )
    crop_margin: float | None = _option(
        None,
        "Margin added on every side of a cropped region or a box, as a fraction of its size. Default: 0.25 for "
        "landmarks, 0.1 for boxes of classes.",
        "Images",
    )
    image_size: int | None = _option(
        None, "Side of the network's square input in pixels. Default: the backbone's own.", "Images"
    )
    resize_mode: Literal["squash", "letterbox", "short_side"] | None = _option(
        None,
        "squash stretches the whole image to the input (default); letterbox pads (default for landmarks); short_side "
        "crops the center.",
        "Images",
    )
    jpeg_scale: Literal["full", "2x"] = _option(
        "2x",
        "2x decodes large JPEGs at reduced size, but at least twice the target size, and is several times as fast.",
        "Images",
    )
    channels: str | None = _option(
        None,
        "Channels of each file to use, by number from 0 or by name, as in 0,2,4 or DAPI,GFP. Up to three become an RGB "
        "image. The pages of a plain TIFF are its channels. Default: gray or color as the file says.",
        "Images",
    )
    project: str | None = _option(
        None,
        "Page or z plane of a TIFF stack to use: its number from 0, or max or mean over all of them.",
        "Images",
    )
    bit_depth_max: int = _option(65535, "Largest pixel value of 16-bit images (4095 for a 12-bit camera).", "Images")
    normalize: Literal["backbone", "dataset"] = _option(
        "backbone",
        "Mean and standard deviation of the color channels: the backbone's own, or measured on the training images.",
        "Images",
    )
    augment: str | None = _option(
        None,
        "none, flip, light, standard, strong, a file saved by albumentations, or a list of its transforms, as in "
        "'HorizontalFlip(p=0.5) + Affine(rotate=(-10, 10), p=1)'.",
        "Images",
    )
    mirror: bool | None = _option(
        None,
        "Landmarks: also train on mirrored images. Default: on if flip pairs define which points swap.",
        "Images",
    )
    flip_pairs: tuple[str, ...] | None = _option(
        None, "Landmarks: points that swap in a mirrored image, as left:right. Repeatable.", "Images"
    )
    skeleton: tuple[str, ...] | None = _option(
        None, "Landmarks: points to connect by a line in drawings, as tip:base. Repeatable.", "Images"
    )
    views: int | None = _option(
        None, "With --method features: number of augmented views per image whose features are cached.", "Images"
    )

    epochs: int | None = _option(
        None,
        "Passes over the training images. By default, more for landmark data with few images.",
        "Optimization",
    )
    batch_size: int | None = _option(None, "Images per batch.", "Optimization")
    accumulate: int = _option(
        1, "Number of batches whose gradients are accumulated for each weight update.", "Optimization"
    )
    optimizer: Optimizer | None = _option(
        None,
        "Optimizer; lbfgs solves a linear head on frozen features exactly: logistic regression, or ridge regression of "
        "numbers.",
        "Optimization",
    )
    lr: float | Literal["auto"] | None = _option(
        None,
        "Peak learning rate, or auto to search for one. Default: depends on the method and optimizer.",
        "Optimization",
    )
    layer_lr_decay: float | None = _option(
        None,
        "Ratio of each stage's learning rate to that of the next stage. The head uses the full rate. Default: 1, or as "
        "suits the backbone's family in fine-tuning from a solved head.",
        "Optimization",
    )
    momentum: float = _option(0.9, "Momentum of sgd (Nesterov) and rmsprop.", "Optimization")
    weight_decay: float = _option(1e-4, "L2 penalty, decoupled for adamw.", "Optimization")
    schedule: Schedule = _option("cosine", "Learning rate schedule after the warmup.", "Optimization")
    warmup_epochs: float = _option(1.0, "Epochs over which the learning rate increases to its peak.", "Optimization")
    drop_epochs: int | None = _option(
        None,
        "Schedule step: epochs between drops. plateau: epochs without improvement of --monitor before a drop.",
        "Optimization",
    )
    drop_factor: float = _option(
        0.1, "Schedules step and plateau: factor that multiplies the learning rate at each drop.", "Optimization"
    )
    clip_norm: float | None = _option(
        None, "Maximum gradient norm. Larger gradients are scaled down to it.", "Optimization"
    )
    ema_decay: float | None = _option(
        None,
        "Maintain and use an exponential moving average of the weights with this decay, such as 0.99.",
        "Optimization",
    )
    point_loss: PointLoss = _option(
        "wing", "Landmarks with a linear or mlp head: mse, smooth_l1 or wing loss, in input pixels.", "Optimization"
    )
    number_loss: NumberLoss = _option(
        "mse",
        "Regression by steps: mse, smooth_l1 or quantile loss, in standard deviations of the target.",
        "Optimization",
    )
    quantile: float = _option(
        0.5, "With --number-loss quantile: the quantile to predict, 0.5 for the median.", "Optimization"
    )
    label_smoothing: float = _option(0.0, "Fraction of the target that is spread over all classes.", "Optimization")
    mixup: float = _option(0.0, "Alpha of mixup, such as 0.2; 0 turns it off.", "Optimization")
    cutmix: float = _option(
        0.0,
        "Alpha of cutmix, such as 1; 0 turns it off. If mixup is on too, one of the two is chosen at random.",
        "Optimization",
    )
    class_weights: Literal["none", "balanced"] = _option(
        "none", "balanced: give rare classes more weight in the loss.", "Optimization"
    )
    sampler: Sampling = _option(
        "shuffle", "balanced: draw every class equally often, with replacement.", "Optimization"
    )
    patience: int | None = _option(None, "Stop after this many epochs without improvement.", "Optimization")
    monitor: Monitor | None = _option(
        None,
        "Metric that selects the best checkpoint. Default: val_top1_accuracy, or val_error_px for landmarks.",
        "Optimization",
    )
    seed: int = _option(0, "Random seed for splits, initial weights, image order and augmentation.", "Optimization")

    device: str = _option("auto", "auto (CUDA or the CPU), cpu, cuda, cuda:N or mps.", "Machine")
    precision: Precision = _option(
        "auto", "Precision on CUDA; auto uses bf16 where it is fast. The CPU uses fp32.", "Machine"
    )
    compile: bool = _option(False, "Compile the network with torch.compile.", "Machine")
    threads: int | None = _option(None, "CPU threads. Default: all usable cores.", "Machine")
    workers: int | None = _option(
        None, "Number of augmentation processes. Default: 0 on CPU, the number of cores minus 1 on CUDA.", "Machine"
    )
    log: Log | None = _option(
        None, "mlflow: also log the run to MLflow (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME).", "Machine"
    )
    cache: Cache = _option(
        "auto",
        "Where to cache resized images: ram, disk (reused by later runs), none, or auto (wherever they fit).",
        "Machine",
    )
