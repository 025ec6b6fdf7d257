"""The training loop: batches and a module in, a better module and its history out; resumable after every epoch.

Knows optimisers, schedules and losses. Does not know pictures, backbones or run folders: it is given batches, a
validation function and a place for checkpoints.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from tl.errors import TrainingError
from tl.trainer.config import Monitor, Optimizer, Schedule
from tl.trainer.machine import Machine
from tl.trainer.progress import Progress

# Epochs over cached features take milliseconds; a line for each would bury the result.
_SECONDS_WORTH_A_LINE = 0.5


@dataclass(frozen=True)
class FitOptions:
    """How to train; `TrainConfig` says what each means."""

    epochs: int
    optimizer: Optimizer
    lr: float
    momentum: float
    weight_decay: float
    schedule: Schedule
    warmup_epochs: float
    label_smoothing: float
    patience: int | None
    monitor: Monitor
    seed: int


@dataclass(frozen=True)
class EpochRow:
    """One row of `history.csv`. `lr` is that of the last step; `seconds` are of the whole epoch."""

    epoch: int
    lr: float
    train_loss: float
    train_top1_accuracy: float
    val_loss: float
    val_top1_accuracy: float
    seconds: float
    images_per_s: float


@dataclass(frozen=True)
class Validation:
    """Loss and accuracy on the validation split."""

    loss: float
    top1_accuracy: float


class Batches(Protocol):
    """Training batches in an order that depends on the epoch alone."""

    count: int

    def __len__(self) -> int:
        """Batches an epoch."""

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, class ids) of one epoch."""


class Checkpoints(Protocol):
    """Where training state is kept."""

    def load_last(self) -> dict[str, Any] | None:
        """The newest state, or None."""

    def save(self, state: dict[str, Any], history: list[EpochRow], *, final: bool) -> None:
        """Keep a state; `final` states are always written, others when it is time."""


def fit(
    module: nn.Module,
    batches: Batches,
    validate: Callable[[], Validation],
    options: FitOptions,
    machine: Machine,
    checkpoints: Checkpoints,
    progress: Progress,
) -> list[EpochRow]:
    """Train `module` (inputs -> logits) and leave it with its best weights. Returns the history, resumed part included.

    Raises `TrainingError` when the loss is no longer finite.
    """
    optimizer = build_optimizer([p for p in module.parameters() if p.requires_grad], options)
    scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.autocast_dtype == torch.float16)
    history: list[EpochRow] = []
    best = _copy_state(module)
    if state := checkpoints.load_last():
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty after training without fp16
            scaler.load_state_dict(state["scaler"])
        history, best = [EpochRow(**row) for row in state["history"]], state["best"]
    progress.start("training", (options.epochs - len(history)) * len(batches), "steps")
    while not _is_done(history, options):
        started = time.perf_counter()
        epoch = len(history) + 1
        torch.manual_seed(options.seed * 100_003 + epoch)  # dropout then depends on seed and epoch alone
        module.train()
        train = _train_epoch(module, batches, epoch, optimizer, scaler, options, machine, progress)
        trained = time.perf_counter() - started
        validation = validate()
        seconds = time.perf_counter() - started
        history.append(
            EpochRow(
                epoch=epoch,
                lr=optimizer.param_groups[0]["lr"],
                train_loss=train.loss,
                train_top1_accuracy=train.top1_accuracy,
                val_loss=validation.loss,
                val_top1_accuracy=validation.top1_accuracy,
                seconds=seconds,
                images_per_s=batches.count / trained,
            )
        )
        if best_epoch(history, options.monitor) == epoch:
            best = _copy_state(module)
        if seconds > _SECONDS_WORTH_A_LINE or _is_done(history, options):
            progress.say(_epoch_line(history[-1], options))
        state = {
            "module": module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "history": [asdict(row) for row in history],
            "best": best,
        }
        checkpoints.save(state, history, final=_is_done(history, options))
    module.load_state_dict(best)
    return history


def best_epoch(history: Iterable[EpochRow], monitor: Monitor) -> int:
    """The epoch with the best monitored value; of equal accuracies the one with the lower loss, then the earlier."""
    if monitor == "val_loss":
        return min(history, key=lambda row: row.val_loss).epoch
    return max(history, key=lambda row: (row.val_top1_accuracy, -row.val_loss)).epoch


def build_optimizer(parameters: list[nn.Parameter], options: FitOptions) -> torch.optim.Optimizer:
    """An optimiser by name, at the peak learning rate."""
    lr, decay, momentum = options.lr, options.weight_decay, options.momentum
    if options.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=momentum, nesterov=momentum > 0, weight_decay=decay)
    if options.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr, momentum=momentum, weight_decay=decay)
    if options.optimizer == "adam":
        return torch.optim.Adam(parameters, lr, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr, weight_decay=decay)


def lr_factor(step: int, steps_per_epoch: int, options: FitOptions) -> float:
    """Share of the peak learning rate at a step counted from 0: linear warm-up, then constant or half a cosine to 0."""
    warmup = min(options.warmup_epochs, options.epochs / 2) * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if options.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1.0, options.epochs * steps_per_epoch - warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def _train_epoch(
    module: nn.Module,
    batches: Batches,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    options: FitOptions,
    machine: Machine,
    progress: Progress,
) -> Validation:
    loss_sum = torch.zeros((), device=machine.device)
    hits = torch.zeros((), device=machine.device, dtype=torch.int64)
    reported = 0
    for b, (inputs, class_ids) in enumerate(batches.epoch(epoch)):
        factor = lr_factor((epoch - 1) * len(batches) + b, len(batches), options)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * factor
        inputs = inputs.to(machine.device, non_blocking=True)
        class_ids = class_ids.to(machine.device, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        with machine.autocast():
            logits = module(inputs)
            loss = functional.cross_entropy(logits, class_ids, label_smoothing=options.label_smoothing)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch lacks its type
        scaler.step(optimizer)
        scaler.update()
        loss_sum += loss.detach() * len(class_ids)
        hits += (logits.detach().argmax(dim=1) == class_ids).sum()
        if b % 10 == 0 or b == len(batches) - 1:  # reading the loss waits for the GPU, so not at every step
            _check_finite(float(loss_sum), epoch, b, options.lr * factor)
            progress.advance(b + 1 - reported, f"epoch {epoch}, loss {float(loss.detach()):.3f}")
            reported = b + 1
    return Validation(float(loss_sum) / batches.count, int(hits) / batches.count)


def _is_done(history: list[EpochRow], options: FitOptions) -> bool:
    if len(history) >= options.epochs:
        return True
    if options.patience is None or not history:
        return False
    return len(history) - best_epoch(history, options.monitor) >= options.patience


def _check_finite(loss_sum: float, epoch: int, batch: int, lr: float) -> None:
    if not math.isfinite(loss_sum):
        raise TrainingError(
            f"epoch {epoch}, step {batch + 1}: the loss is not finite at learning rate {lr:.3g}; "
            "lower --lr (a tenth is a good next try)"
        )


def _copy_state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _epoch_line(row: EpochRow, options: FitOptions) -> str:
    return (
        f"epoch {row.epoch:>{len(str(options.epochs))}}/{options.epochs}  "
        f"train loss {row.train_loss:.3f} top-1 {row.train_top1_accuracy:.3f}  "
        f"val loss {row.val_loss:.3f} top-1 {row.val_top1_accuracy:.3f}  {row.images_per_s:.1f} images/s"
    )
