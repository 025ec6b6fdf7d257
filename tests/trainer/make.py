"""Small real data sets, configs and listeners for the tests of the trainer and exporter."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from tl.data import images as image_module
from tl.data.images import ImageStore, load_images
from tl.data.manifests import LabeledImage
from tl.errors import RunInterrupted
from tl.progress import Progress, Silent
from tl.trainer.config import TrainConfig
from tl.trainer.fit.loop import EpochRow, FitOptions
from tl.trainer.fit.steps import Classification, TrainableModel
from tl.trainer.models.freezing import ParameterGroup
from tl.trainer.run_folder.run import Run
from tl.trainer.train import TrainResult, train

COLOR_RGB = {"blue": (40, 60, 190), "green": (40, 170, 60), "red": (200, 50, 40)}
TIMING = ("seconds", "images_per_s")
NOT_TIMED = (
    *("epoch", "lr", "train_loss", "train_top1_accuracy"),
    *("val_loss", "val_top1_accuracy", "val_macro_f1", "val_ece"),
)


def make_noise(seed: int, rgb: tuple[int, int, int] = (128, 128, 128), hw: tuple[int, int] = (20, 20)) -> NDArray[Any]:
    """A color with noise of +-40, uint8 (H, W, 3)."""
    noise = np.random.default_rng(seed).integers(-40, 41, (*hw, 3))
    return np.clip(np.array(rgb) + noise, 0, 255).astype(np.uint8)


def make_png(path: Path, image: NDArray[Any]) -> Path:
    """Write an array as PNG, and create its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def make_class_folders(
    root: Path, per_class: int = 6, classes: Iterable[str] = COLOR_RGB, hw: tuple[int, int] = (20, 20)
) -> Path:
    """ROOT/CLASS/N.png: noisy squares of each class's color."""
    for c, name in enumerate(classes):
        for i in range(per_class):
            make_png(root / name / f"{i}.png", make_noise(100 * c + i, COLOR_RGB.get(name, (128, 128, 128)), hw))
    return root


def make_stripes(root: Path, per_class: int = 60) -> Path:
    """ROOT/ab/N.png: noise with vertical or horizontal waves, which a network trained on colors hardly sees."""
    rows, columns = np.mgrid[:20, :20]
    for c, across in enumerate((columns, rows)):
        for i in range(per_class):
            rng = np.random.default_rng(1000 * c + i)
            wave = 20 * np.sin(2 * np.pi * (across / 12 + rng.uniform()))
            image = 128 + wave[:, :, None] + rng.normal(0, 60, (20, 20, 3))
            make_png(root / "ab"[c] / f"{i}.png", np.clip(image, 0, 255).astype(np.uint8))
    return root


def make_manifest(path: Path, rows: Sequence[Sequence[str]], columns: Sequence[str] = ("path", "label")) -> Path:
    """A CSV manifest, and an empty file for every path that does not exist yet."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    for row in rows:
        if row[0]:
            (path.parent / row[0]).parent.mkdir(parents=True, exist_ok=True)
            (path.parent / row[0]).touch()
    return path


def make_images(labels: Sequence[str], split: str = "", groups: Sequence[str] | None = None) -> list[LabeledImage]:
    """Images that are names only."""
    groups = groups or [""] * len(labels)
    return [LabeledImage(f"/x/{i}.png", f"{i}.png", label, split, groups[i]) for i, label in enumerate(labels)]


def make_store(root: Path, preprocessing: Any, split: str = "train", cache: Any = "ram") -> ImageStore:
    """All images under ROOT/CLASS/ in one split, loaded."""
    paths = sorted(root.rglob("*.png"))
    images = [LabeledImage(str(p), p.relative_to(root).as_posix(), p.parent.name, split) for p in paths]
    store, bad = load_images(images, preprocessing, cache, Silent())
    if bad:
        raise ValueError(f"bad test images: {bad}")
    return store


def make_config(data: Path, out: Path, **changes: Any) -> TrainConfig:
    """A run that takes about a second: smallcnn at 32 px from scratch, two epochs, one thread."""
    values: dict[str, Any] = {
        "method": "scratch",
        "backbone": "smallcnn",
        "image_size": 32,
        "epochs": 2,
        "batch_size": 4,
        "augment": "none",
        "device": "cpu",
        "threads": 1,
        "workers": 0,
    }
    values |= changes
    head, augment = values.get("head", "linear"), values["augment"]
    is_frozen = values["method"] == "features" and (augment == "none" or values.get("views"))
    if head == "svm" or (head == "linear" and is_frozen and "optimizer" not in changes):
        values["epochs"] = changes.get("epochs")  # solved in one go
    return TrainConfig(data=str(data), out=str(out), **values)


def make_fit_options(**changes: Any) -> FitOptions:
    """Five epochs of adamw without early stopping or other shortcuts."""
    plain = FitOptions(
        epochs=5,
        optimizer="adamw",
        lr=0.05,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="cosine",
        warmup_epochs=1.0,
        drop_epochs=2,
        drop_factor=0.1,
        accumulate=1,
        clip_norm=None,
        ema_decay=None,
        patience=None,
        monitor="val_top1_accuracy",
        seed=3,
        compile=False,
    )
    return dataclasses.replace(plain, **changes)


def make_clouds(count: int) -> tuple[Tensor, Tensor]:
    """Two overlapping clouds (N, 4), alternating, and the cloud of each point int64 (N,)."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(count) % 2
    return torch.randn(count, 4, generator=generator) + 1.5 * ids[:, None], ids


def make_row(
    epoch: int, train: Sequence[float] = (1.0, 0.5), val: Sequence[float] = (1.0, 0.5), **more: float
) -> EpochRow:
    """A row of a classifier's history: losses and accuracies of training and validation; `more` are other columns."""
    names = ("train_loss", "train_top1_accuracy", "val_loss", "val_top1_accuracy")
    timing = {"lr": 0.1, "seconds": 1.0, "images_per_s": 10.0}
    timing |= {name: more.pop(name) for name in timing if name in more}
    return EpochRow(epoch, **timing, figures={**dict(zip(names, (*train, *val), strict=True)), **more})


def make_trainable(
    module: nn.Module,
    class_names: Sequence[str] = ("a", "b"),
    *,
    factor: float = 1.0,
    smoothing: float = 0.0,
    **more: Any,
) -> TrainableModel:
    """A whole module trained to classify, with `factor` times the learning rate."""
    groups = [ParameterGroup(tuple(module.parameters()), factor)]
    return TrainableModel(module, groups, Classification(class_names, label_smoothing=smoothing), **more)


def timeless(history: Iterable[EpochRow]) -> list[tuple[Any, ...]]:
    """History rows without their timing."""
    return [tuple(value for name, value in row.columns().items() if name not in TIMING) for row in history]


def read_rows(path: Path) -> list[dict[str, str]]:
    """A CSV file's rows."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def timeless_file(path: Path) -> list[tuple[str, ...]]:
    """The rows of a `history.csv` without their timing."""
    return [tuple(value for name, value in row.items() if name not in TIMING) for row in read_rows(path)]


def weights_of(run: Run) -> dict[str, Tensor]:
    return load_file(run.best_path)


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def train_here(photos: Path, out: Path, **changes: Any) -> TrainResult:
    return train(make_config(photos, out, **changes), Silent())


def stop_and_resume(photos: Path, out: Path, stops: Progress, **changes: Any) -> Run:
    """A run that `stops` interrupts, taken up again and finished."""
    with pytest.raises(RunInterrupted, match=f"{out.name}: interrupted"):
        train(make_config(photos, out, **changes), stops)
    run = Run(out)
    train(run.load_config(), Silent(), resume=run)
    return run


def assert_same_run(left: Run, right: Run) -> None:
    """Check equal weights and files, except for times, paths and TensorBoard events."""
    names = [{path.name for path in run.folder.iterdir() if "tfevents" not in path.name} for run in (left, right)]
    assert names[0] == names[1]
    for name in {"history.csv", "history_2.csv"} & names[0]:
        assert timeless_file(left.folder / name) == timeless_file(right.folder / name), name
    assert equal(weights_of(left), weights_of(right))
    predictions = {"predictions_val.csv", "predictions_fitted.csv"}
    for name in {*predictions, "manifest.csv", "findings.csv", "c_search.csv"} & names[0]:
        assert (left.folder / name).read_bytes() == (right.folder / name).read_bytes(), name
    texts = [(run.folder / "metrics.json").read_text(encoding="utf-8") for run in (left, right)]
    metrics = [{**json.loads(text), "train_seconds": 0} for text in texts]
    assert metrics[0] == metrics[1]


def plain_text(model: onnx.ModelProto) -> bytes:
    """A model file's bytes without tensor values and golden PNGs, in which short words occur by chance."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        tensor.ClearField("raw_data")
    for prop in copy.metadata_props:
        prop.value = re.sub(r'"png":"[^"]*"', '"png":""', prop.value)
    return copy.SerializeToString()


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if an image is decoded."""

    def decode(content: bytes, preprocessing: object) -> None:
        raise AssertionError(f"an image of {len(content)} bytes was decoded")

    monkeypatch.setattr(image_module, "load_working", decode)


class RunsCode:
    """A malicious payload: unpickling it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


class Listener(Silent):
    """Records task starts and messages."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.lines: list[str] = []

    def start(self, task: str, total: int, unit: str) -> None:
        self.tasks.append(task)

    def say(self, line: str) -> None:
        self.lines.append(line)


class StopsAt(Silent):
    """Presses Ctrl-C in the first step of an epoch. `training`: of which training of a run that trains twice."""

    def __init__(self, epoch: int, training: int = 1) -> None:
        self.epoch, self.ahead = epoch, training

    def start(self, task: str, total: int, unit: str) -> None:
        self.ahead -= task == "training"

    def advance(self, steps: int = 1, note: str = "") -> None:
        if self.ahead == 0 and note.startswith(f"epoch {self.epoch},"):
            raise KeyboardInterrupt
