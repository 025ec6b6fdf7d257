"""Estimate the time of a study: of its open runs, by timing one step of every network here on random weights and noise,
and of exporting and evaluating the models that it will select.

Does not train. Excludes what cannot be known in advance: decoding and augmentation, and epochs saved by early stopping.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean

import torch

from tl.data.label_sets import assign_label_splits, read_label_sets
from tl.data.manifests import LabeledImage
from tl.data.splits import assign_splits, limit_per_class
from tl.data.targets import assign_number_splits, read_numbers
from tl.progress import Silent
from tl.runtime.landmarks.files import read_landmarks
from tl.studies.selection import LATENCY_SECONDS, read_selected
from tl.studies.study import Study
from tl.studies.sweep import CellRun
from tl.trainer.boxes import manifest_columns, read_run_data
from tl.trainer.config import TrainConfig
from tl.trainer.fit.machine import Machine, build_machine
from tl.trainer.models.build import build_network
from tl.trainer.options import find_task, resolve, settled
from tl.trainer.task import find_info

# Images per timed step on the CPU, where speed hardly depends on the batch size.
_CPU_BATCH = 8
_BOX_OPTIONS = ("boxes", "min_box_confidence", "box_categories", "box_labels")
# With fewer images, a GPU measurement is dominated by launch overhead.
_TIMED_STEPS = 3
# Tracing, optimizing and checking a graph. Source: 12 to 16 s for EfficientNet-Lite0 on two cores, 49 parity images.
EXPORT_SECONDS = 13.0


@dataclass(frozen=True)
class Speed:
    """Seconds per image for one network: for a training step, and for a pass without gradients."""

    step: float
    forward: float


def estimate_seconds(runs: Sequence[CellRun]) -> float:
    """Total time of all open runs, run sequentially: from finished runs of the same setting, else from timed steps.

    Frozen trunks that share features are counted once. Raises any `TlError` of data, options and devices.
    """
    taken: dict[str, list[float]] = {}
    for run in runs:
        if run.state == "done":
            taken.setdefault(run.cell.setting, []).append(run.metrics()["train_seconds"])
    embedded: set[str] = set()
    total = 0.0
    for run in runs:
        if run.state != "open":
            continue
        known = taken.get(run.cell.setting)
        total += fmean(known) if known else _expected(resolve(replace(run.cell.config, out="x")), embedded)
    return total


@dataclass(frozen=True)
class After:
    """What follows the runs of a study: `models` to export, time and evaluate, in `seconds`."""

    models: int
    seconds: float


def estimate_after(study: Study, runs: Sequence[CellRun], out: Path, *, test: bool) -> After:
    """Time of what follows the runs: from models evaluated before, else from the speed of each network.

    `out`: folder of the study. `test`: whether models are scored on test images. Raises as `estimate_seconds`.
    """
    kept = read_selected(out)
    known = [each["seconds"] for each in kept.values() if "seconds" in each]
    groups: dict[tuple[str, ...], list[CellRun]] = {}  # one setting of each group will be selected
    for run in runs:
        point = dict(run.cell.point)
        key = (run.cell.variant, *(str(point.get(axis)) for axis in study.plan.apart))
        groups.setdefault(key, []).append(run)
    models, seconds, together = 0, 0.0, 0.0
    for own in groups.values():
        seeds = {run.cell.seed for run in own}
        has_open = any(run.state == "open" for run in own)
        ready = 0 if has_open else sum(run.cell.name in kept for run in own)
        count = max(0, len(seeds) - ready)
        models += count
        if count and not known:
            seconds += count * _expected_after(own[0].cell.config, test=test)
        if count and study.plan.ensemble and len(groups) > 1:
            together += _evaluation(resolve(replace(own[0].cell.config, out="x")), test=test)
    if known:
        seconds = models * fmean(known)
    return After(models, seconds + together)


def _expected_after(config: TrainConfig, *, test: bool) -> float:
    """Exporting, timing and evaluating a model."""
    config = resolve(replace(config, out="x"))
    is_tested = test and _counts(config)["test"] > 0
    return EXPORT_SECONDS + LATENCY_SECONDS + (_evaluation(config, test=True) if is_tested else 0.0)


def _evaluation(config: TrainConfig, *, test: bool) -> float:
    """Predicting the test images if `test`, and there are any; an ensemble without them predicts validation images."""
    counts = _counts(config)
    images = counts["test"] if test and counts["test"] else counts["val"]
    return images * _time_network(_network_key(config)).forward


def _expected(config: TrainConfig, embedded: set[str]) -> float:
    """`embedded`: frozen trunks whose features are already counted; this run's trunk is added."""
    counts = _counts(config)
    train, val = counts["train"], counts["val"]
    speed = _time_network(_network_key(config))
    if config.method == "features" and config.augment == "none":
        key = repr((_network_key(config), config.data))
        seconds = 0.0 if key in embedded else (train + val) * speed.forward
        embedded.add(key)
        return seconds
    return settled(config.epochs) * (train * speed.step + val * speed.forward)


def _counts(config: TrainConfig) -> Counter[str]:
    val_fraction = settled(config.val_fraction)
    names = ("data", "task", "images", "path_column", "label_column", "split_column", "target", *_BOX_OPTIONS)
    return _count_images(TrainConfig(**{name: getattr(config, name) for name in names}), val_fraction, config.per_class)


def _network_key(config: TrainConfig) -> TrainConfig:
    """The options that determine a network's speed; all others at fixed values."""
    names = (
        "method",
        "backbone",
        "trunk_until",
        "freeze",
        "image_size",
        "batch_size",
        "device",
        "precision",
        "threads",
    )
    own = {name: getattr(config, name) for name in names}
    return resolve(TrainConfig(data="x", out="x", task="classification", weights="imagenet", **own))


@cache
def _count_images(config: TrainConfig, val_fraction: float, per_class: int | None) -> Counter[str]:
    """`config`: with only the options that select the images."""
    task = config.task or find_task(config.data)
    columns = replace(manifest_columns(config), targets=config.target or ())
    if task == "landmarks":
        annotated = read_landmarks(config.data, config.images, label=config.label_column).images
        labeled = [LabeledImage(each.name, each.name, "", each.split, each.group) for each in annotated]
        labeled = assign_splits(labeled, val_fraction, 0)
    elif task == "multilabel":
        labels, labeled = read_label_sets(config.data, columns, Silent().say)
        labeled = assign_label_splits(labeled, labels, val_fraction, 0)
    elif task == "regression":
        _, labeled = read_numbers(config.data, columns, Silent().say)
        labeled = assign_number_splits(labeled, val_fraction, 0)
    else:
        labeled = assign_splits(read_run_data(config, Silent()).images, val_fraction, 0)
    if per_class is not None:
        labeled = limit_per_class(labeled, per_class, 0)
    return Counter(image.split for image in labeled)


@cache
def _time_network(config: TrainConfig) -> Speed:
    machine = build_machine(config.device, config.precision, config.threads)
    info = find_info(config.backbone)
    network = build_network(config, info, 10, None).to(machine.device)
    side = config.image_size or info.image_size
    count = settled(config.batch_size)
    if machine.device.type == "cpu":
        count = min(count, _CPU_BATCH)
    images = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, device=machine.device)

    def step() -> None:
        with machine.autocast():
            found = network.train()(images)
            loss = (found[0] if isinstance(found, tuple) else found).float().square().mean()
        loss.backward()

    def forward() -> None:
        with torch.inference_mode(), machine.autocast():
            network.eval()(images)

    is_trained = any(parameter.requires_grad for parameter in network.parameters())
    forward_s = _seconds(forward, machine) / count
    return Speed(_seconds(step, machine) / count if is_trained else forward_s, forward_s)


def _seconds(work: Callable[[], None], machine: Machine) -> float:
    work()  # warm-up: the first call is slower
    _wait(machine)
    started = time.perf_counter()
    repeats = _TIMED_STEPS if machine.device.type == "cuda" else 1
    for _ in range(repeats):
        work()
    _wait(machine)
    return (time.perf_counter() - started) / repeats


def _wait(machine: Machine) -> None:
    if machine.device.type == "cuda":
        torch.cuda.synchronize(machine.device)
