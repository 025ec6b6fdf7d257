"""One training run from top to bottom: config in, run folder out.

Knows every part of `tl.trainer`; each part knows only those below it. Does not print, plot or export.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tl.errors import DataError, RunInterrupted
from tl.runtime.recipe import Recipe, build_recipe
from tl.trainer.augment import PRESETS, build_augment
from tl.trainer.backbones import BackboneInfo, backbone_info, build_classifier, build_trunk, feature_shape
from tl.trainer.batches import PictureBatches, TensorBatches, iter_inputs
from tl.trainer.config import TrainConfig, resolve
from tl.trainer.data import Picture, assign_splits, bind_class_names, class_ids, read_pictures
from tl.trainer.heads import build_head
from tl.trainer.loop import Batches, FitOptions, Validation, best_epoch, fit
from tl.trainer.machine import Machine, build_machine
from tl.trainer.metrics import classification_metrics
from tl.trainer.network import Network, Normalise, Standardise, feature_length
from tl.trainer.pictures import PictureStore, check_readable, load_pictures
from tl.trainer.progress import Progress
from tl.trainer.runs import RUN_VERSION, NetworkCard, Run, RunCheckpoints, check_free, create_run
from tl.trainer.weights import Weights, find_weights, load_into

_EVAL_BATCH = 32


@dataclass(frozen=True)
class TrainResult:
    """Where a run lies and how it did. `metrics` has a key for each evaluated split."""

    run: Run
    metrics: dict[str, Any]


def train(config: TrainConfig, progress: Progress, *, resume: Run | None = None) -> TrainResult:
    """Train as configured, or continue `resume`. Raises the `TlError`s of its parts."""
    started = time.monotonic()
    numbered = not config.out
    config = resolve(config)
    machine = build_machine(config.device, config.precision, config.threads)
    info = backbone_info(config.backbone)
    recipe = _build_recipe(config, info)
    augment = build_augment(str(config.augment), recipe)
    pictures = assign_splits(
        read_pictures(config.data, config.split_column, progress.say), config.val_fraction, config.seed
    )
    _check_data(pictures, config)
    weights = find_weights(config.backbone, str(config.weights))
    if not resume and not numbered:
        check_free(config.out)
    store, bad = load_pictures(pictures, recipe, config.cache, progress)
    if not config.skip_bad:
        check_readable(bad, "mend or remove them, or go on without them by --skip-bad")
    class_names = _check_data(store.pictures, config)  # again: classes may have gone with unreadable pictures
    ids = class_ids(store.pictures, class_names)
    network = build_network(config, info, len(class_names), weights).to(machine.device)
    card = NetworkCard(RUN_VERSION, class_names, recipe, weights.description if weights else "none")
    run = resume or create_run(config.out, numbered=numbered)
    run.save_config(_with_absolute_paths(config, run))
    run.save_manifest(store)
    if bad:
        run.save_skipped(bad)
    progress.say(f"{run.folder}: {_describe(config, store, class_names, machine)}")

    try:
        module, batches, validate = _training_parts(config, network, store, ids, augment, machine, progress)
        history = fit(module, batches, validate, _fit_options(config), machine, RunCheckpoints(run), progress)
        # From reading the first picture to the last step; of a resumed run, all its epochs instead.
        seconds = sum(row.seconds for row in history) if resume else time.monotonic() - started
        run.save_history(history)
        run.save_best(network.state_dict(), card)
        metrics: dict[str, Any] = {"best_epoch": best_epoch(history, config.monitor), "train_seconds": seconds}
        for split in ("val", "test") if config.test else ("val",):
            metrics[split] = _evaluate_split(split, network, store, ids, class_names, machine, run, progress)
    except KeyboardInterrupt as stop:
        raise RunInterrupted(
            f"interrupted; go on from the last saved epoch by: tl train --resume {run.folder}"
        ) from stop
    run.save_metrics(metrics)
    return TrainResult(run, metrics)


def build_network(config: TrainConfig, info: BackboneInfo, num_classes: int, weights: Weights | None) -> Network:
    """The network of a config, initialised from the seed and the weights."""
    torch.manual_seed(config.seed)
    trunk = build_trunk(config.backbone)
    if weights is not None:
        dropped = frozenset[str]()
        if config.backbone != "smallcnn":
            dropped = frozenset(build_classifier(config.backbone).state_dict()) - set(trunk.state_dict())
        load_into(trunk, weights, unused=dropped)
    input_hw = _input_hw(config, info)
    features = feature_length(feature_shape(trunk, input_hw), config.pooling)
    torch.manual_seed(config.seed)  # the head starts the same whatever the trunk drew
    head = build_head(config.head, features, num_classes, sizes=config.head_sizes, dropout=config.dropout)
    network = Network(
        Normalise(info.mean, info.std),
        trunk,
        Standardise(features),
        head,
        pooling=config.pooling,
        frozen_trunk=config.method == "features",
    )
    return network.to(memory_format=torch.channels_last)


def load_network(run: Run) -> tuple[Network, NetworkCard, TrainConfig]:
    """A run's best network in evaluation mode on the CPU, its card and its config. Raises `RunError`."""
    config = run.load_config()
    tensors, card = run.load_best()
    network = build_network(config, backbone_info(config.backbone), len(card.class_names), None)
    load_into(network, Weights(tensors, str(run.best_path)))
    return network.eval(), card, config


def predict_probabilities(
    module: Callable[[Tensor], Tensor], store: PictureStore, indices: Sequence[int], machine: Machine
) -> NDArray[np.float32]:
    """The trainer's evaluation path: pictures as deployment sees them -> probabilities float32 (N, C)."""
    logits = [module(batch.to(machine.device)).float().cpu() for batch in iter_inputs(store, indices, _EVAL_BATCH)]
    return torch.softmax(torch.cat(logits), dim=1).numpy()


def _training_parts(
    config: TrainConfig,
    network: Network,
    store: PictureStore,
    ids: Sequence[int],
    augment: Any,
    machine: Machine,
    progress: Progress,
) -> tuple[nn.Module, Batches, Callable[[], Validation]]:
    """What the loop trains on: pictures through the whole network, or features computed once through its head."""
    train, val = store.indices("train"), store.indices("val")
    val_ids = torch.tensor([ids[i] for i in val], device=machine.device)
    if config.method == "features":
        embed = _feature_computer(network, store, machine, progress)
        train_features = embed(train)
        network.standardise.fit(train_features)
        if augment is None:
            train_ids = torch.tensor([ids[i] for i in train], device=machine.device)
            features = TensorBatches(
                network.standardise(train_features), train_ids, batch_size=config.batch_size, seed=config.seed
            )
            val_features = network.standardise(embed(val))
            return network.head, features, lambda: _validate(network.head, [val_features], val_ids)
    pictures = PictureBatches(
        store,
        ids,
        augment=augment,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=_workers(config, machine),
        pin_memory=machine.device.type == "cuda",
    )
    return (
        network,
        pictures,
        lambda: _validate(
            network, (batch.to(machine.device) for batch in iter_inputs(store, val, _EVAL_BATCH)), val_ids
        ),
    )


def _feature_computer(
    network: Network, store: PictureStore, machine: Machine, progress: Progress
) -> Callable[[Sequence[int]], Tensor]:
    @torch.no_grad()
    def embed(indices: Sequence[int]) -> Tensor:
        progress.start("computing features", len(indices), "pictures")
        network.eval()
        parts = []
        for batch in iter_inputs(store, indices, _EVAL_BATCH):
            parts.append(network.embed(batch.to(machine.device)))
            progress.advance(len(batch))
        return torch.cat(parts)

    return embed


@torch.no_grad()
def _validate(module: nn.Module, batches: Any, true_ids: Tensor) -> Validation:
    module.eval()
    logits = torch.cat([module(batch) for batch in batches])
    loss = functional.cross_entropy(logits, true_ids)
    return Validation(float(loss), float((logits.argmax(dim=1) == true_ids).float().mean()))


@torch.no_grad()
def _evaluate_split(
    split: str,
    network: Network,
    store: PictureStore,
    ids: Sequence[int],
    class_names: tuple[str, ...],
    machine: Machine,
    run: Run,
    progress: Progress,
) -> dict[str, Any]:
    indices = store.indices(split)
    progress.start(f"evaluating {split}", 1, "splits")
    probabilities = predict_probabilities(network.eval(), store, indices, machine)
    run.save_predictions(split, [store.pictures[i] for i in indices], probabilities, class_names)
    progress.advance()
    return classification_metrics(np.array([ids[i] for i in indices]), probabilities, class_names)


def _check_data(pictures: Sequence[Picture], config: TrainConfig) -> tuple[str, ...]:
    """Class names, after checking what training and evaluation will need. Raises `DataError`."""
    class_names = bind_class_names(pictures)
    class_ids(pictures, class_names)
    for split in ("val", "test") if config.test else ("val",):
        if not any(picture.split == split for picture in pictures):
            raise DataError(f"the data set has no pictures in its {split} split")
    return class_names


def _with_absolute_paths(config: TrainConfig, run: Run) -> TrainConfig:
    """The config to keep: it can be resumed, repeated and exported from any folder."""
    words = {"none", "imagenet", *PRESETS}  # which a folder of the same name does not change
    paths = {name: getattr(config, name) for name in ("data", "weights", "augment")}
    absolute = {
        name: os.path.abspath(path) for name, path in paths.items() if path not in words and os.path.exists(path)
    }
    return dataclasses.replace(config, out=os.fspath(run.folder), **absolute)


def _build_recipe(config: TrainConfig, info: BackboneInfo) -> Recipe:
    return build_recipe(
        _input_hw(config, info),
        config.resize_mode,
        interpolation=info.interpolation,
        pad_rgb=tuple(round(255 * value) for value in info.mean),  # type: ignore[arg-type]  # three values
        bit_depth_max=config.bit_depth_max,
    )


def _input_hw(config: TrainConfig, info: BackboneInfo) -> tuple[int, int]:
    side = config.image_size or info.image_size
    return side, side


def _workers(config: TrainConfig, machine: Machine) -> int:
    if config.workers is not None:
        return config.workers
    return max(1, min(16, machine.threads - 1)) if machine.device.type == "cuda" else 0


def _fit_options(config: TrainConfig) -> FitOptions:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(FitOptions)}
    return FitOptions(**values)


def _describe(config: TrainConfig, store: PictureStore, class_names: Sequence[str], machine: Machine) -> str:
    counts = ", ".join(f"{len(store.indices(split))} {split}" for split in ("train", "val", "test"))
    return f"{config.method} of {config.backbone} for {len(class_names)} classes, {counts}; {machine.name}"
