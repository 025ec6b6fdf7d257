"""The part of a run of several labels: its training and evaluation. The order of the steps is in `train`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tl.data.label_sets import show_label
from tl.evaluation.label_decisions import fit_temperatures, fit_thresholds, held_out_decisions
from tl.evaluation.metrics import Metrics
from tl.evaluation.multilabel import multilabel_metrics, sigmoid
from tl.progress import Progress
from tl.runtime.output.columns import LABEL_SEPARATOR
from tl.trainer.classification import check_network
from tl.trainer.config import TrainConfig
from tl.trainer.multilabel.logistic import solve_labels_for_run
from tl.trainer.multilabel.task import MultilabelTask, prepare_multilabel_task
from tl.trainer.outcome import HeldOut, Outcome
from tl.trainer.run_folder.run import Run
from tl.trainer.target_work import TargetWork, choose_training

if TYPE_CHECKING:
    from tl.trainer.fit.distributed import Ranks
    from tl.trainer.fit.target_training import TargetTraining


def _evaluate(task: MultilabelTask, outcome: Outcome, run: Run, seconds: float, progress: Progress) -> Metrics:
    """Calibrate, choose thresholds, evaluate, and write the results."""
    scored = {}
    for split in ("val", "test") if task.config.test else ("val",):
        progress.start(f"evaluating {split}", 1, "splits")
        scored[split] = outcome.scored(task, split)
        progress.advance()
    val = scored["val"]
    known = task.labels[val.places]
    temperatures = fit_temperatures(val.logits, known)
    probabilities = sigmoid(val.logits, temperatures)
    thresholds = np.array(fit_thresholds(probabilities, known))
    metrics: Metrics = {
        **outcome.describe(task.config, seconds),
        "temperatures": dict(zip(task.outputs, temperatures, strict=True)),
        "thresholds": dict(zip(task.outputs, thresholds.tolist(), strict=True)),
    }
    for split, found in scored.items():
        each = probabilities if split == "val" else sigmoid(found.logits, temperatures)
        decided = held_out_decisions(each, known) if split == "val" else each >= thresholds
        groups = [task.store.images[i].group for i in found.places]
        metrics[split] = multilabel_metrics(each, task.labels[found.places], decided, task.outputs, groups)
        name = "held out" if split == "val" and outcome.held_out else split
        progress.say(f"{name}: {metrics_line(metrics[split])}")
        _save(task, run, split, found.places, each, decided)
    outcome.save(task.card(temperatures))
    if outcome.held_out is not None:  # what the deployed network answers, which an export must reproduce
        fitted = HeldOut(task.store.indices("val"), outcome.logits("val"))
        each = sigmoid(fitted.logits, temperatures)
        _save(task, run, "fitted", fitted.places, each, each >= thresholds)
    return metrics


def _save(
    task: MultilabelTask,
    run: Run,
    name: str,
    places: list[int],
    probabilities: NDArray[np.float32],
    decided: NDArray[np.bool_],
) -> None:
    """Write `predictions_NAME.csv`: `path,true_labels,labels,p:<label>...`."""
    names = task.outputs
    rows = [
        {
            "path": task.store.images[place].name,
            "true_labels": show_label(task.labels[place], names),
            "labels": LABEL_SEPARATOR.join(label for label, is_given in zip(names, given, strict=True) if is_given),
            **{f"p:{label}": value for label, value in zip(names, row.tolist(), strict=True)},
        }
        for place, given, row in zip(places, decided, probabilities, strict=True)
    ]
    run.save_table(f"predictions_{name}.csv", rows)


def metrics_line(m: Metrics) -> str:
    """Scores of a split, for display."""
    precision = f"mean average precision {m['map']:.4f} (95% {m['ci_low']:.4f} to {m['ci_high']:.4f})"
    f1 = f"macro F1 {m['macro_f1']:.4f}, micro F1 {m['micro_f1']:.4f}"
    return f"{precision}, {f1}, calibration error {m['ece']:.4f}, {m['n']} images"


def prepare_multilabel(config: TrainConfig, ranks: Ranks | None, progress: Progress) -> TargetWork[MultilabelTask]:
    """Read all inputs; build the network if training runs on images. Raises any `TlError` of the individual steps."""
    task = prepare_multilabel_task(config, progress, check_network)
    training = choose_training(task, partial(solve_labels_for_run, task), lambda: _by_steps(task), ranks)
    return TargetWork(task, training, f"{len(task.outputs)} labels", _evaluate)


def _by_steps(task: MultilabelTask) -> TargetTraining:
    from tl.trainer.multilabel.training import build_target_training

    return build_target_training(task)
