"""Every training option, defined once: flags, config files and docs are made from `TrainConfig`.

Knows names, types, defaults and limits. Does not know torch; `train` turns a config into plain arguments.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from tl.errors import ConfigError, MissingExtraError

Method = Literal["scratch", "features", "finetune"]
Head = Literal["linear", "mlp"]
Pooling = Literal["gap", "flatten"]
Optimizer = Literal["sgd", "adam", "adamw", "rmsprop"]
Schedule = Literal["cosine", "constant"]
Monitor = Literal["val_top1_accuracy", "val_loss"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Cache = Literal["auto", "ram", "none"]


def _option(default: Any, help_text: str, panel: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text, "panel": panel})


@dataclass(frozen=True)
class TrainConfig:
    """The options of one training run. None means: chosen by `resolve` from the method and the optimiser."""

    data: str = _option("", "Folder of class folders, train/ val/ [test/] of them, or CSV with path,label.", "Data")
    out: str = _option("", "Run folder to make. Default: runs/DATA-METHOD.", "Data")
    split_column: str = _option("split", "Column of the CSV that holds train, val or test.", "Data")
    val_fraction: float = _option(0.2, "Share of pictures held out for validation where the data has no split.", "Data")
    skip_bad: bool = _option(False, "Go on without unreadable pictures and list them in skipped.csv.", "Data")
    test: bool = _option(False, "Also evaluate the test split, once, with the best checkpoint.", "Data")

    method: Method = _option(
        "finetune", "scratch: random start. features: frozen backbone. finetune: train everything.", "Model"
    )
    backbone: str = _option("mobilenet_v2", "Any torchvision classification model, or smallcnn.", "Model")
    weights: str | None = _option(
        None, "imagenet, none, a .pth/.safetensors file, a folder of them, or a run folder.", "Model"
    )
    pooling: Pooling = _option("gap", "How the feature map becomes a vector.", "Model")
    head: Head = _option("linear", "What is trained on top of the backbone.", "Model")
    head_sizes: tuple[int, ...] = _option((512, 256), "Hidden sizes of the mlp head.", "Model")
    dropout: float = _option(0.2, "Dropout of the mlp head.", "Model")

    image_size: int | None = _option(
        None, "Side of the network's square input. Default: the backbone's own.", "Pictures"
    )
    resize_mode: Literal["squash", "letterbox", "short_side"] = _option(
        "squash", "squash keeps everything in view; letterbox pads; short_side crops the centre.", "Pictures"
    )
    bit_depth_max: int = _option(65535, "Largest value of 16-bit pictures (4095 for a 12-bit camera).", "Pictures")
    augment: str | None = _option(
        None, "none, flip, light, standard, strong, or a file that albumentations saved.", "Pictures"
    )

    epochs: int | None = _option(None, "Passes over the training pictures.", "Optimisation")
    batch_size: int = _option(32, "Pictures a step.", "Optimisation")
    optimizer: Optimizer | None = _option(None, "Optimiser.", "Optimisation")
    lr: float | None = _option(None, "Peak learning rate. Default: by method and optimiser.", "Optimisation")
    momentum: float = _option(0.9, "Momentum of sgd (Nesterov) and rmsprop.", "Optimisation")
    weight_decay: float = _option(1e-4, "L2 penalty, decoupled for adamw.", "Optimisation")
    schedule: Schedule = _option("cosine", "How the learning rate goes on after the warm-up.", "Optimisation")
    warmup_epochs: float = _option(1.0, "Epochs over which the learning rate rises.", "Optimisation")
    label_smoothing: float = _option(0.0, "Share of the target spread over all classes.", "Optimisation")
    patience: int | None = _option(None, "Stop after this many epochs without improvement.", "Optimisation")
    monitor: Monitor = _option("val_top1_accuracy", "What picks the best checkpoint.", "Optimisation")
    seed: int = _option(0, "Seed of splits, initial weights, order and augmentation.", "Optimisation")

    device: str = _option("auto", "auto, cpu, cuda or cuda:N.", "Machine")
    precision: Precision = _option("auto", "Arithmetic on CUDA; auto is bf16 where it is fast. CPU: fp32.", "Machine")
    threads: int | None = _option(None, "CPU threads. Default: all usable cores.", "Machine")
    workers: int | None = _option(
        None, "Processes that augment. Default: 0 on CPU, the cores less one on CUDA.", "Machine"
    )
    cache: Cache = _option("auto", "Keep resized pictures in memory: ram, none, or auto where they fit.", "Machine")


# Optimiser, epochs and augmentation by method; features see each picture once, so epochs cost milliseconds.
_BY_METHOD: dict[str, dict[str, Any]] = {
    "scratch": {"optimizer": "adamw", "epochs": 30, "augment": "standard", "weights": "none"},
    "features": {"optimizer": "adamw", "epochs": 40, "augment": "none", "weights": "imagenet"},
    "finetune": {"optimizer": "sgd", "epochs": 10, "augment": "standard", "weights": "imagenet"},
}
# Peak learning rates at batch 32; larger batches may want more.
_LEARNING_RATES: dict[str, dict[str, float]] = {
    "scratch": {"sgd": 0.05, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-3},
    "features": {"sgd": 0.05, "adam": 3e-3, "adamw": 3e-3, "rmsprop": 1e-3},
    "finetune": {"sgd": 0.005, "adam": 1e-4, "adamw": 1e-4, "rmsprop": 3e-5},
}


def resolve(config: TrainConfig) -> TrainConfig:
    """Fill what was left open and check every value. Raises `ConfigError` with all faults."""
    known_method = config.method if config.method in _BY_METHOD else "finetune"
    chosen = {name: value for name, value in _BY_METHOD[known_method].items() if getattr(config, name) is None}
    config = dataclasses.replace(config, **chosen)
    if config.lr is None:
        config = dataclasses.replace(config, lr=_LEARNING_RATES[known_method].get(str(config.optimizer)))
    if not config.out:
        config = dataclasses.replace(config, out=f"runs/{Path(config.data).stem or 'run'}-{config.method}")
    _raise_faults(_value_faults(config), "options")
    return config


def config_from_mapping(values: Mapping[str, Any], where: str) -> TrainConfig:
    """A config from parsed YAML or flags. Raises `ConfigError` naming each unknown key, wrong type and their cure."""
    try:
        from pydantic import TypeAdapter, ValidationError
    except ImportError as error:  # pydantic comes with albumentations
        raise MissingExtraError("training needs more packages: pip install 'tl-toolkit[train]'") from error
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    faults = [_unknown_fault(key, names) for key in values if key not in names]
    try:
        plain = {key: value for key, value in values.items() if key in names}
        config = TypeAdapter(TrainConfig).validate_python(plain)
    except ValidationError as error:
        faults += [_type_fault(fault) for fault in error.errors()]
        _raise_faults(faults, where)
        raise
    _raise_faults(faults, where)
    return config


def load_config(path: str | Path) -> dict[str, Any]:
    """Read a YAML config file into a mapping. Raises `ConfigError`."""
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("config files need more packages: pip install 'tl-toolkit[train]'") from error
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'option: value' lines")
    return values


def dump_config(config: TrainConfig) -> str:
    """The config as YAML text that `load_config` reads back."""
    import yaml

    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(config).items()}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def nearest(word: str, known: list[str]) -> str:
    """`" (nearest: 'x')"` for a misspelt word, or ''."""
    matches = get_close_matches(word, known, n=1)
    return f" (nearest: '{matches[0]}')" if matches else ""


def _value_faults(config: TrainConfig) -> list[str]:
    positive = ("epochs", "batch_size", "image_size", "threads", "patience")
    faults = [
        f"{name} must be at least 1, found {value}" for name in positive if _below(value := getattr(config, name), 1)
    ]
    not_negative = ("momentum", "weight_decay", "warmup_epochs", "workers", "seed")
    faults += [
        f"{name} must not be negative, found {value}"
        for name in not_negative
        if _below(value := getattr(config, name), 0)
    ]
    if config.lr is None or not 0 < config.lr < math.inf:
        faults.append(f"lr must be a positive finite number, found {config.lr}")
    if not 0 < config.val_fraction < 1:
        faults.append(f"val_fraction must be between 0 and 1, found {config.val_fraction}")
    for name in ("dropout", "label_smoothing"):
        if not 0 <= getattr(config, name) < 1:
            faults.append(f"{name} must be at least 0 and below 1, found {getattr(config, name)}")
    if not 255 < config.bit_depth_max <= 65535:
        faults.append(f"bit_depth_max must be 256..65535, found {config.bit_depth_max}")
    if any(size < 1 for size in config.head_sizes):
        faults.append(f"head_sizes must be positive, found {config.head_sizes}")
    if config.method == "features" and config.weights == "none":
        faults.append("method features with weights none would freeze random numbers: give weights")
    return faults


def _below(value: float | None, limit: float) -> bool:
    return value is not None and not value >= limit


def _unknown_fault(key: object, names: list[str]) -> str:
    return f"unknown option '{key}'{nearest(str(key), names)}"


def _type_fault(fault: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    return f"{place}: {fault['msg'][0].lower()}{fault['msg'][1:]}, found {fault['input']!r}"


def _raise_faults(faults: list[str], where: str) -> None:
    if faults:
        raise ConfigError(f"{where}: " + "; ".join(faults))
