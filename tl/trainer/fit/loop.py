"""The training loop: batches and a module in, a trained module and its history out. Resumable after every epoch.

Contains epochs, schedules, weight averaging and best-checkpoint selection. Does not depend on images, backbones or run
folders: batches, the validation function and the checkpoint storage are passed in.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tl.errors import TrainingError
from tl.progress import Progress
from tl.trainer.config import Monitor, Optimizer
from tl.trainer.fit.distributed import Ranks
from tl.trainer.fit.machine import Machine
from tl.trainer.fit.optimizers import SchedulePlan, build_optimizer, lr_factor, set_lr
from tl.trainer.fit.steps import Batch, StepResult, TrainableModel, build_scaler, check_finite, train_step

# Epochs on cached features take milliseconds; logging every one would hide the result.
_SECONDS_WORTH_A_LINE = 0.5
# In `history.csv`, loss and score of training and validation come before the timing.
_LEADING = 4
# Reading a loss synchronizes with the GPU, so it is not done at every step.
_STEPS_BETWEEN_LOOKS = 10


@dataclass(frozen=True, kw_only=True)
class FitOptions(SchedulePlan):
    """Training options and the learning rate's schedule, documented in `TrainConfig`. `lr`: the peak rate."""

    optimizer: Optimizer
    lr: float
    momentum: float
    weight_decay: float
    accumulate: int
    clip_norm: float | None
    ema_decay: float | None
    patience: int | None
    monitor: Monitor
    seed: int
    compile: bool


# Results on the validation split by name: `loss` first, then the objective's score.
Figures = dict[str, float]


@dataclass(frozen=True)
class EpochRow:
    """One row of `history.csv`. `lr` is that of the last step; `seconds` is the time of the whole epoch.

    `figures`: column -> value: `train_loss` and the training score, then `val_loss` and the validation scores.
    """

    epoch: int
    lr: float
    seconds: float
    images_per_s: float
    figures: Figures

    def columns(self) -> dict[str, float]:
        """All columns in file order."""
        names = list(self.figures)
        first, more = names[:_LEADING], names[_LEADING:]
        return {
            "epoch": self.epoch,
            "lr": self.lr,
            **{name: self.figures[name] for name in first},
            "seconds": self.seconds,
            "images_per_s": self.images_per_s,
            **{name: self.figures[name] for name in more},
        }


class Batches(Protocol):
    """Training batches in an order that depends only on the epoch."""

    count: int

    def __len__(self) -> int:
        """Number of batches per epoch."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch."""


class Checkpoints(Protocol):
    """Storage for the training state."""

    def load_last(self) -> dict[str, Any] | None:
        """The newest state, or None."""

    def save(self, state: dict[str, Any], history: list[EpochRow], *, final: bool) -> None:
        """Save a state; `final` states are always written, others only if enough time has passed."""


class NoCheckpoints:
    """Saves nothing."""

    def load_last(self) -> dict[str, Any] | None:
        """Always None."""
        return None

    def save(self, state: dict[str, Any], history: list[EpochRow], *, final: bool) -> None:
        """Does nothing."""


def fit(
    trainable: TrainableModel,
    batches: Batches,
    validate: Callable[[nn.Module], Figures],
    options: FitOptions,
    machine: Machine,
    checkpoints: Checkpoints,
    progress: Progress,
    ranks: Ranks | None = None,
    *,
    keeps_best: bool = True,
) -> list[EpochRow]:
    """Train a module and load its best weights at the end. Returns the history, including epochs before a resume.

    Without `keeps_best`, the module keeps its last weights: the validation data used for scoring must not select the
    epoch.

    Raises `TrainingError` when the loss is no longer finite.
    """
    ranks = ranks or Ranks()
    training = _Training(trainable, batches, options, machine, ranks, progress)
    if state := checkpoints.load_last():
        training.load_state(state)
    steps = (options.epochs - len(training.history)) * training.steps_per_epoch
    progress.start("training", steps, "steps")
    while not _is_done(training.history, options):
        started = time.perf_counter()
        trained_figures = training.train_epoch()
        trained = time.perf_counter() - started
        validation = validate(training.judged)
        if not math.isfinite(validation["loss"]):
            raise TrainingError(
                f"epoch {len(training.history) + 1}: the validation loss is not finite at learning rate "
                f"{training.lr:.3g}; lower it",
                options=[f"lr={training.lr / 10:.2g}"],
            )
        seconds = time.perf_counter() - started
        training.history.append(
            EpochRow(
                epoch=len(training.history) + 1,
                lr=training.lr,
                seconds=seconds,
                images_per_s=batches.count / trained,
                figures={**trained_figures, **{f"val_{name}": value for name, value in validation.items()}},
            )
        )
        if keeps_best:
            training.keep_best()
        is_done = _is_done(training.history, options)
        if seconds > _SECONDS_WORTH_A_LINE or is_done:
            progress.say(_epoch_line(training.history[-1], options))
        checkpoints.save(training.state(), training.history, final=is_done)
    trainable.module.load_state_dict(training.best if keeps_best else _copy_state(training.judged))
    return training.history


class _Training:
    """All state that changes during training, with saving and restoring."""

    def __init__(
        self,
        trainable: TrainableModel,
        batches: Batches,
        options: FitOptions,
        machine: Machine,
        ranks: Ranks,
        progress: Progress,
    ) -> None:
        self._trainable, self._batches, self._options = trainable, batches, options
        self._machine, self._ranks, self._progress = machine, ranks, progress
        self._optimizer = build_optimizer(
            options.optimizer,
            trainable.groups,
            options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
        )
        self._scaler = build_scaler(machine)
        self._runner: nn.Module = trainable.module
        if options.compile:
            self._runner = torch.compile(trainable.module)  # type: ignore[assignment]  # returns a module for a module
        self._average = _build_average(trainable.module, options.ema_decay)
        self.steps_per_epoch = math.ceil(len(batches) / options.accumulate)
        self.lr = options.lr
        self.history: list[EpochRow] = []
        self.best = _copy_state(self.judged)

    @property
    def judged(self) -> nn.Module:
        """The module to validate and save: the module itself, or the average of its weights."""
        return self._trainable.module if self._average is None else self._average.module

    def train_epoch(self) -> Figures:
        """Train for one epoch. Returns the mean loss and score over the training images, measured during training."""
        epoch = len(self.history) + 1
        # Dropout and mixing depend only on seed and epoch; each process draws its own values.
        torch.manual_seed(self._options.seed * 100_003 + epoch + 7919 * self._ranks.rank)
        self._trainable.begin_epoch(epoch)
        self._trainable.module.train()
        runner = self._ranks.wrap(self._runner)
        sums = torch.zeros(2, device=self._machine.device, dtype=self._machine.sum_dtype)
        unseen: list[StepResult] = []
        reported = 0
        for step, group in enumerate(_groups(self._batches.epoch(epoch), self._options.accumulate)):
            self._set_lr(epoch, step)
            results = train_step(
                self._trainable,
                runner,
                group,
                self._optimizer,
                self._scaler,
                self._machine,
                self._ranks,
                self._options.clip_norm,
            )
            if self._average is not None:
                self._average.update_parameters(self._trainable.module)
            for result in results:
                sums += torch.stack([result.losses.sum(), result.scores.sum()])
            unseen += results
            is_cpu, is_last = self._machine.device.type == "cpu", step == self.steps_per_epoch - 1
            if is_cpu or is_last or step % _STEPS_BETWEEN_LOOKS == 0:
                check_finite(unseen, self._trainable.objective, f"epoch {epoch}, step {step + 1}", self.lr)
                unseen = []
            if is_last or step % _STEPS_BETWEEN_LOOKS == 0:
                loss = float(results[-1].losses.mean()) if len(results[-1].losses) else math.nan
                self._progress.advance(step + 1 - reported, f"epoch {epoch}, loss {loss:.3f}")
                reported = step + 1
        self._ranks.all_reduce(sums)
        loss, score = (sums / self._batches.count).tolist()
        return {"train_loss": loss, f"train_{self._trainable.objective.score_name}": score}

    def keep_best(self) -> None:
        """Copy the weights if the last epoch was the best."""
        if best_epoch(self.history, self._options.monitor) == len(self.history):
            self.best = _copy_state(self.judged)

    def state(self) -> dict[str, Any]:
        """The complete state needed to resume exactly."""
        return {
            "module": self._trainable.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "history": [asdict(row) for row in self.history],
            "best": self.best,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state`."""
        self._trainable.module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty for training without fp16
            self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self.history, self.best = [EpochRow(**row) for row in state["history"]], state["best"]

    def _set_lr(self, epoch: int, step: int) -> None:
        options = self._options
        monitored = []
        if options.schedule == "plateau":
            monitored = [_monitored(row, options.monitor)[0] for row in self.history]
        done = (epoch - 1) * self.steps_per_epoch + step
        self.lr = options.lr * lr_factor(done, self.steps_per_epoch, options, monitored)
        set_lr(self._optimizer, self._trainable.groups, self.lr)


def best_epoch(history: Iterable[EpochRow], monitor: Monitor) -> int:
    """The epoch with the best monitored value; ties in accuracy go to the lower loss, then to the earlier epoch."""
    return min(history, key=lambda row: _monitored(row, monitor)).epoch


def _monitored(row: EpochRow, monitor: Monitor) -> tuple[float, float]:
    """Sort key: smaller is better."""
    value = row.figures[monitor]
    return (value, 0.0) if monitor.endswith(("loss", "ece", "px", "mae")) else (-value, row.figures["val_loss"])


def _build_average(module: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]


def _groups(batches: Iterator[Batch], size: int) -> Iterator[Sequence[Batch]]:
    while group := list(itertools.islice(batches, size)):
        yield group


def _is_done(history: list[EpochRow], options: FitOptions) -> bool:
    if len(history) >= options.epochs:
        return True
    if options.patience is None or not history:
        return False
    return len(history) - best_epoch(history, options.monitor) >= options.patience


def _copy_state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _epoch_line(row: EpochRow, options: FitOptions) -> str:
    shown = [f"{_spoken(name)} {value:.3f}" for name, value in itertools.islice(row.figures.items(), _LEADING)]
    parts = [f"epoch {row.epoch:>{len(str(options.epochs))}}/{options.epochs}", f"train {' '.join(shown[:2])}"]
    if shown[2:]:
        parts.append(f"val {' '.join(shown[2:])}")
    return "  ".join([*parts, f"{row.images_per_s:.1f} images/s"])


def _spoken(column: str) -> str:
    """`val_top1_accuracy` -> `top-1`, `val_error_px` -> `error px`."""
    name = column.partition("_")[2]
    return "top-1" if name == "top1_accuracy" else name.replace("_", " ")
