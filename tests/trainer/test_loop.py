from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.trainer.make import Listener, StopsAt, timeless
from tl.errors import TrainingError
from tl.trainer.batches import TensorBatches
from tl.trainer.loop import EpochRow, FitOptions, Validation, best_epoch, build_optimizer, fit, lr_factor
from tl.trainer.machine import Machine
from tl.trainer.progress import Progress, Silent

OPTIONS = FitOptions(
    epochs=5,
    optimizer="adamw",
    lr=0.05,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="cosine",
    warmup_epochs=1.0,
    label_smoothing=0.1,
    patience=None,
    monitor="val_top1_accuracy",
    seed=3,
)


class Kept:
    """Checkpoints in memory: every state, and a chosen one to go on from."""

    def __init__(self, last: dict[str, Any] | None = None) -> None:
        self.last, self.states, self.finals = last, [], []

    def load_last(self) -> dict[str, Any] | None:
        return self.last

    def save(self, state: dict[str, Any], history: list[EpochRow], *, final: bool) -> None:
        self.states.append(copy.deepcopy(state))
        self.finals.append(final)


def two_clouds(count: int = 22) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(count) % 2
    return torch.randn(count, 4, generator=generator) + 1.5 * ids[:, None], ids


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))


def validation_of(module: nn.Module) -> Callable[[], Validation]:
    inputs, ids = two_clouds()

    @torch.no_grad()
    def validate() -> Validation:
        logits = module.eval()(inputs)
        hits = (logits.argmax(dim=1) == ids).float().mean()
        return Validation(float(functional.cross_entropy(logits, ids)), float(hits))

    return validate


def run_fit(
    cpu: Machine, options: FitOptions = OPTIONS, kept: Kept | None = None, progress: Progress | None = None
) -> tuple[nn.Module, list[EpochRow], Kept]:
    module, kept = network(), kept or Kept()
    batches = TensorBatches(*two_clouds(), batch_size=8, seed=options.seed)
    history = fit(module, batches, validation_of(module), options, cpu, kept, progress or Silent())
    return module, history, kept


def same_weights(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(tensor, right.state_dict()[name]) for name, tensor in left.state_dict().items())


def row(epoch: int, accuracy: float, loss: float) -> EpochRow:
    return EpochRow(epoch, 0.1, 1.0, 0.5, loss, accuracy, 1.0, 10.0)


def test_fit__same_seed_same_history_and_weights(cpu: Machine) -> None:
    first, history, _ = run_fit(cpu)
    second, again, _ = run_fit(cpu)
    assert timeless(history) == timeless(again)
    assert same_weights(first, second)
    other, other_history, _ = run_fit(cpu, dataclasses.replace(OPTIONS, seed=4))
    assert timeless(history) != timeless(other_history)
    assert not same_weights(first, other)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("after", [1, 3, 5])
def test_fit__resumed_equals_never_interrupted(cpu: Machine, optimizer: Any, after: int) -> None:
    options = dataclasses.replace(OPTIONS, optimizer=optimizer)
    whole, history, kept = run_fit(cpu, options)
    resumed, joined, _ = run_fit(cpu, options, Kept(kept.states[after - 1]))
    assert timeless(joined) == timeless(history)
    assert same_weights(resumed, whole)


def test_fit__interrupt_leaves_the_state_of_the_last_epoch(cpu: Machine) -> None:
    kept = Kept()
    with pytest.raises(KeyboardInterrupt):
        run_fit(cpu, kept=kept, progress=StopsAt(3))
    assert [len(state["history"]) for state in kept.states] == [1, 2]
    assert kept.finals == [False, False]
    whole, history, _ = run_fit(cpu)
    resumed, joined, rest = run_fit(cpu, kept=Kept(kept.states[-1]))
    assert timeless(joined) == timeless(history)
    assert same_weights(resumed, whole)
    assert rest.finals == [False, False, True]


def test_fit__leaves_the_best_weights(cpu: Machine) -> None:
    options = dataclasses.replace(OPTIONS, epochs=8, lr=0.5, monitor="val_loss")
    module, history, kept = run_fit(cpu, options)
    best = min(history, key=lambda r: r.val_loss)
    assert best.epoch != len(history)  # or the test would not tell best from last
    assert validation_of(module)().loss == best.val_loss
    wanted = kept.states[best.epoch - 1]["module"]
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in module.state_dict().items())


def test_fit__history(cpu: Machine) -> None:
    _, history, _ = run_fit(cpu)
    assert [r.epoch for r in history] == [1, 2, 3, 4, 5]
    assert history[-1].train_loss < history[0].train_loss
    assert history[-1].val_top1_accuracy > 0.8
    assert all(r.seconds > 0 and r.images_per_s > 0 for r in history)
    # 22 pictures in batches of 8 are 3 steps; the last of epoch 2 is step 5, 2 steps after a warm-up of 3, of 12.
    assert history[1].lr == pytest.approx(0.05 * 0.5 * (1 + math.cos(math.pi * 2 / 12)), rel=1e-12)  # float64


def test_fit__first_training_loss_by_hand(cpu: Machine) -> None:
    torch.manual_seed(1)
    module = nn.Linear(4, 2)
    inputs, ids = two_clouds()
    with torch.no_grad():
        logits = module(inputs)
        wanted = float(functional.cross_entropy(logits, ids))
    options = dataclasses.replace(OPTIONS, epochs=1, lr=1e-30, label_smoothing=0.0)  # a step that moves nothing
    batches = TensorBatches(inputs, ids, batch_size=8, seed=0)
    (only,) = fit(module, batches, lambda: Validation(1.0, 0.5), options, cpu, Kept(), Silent())
    assert only.train_loss == pytest.approx(wanted, rel=1e-6)  # 22 float32 terms in another order
    assert only.train_top1_accuracy == float((logits.argmax(dim=1) == ids).sum()) / 22


def test_fit__patience_stops(cpu: Machine) -> None:
    losses = iter([0.9, 0.5, 0.6, 0.7, 0.8, 0.4])
    module = nn.Linear(4, 2)
    batches = TensorBatches(*two_clouds(), batch_size=8, seed=0)
    options = dataclasses.replace(OPTIONS, epochs=6, patience=2, monitor="val_loss")
    kept = Kept()
    history = fit(module, batches, lambda: Validation(next(losses), 0.5), options, cpu, kept, Silent())
    assert [r.val_loss for r in history] == [0.9, 0.5, 0.6, 0.7]
    assert kept.finals == [False, False, False, True]


def test_fit__finished_state_trains_no_more(cpu: Machine) -> None:
    whole, history, kept = run_fit(cpu)
    again, same, rest = run_fit(cpu, kept=Kept(kept.states[-1]))
    assert same == history
    assert rest.states == []
    assert same_weights(again, whole)


def test_fit__loss_that_is_not_finite_stops(cpu: Machine) -> None:
    module = nn.Linear(4, 2)
    with torch.no_grad():
        module.weight.fill_(float("nan"))
    batches = TensorBatches(*two_clouds(), batch_size=8, seed=0)
    with pytest.raises(TrainingError, match=r"epoch 1, step 1: the loss is not finite .* lower --lr"):
        fit(module, batches, lambda: Validation(1.0, 0.5), OPTIONS, cpu, Kept(), Silent())


def test_fit__frozen_parameters_stay(cpu: Machine) -> None:
    module = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 2))
    before = module[0].weight.clone()
    batches = TensorBatches(*two_clouds(), batch_size=8, seed=0)
    fit(module, batches, validation_of(module), OPTIONS, cpu, Kept(), Silent())
    assert torch.equal(module[0].weight, before)


def test_fit__reports(cpu: Machine) -> None:
    listener = Listener()
    run_fit(cpu, progress=listener)
    assert listener.tasks == ["training"]
    assert listener.lines[-1].startswith("epoch 5/5  train loss ")


def test_best_epoch__ties() -> None:
    history = [row(1, 0.5, 0.9), row(2, 0.8, 0.7), row(3, 0.8, 0.6), row(4, 0.8, 0.6), row(5, 0.7, 0.1)]
    assert best_epoch(history, "val_top1_accuracy") == 3
    assert best_epoch(history, "val_loss") == 5
    assert best_epoch(history[2:4], "val_loss") == 3


@pytest.mark.parametrize(
    ("schedule", "warmup", "wanted"),
    [
        # 4 epochs of 2 steps. Warm-up of w steps rises by 1/(w + 1); the cosine then falls over the steps left.
        ("constant", 1.0, [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
        ("cosine", 0.0, [0.5 * (1 + math.cos(math.pi * s / 8)) for s in range(8)]),
        ("cosine", 1.0, [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * s / 6)) for s in range(6))]),
        ("constant", 9.0, [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1]),  # at most half of all epochs
    ],
)
def test_lr_factor__by_hand(schedule: Any, warmup: float, wanted: list[float]) -> None:
    options = dataclasses.replace(OPTIONS, epochs=4, schedule=schedule, warmup_epochs=warmup)
    assert [lr_factor(step, 2, options) for step in range(8)] == pytest.approx(wanted, abs=1e-12)  # float64


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("rmsprop", torch.optim.RMSprop),
    ],
)
def test_build_optimizer__values_arrive(name: Any, kind: type) -> None:
    options = dataclasses.replace(OPTIONS, optimizer=name, lr=0.03, momentum=0.7, weight_decay=0.002)
    optimizer = build_optimizer(list(nn.Linear(2, 2).parameters()), options)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.03, 0.002)
    if name in ("sgd", "rmsprop"):
        assert group["momentum"] == 0.7
    if name == "sgd":
        assert group["nesterov"]


def test_build_optimizer__sgd_without_momentum() -> None:
    build_optimizer(list(nn.Linear(2, 2).parameters()), dataclasses.replace(OPTIONS, optimizer="sgd", momentum=0.0))
