"""Compare many heads on the same cached features by cross-validation: head type, C, learning rate.

Does not create a run; use `tl train` with the winning options.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.data.splits import Fold, cut_folds
from tl.errors import ConfigError
from tl.evaluation.metrics import macro_f1, wilson_interval
from tl.progress import Progress, Silent
from tl.trainer.config import TrainConfig
from tl.trainer.config_files import config_from_mapping
from tl.trainer.heads.solvers import Solver, solve_head
from tl.trainer.options import is_solved, nearest, resolve, settled
from tl.trainer.task import CLEAN, Task

# Options that a try may vary: all that leave the features unchanged.
VARIABLE = (
    *("head", "head_sizes", "dropout", "c", "optimizer", "lr", "epochs", "batch_size", "momentum", "weight_decay"),
    *("schedule", "warmup_epochs", "drop_epochs", "drop_factor", "label_smoothing", "class_weights", "sampler"),
    *("ema_decay", "clip_norm", "accumulate"),
)


@dataclass(frozen=True)
class ProbeRow:
    """Result of one try: a row of `tl probe`'s CSV.

    `n`: number of scored images, over all seeds. The interval is that of the mean accuracy over folds and seeds, or
    that of the accuracy on the data's own validation split.
    """

    options: str
    top1_accuracy: float
    ci_low: float
    ci_high: float
    macro_f1: float
    fits: int
    n: int
    seconds: float


def expand_tries(tries: Sequence[str]) -> list[dict[str, str]]:
    """`"head=svm c=0.1,1"` -> one mapping per combination. Raises `ConfigError` for an unknown option."""
    expanded = []
    for text in tries:
        choices: dict[str, list[str]] = {}
        for part in text.split():
            name, equals, values = part.partition("=")
            name = name.replace("-", "_")
            if not equals or not values:
                raise ConfigError(f"try '{text}': expected option=value[,value...], found '{part}'")
            if name not in VARIABLE:
                raise ConfigError(f"try '{text}': cannot vary '{name}'{nearest(name, list(VARIABLE))}")
            if name in choices:
                raise ConfigError(f"try '{text}': '{name}' is given twice: give its values as {name}=A,B")
            choices[name] = values.split(",")
        expanded += [dict(zip(choices, chosen, strict=True)) for chosen in itertools.product(*choices.values())]
    return expanded


def configure(base: TrainConfig, chosen: dict[str, str]) -> list[tuple[dict[str, str], TrainConfig]]:
    """The resolved configs of one try: one per C if C is not set. Raises `ConfigError`."""
    values: dict[str, Any] = dict(chosen)
    if "c" in values:
        values["c_values"] = [values.pop("c")]
    if "head_sizes" in values:
        values["head_sizes"] = values["head_sizes"].split("x")
    where = f"try {_shown(chosen)}"
    config = config_from_mapping({**vars(base), **values}, where)
    if config.lr == "auto" or config.schedule == "plateau":
        raise ConfigError(
            f"{where}: lr auto and schedule plateau would use the validation images that the try is scored on"
        )
    config = resolve(config, where)
    if "c" in chosen and not is_solved(config):
        raise ConfigError(f"{where}: c applies only to head svm and optimizer lbfgs: leave it out")
    c_values = settled(config.c_values)
    if not is_solved(config) or len(c_values) == 1:
        return [(chosen, config)]
    return [({**chosen, "c": f"{c:g}"}, dataclasses.replace(config, c_values=(c,))) for c in sorted(c_values)]


def probe(
    task: Task,
    tries: Sequence[tuple[dict[str, str], TrainConfig]],
    folds: int,
    seeds: int,
    progress: Progress,
    *,
    per_class: int | None = None,
) -> list[ProbeRow]:
    """Fit every try on every fold and seed; best first. `task` has cached features of training and validation images.

    With `folds` 0, every try is fitted on the training split and scored on the validation split. Otherwise, both splits
    together are divided into folds; groups and identical files are never separated. The test split is never used.
    `per_class` limits the training part of each fold. Raises `DataError` for too many folds.
    """
    pool = [i for i, image in enumerate(task.store.images) if image.split in ("train", "val")]
    if task.features is None:
        raise ValueError("this task caches no features")
    features = task.features.get(task.store, pool, (CLEAN,))
    true_ids = np.array([task.ids[i] for i in pool])
    plans = [(seed, _plan(task, pool, true_ids, folds, seed)) for seed in range(seeds)]
    progress.start("trying heads", sum(len(plan) for _, plan in plans) * len(tries), "fits")
    rows = []
    for chosen, config in tries:
        started = time.monotonic()
        accuracies, shares, decided, truth = [], [], [], []
        for seed, plan in plans:
            for whole, val in plan:
                train = _limit(whole, true_ids, per_class, seed)
                logits = _fit(dataclasses.replace(config, seed=seed), task, features, true_ids, train, val)
                decided.append(logits.argmax(axis=1))
                truth.append(true_ids[val])
                accuracies.append(float((decided[-1] == truth[-1]).mean()))
                shares.append(len(val) / len(train))
                progress.advance(1, f"{_shown(chosen)}: {np.mean(accuracies):.3f}")
        hits = int(sum((d == t).sum() for d, t in zip(decided, truth, strict=True)))
        scored = sum(len(t) for t in truth)
        low, high = _interval(accuracies, shares) if folds else wilson_interval(round(hits / seeds), scored // seeds)
        f1 = macro_f1(np.concatenate(truth), np.concatenate(decided), len(task.class_names))
        seconds = time.monotonic() - started
        mean = float(np.mean(accuracies))
        rows.append(ProbeRow(_shown(chosen), mean, low, high, f1, len(accuracies), scored, seconds))
    return sorted(rows, key=lambda row: -row.top1_accuracy)


def _plan(task: Task, pool: Sequence[int], true_ids: NDArray[np.int64], folds: int, seed: int) -> list[Fold]:
    images = [task.store.images[i] for i in pool]
    if folds == 0:
        is_val = np.array([image.split == "val" for image in images])
        return [(np.flatnonzero(~is_val), np.flatnonzero(is_val))]
    hashes = [task.store.hashes[i] for i in pool]
    return cut_folds(true_ids, hashes, [image.group for image in images], folds, seed)


def _limit(train: NDArray[np.int64], true_ids: NDArray[np.int64], count: int | None, seed: int) -> NDArray[np.int64]:
    if count is None:
        return train
    rng = np.random.default_rng(seed)
    kept = [rng.permutation(train[true_ids[train] == class_id])[:count] for class_id in np.unique(true_ids)]
    return np.sort(np.concatenate(kept))


def _fit(
    config: TrainConfig,
    task: Task,
    features: NDArray[np.float32],
    true_ids: NDArray[np.int64],
    train: NDArray[np.int64],
    val: NDArray[np.int64],
) -> NDArray[np.floating]:
    """Logits of the validation images. They do not influence any choice: there is one C, and the last epoch is used."""
    train_data, val_data = (features[train], true_ids[train]), (features[val], true_ids[val])
    if is_solved(config):
        solver: Solver = "svm" if config.head == "svm" else "logistic"
        head, _ = solve_head(
            solver,
            train_data,
            val_data,
            settled(config.c_values),
            config.seed,
            is_balanced=config.class_weights == "balanced",
        )
        return head.logits(features[val])
    from tl.trainer.fit.loop import NoCheckpoints
    from tl.trainer.fit.machine import build_machine
    from tl.trainer.fit.trainables import class_objective
    from tl.trainer.heads.stepped_head import build_stepped_head, fit_stepped_head

    machine = build_machine(config.device, config.precision, config.threads)
    objective = class_objective(config, task.class_names, train_data[1], machine)
    stepped = build_stepped_head(config, train_data, len(task.class_names), objective, machine)
    fit_stepped_head(stepped, config, val_data, NoCheckpoints(), Silent(), keeps_best=False)
    return stepped.logits(features[val])


def _interval(accuracies: Sequence[float], shares: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean over folds, wider than for independent values, because training sets overlap.

    Source: Nadeau & Bengio 2003, the corrected resampled t-test; `shares` are ratios of validation to training images.
    """
    from scipy.stats import t

    count = len(accuracies)
    variance = float(np.var(accuracies, ddof=1)) * (1 / count + float(np.mean(shares)))
    half = float(t.ppf(0.975, count - 1)) * math.sqrt(variance)
    mean = float(np.mean(accuracies))
    return max(0.0, mean - half), min(1.0, mean + half)


def _shown(chosen: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in chosen.items()) or "defaults"
