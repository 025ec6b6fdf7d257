from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.trainer.make import Listener, StopsAt, make_clouds, make_fit_options, make_row, make_trainable, timeless
from tl.errors import TrainingError
from tl.progress import Progress, Silent
from tl.trainer.fit.batches import TensorBatches
from tl.trainer.fit.loop import EpochRow, Figures, FitOptions, NoCheckpoints, best_epoch, fit
from tl.trainer.fit.machine import Machine

OPTIONS = make_fit_options()


class Kept:
    """Checkpoints in memory: every state, and a chosen one to resume from."""

    def __init__(self, last: dict[str, Any] | None = None) -> None:
        self.last, self.states, self.finals = last, [], []

    def load_last(self) -> dict[str, Any] | None:
        return self.last

    def save(self, state: dict[str, Any], history: list[EpochRow], *, final: bool) -> None:
        self.states.append(copy.deepcopy(state))
        self.finals.append(final)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))


@torch.no_grad()
def validate(module: nn.Module) -> Figures:
    inputs, ids = make_clouds(22)
    logits = module.eval()(inputs)
    hits = (logits.argmax(dim=1) == ids).float().mean()
    return {"loss": float(functional.cross_entropy(logits, ids)), "top1_accuracy": float(hits)}


def validations(losses: Iterable[float]) -> Callable[[nn.Module], Figures]:
    """A validation function that returns the given losses in turn."""
    following = iter(losses)
    return lambda module: {"loss": next(following), "top1_accuracy": 0.5}


def batches_of(seed: int = 0) -> TensorBatches:
    return TensorBatches(*make_clouds(22), batch_size=8, seed=seed)


def run_fit(
    cpu: Machine, options: FitOptions = OPTIONS, kept: Kept | None = None, progress: Progress | None = None, **more: Any
) -> tuple[nn.Module, list[EpochRow], Kept]:
    module, kept = network(), kept or Kept()
    batches = batches_of(options.seed)
    trainable = make_trainable(module, smoothing=0.1)
    history = fit(trainable, batches, validate, options, cpu, kept, progress or Silent(), **more)
    return module, history, kept


def same_weights(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(tensor, right.state_dict()[name]) for name, tensor in left.state_dict().items())


def row(epoch: int, accuracy: float, loss: float) -> EpochRow:
    return make_row(epoch, val=(loss, accuracy))


def test_fit__same_seed_same_history_and_weights(cpu: Machine) -> None:
    first, history, _ = run_fit(cpu)
    second, again, _ = run_fit(cpu)
    assert timeless(history) == timeless(again)
    assert same_weights(first, second)
    other, other_history, _ = run_fit(cpu, dataclasses.replace(OPTIONS, seed=4))
    assert timeless(history) != timeless(other_history)
    assert not same_weights(first, other)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd"},
        {"optimizer": "adam"},
        {"optimizer": "adamw"},
        {"optimizer": "rmsprop"},
        {"ema_decay": 0.8},
        {"accumulate": 2, "clip_norm": 0.1},
        {"schedule": "plateau", "drop_epochs": 1, "monitor": "val_loss", "lr": 0.5},
        {"schedule": "onecycle"},
        {"schedule": "step", "drop_epochs": 1},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
@pytest.mark.parametrize("after", [1, 3, 5])
def test_fit__resumed_equals_never_interrupted(cpu: Machine, changes: dict[str, Any], after: int) -> None:
    options = dataclasses.replace(OPTIONS, **changes)
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
    best = min(history, key=lambda r: r.figures["val_loss"])
    assert best.epoch != len(history)  # otherwise best and last are indistinguishable
    assert validate(module)["loss"] == best.figures["val_loss"]
    wanted = kept.states[best.epoch - 1]["module"]
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_fit__leaves_the_last_weights_without_best_checkpoint_selection(cpu: Machine, ema_decay: float | None) -> None:
    options = dataclasses.replace(OPTIONS, epochs=8, lr=0.5, monitor="val_loss", ema_decay=ema_decay)
    module, history, kept = run_fit(cpu, options, keeps_best=False)
    assert min(history, key=lambda r: r.figures["val_loss"]).epoch != len(
        history
    )  # otherwise best and last are indistinguishable
    assert validate(module)["loss"] == history[-1].figures["val_loss"]
    last, average = kept.states[-1]["module"], kept.states[-1]["average"]
    wanted = last if ema_decay is None else {name: average[f"module.{name}"] for name in last}
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in module.state_dict().items())


def test_fit__history(cpu: Machine) -> None:
    _, history, _ = run_fit(cpu)
    assert [r.epoch for r in history] == [1, 2, 3, 4, 5]
    assert history[-1].figures["train_loss"] < history[0].figures["train_loss"]
    assert history[-1].figures["val_top1_accuracy"] > 0.8
    assert all(r.seconds > 0 and r.images_per_s > 0 for r in history)
    # 22 images in batches of 8 are 3 steps; the last of epoch 2 is step 5, 2 steps after a warm-up of 3, of 12.
    assert history[1].lr == pytest.approx(0.05 * 0.5 * (1 + math.cos(math.pi * 2 / 12)), rel=1e-12)  # float64


def test_fit__first_training_loss_by_hand(cpu: Machine) -> None:
    torch.manual_seed(1)
    module = nn.Linear(4, 2)
    inputs, ids = make_clouds(22)
    with torch.no_grad():
        logits = module(inputs)
        wanted = float(functional.cross_entropy(logits, ids))
    options = dataclasses.replace(OPTIONS, epochs=1, lr=1e-30)  # a negligible step
    trainable = make_trainable(module)
    (only,) = fit(trainable, batches_of(), validations([1.0]), options, cpu, Kept(), Silent())
    assert only.figures["train_loss"] == pytest.approx(wanted, rel=1e-6)  # 22 float32 terms in a different order
    assert only.figures["train_top1_accuracy"] == float((logits.argmax(dim=1) == ids).sum()) / 22


def test_fit__patience_stops(cpu: Machine) -> None:
    losses = [0.9, 0.5, 0.6, 0.7, 0.8, 0.4]
    options = dataclasses.replace(OPTIONS, epochs=6, patience=2, monitor="val_loss")
    kept = Kept()
    trainable = make_trainable(nn.Linear(4, 2), smoothing=0.1)
    history = fit(trainable, batches_of(), validations(losses), options, cpu, kept, Silent())
    assert [r.figures["val_loss"] for r in history] == [0.9, 0.5, 0.6, 0.7]
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
    with pytest.raises(TrainingError, match=r"epoch 1, step 1: the loss of 8 of 8 images is not finite .* lower it"):
        fit(make_trainable(module, smoothing=0.1), batches_of(), validations([1.0]), OPTIONS, cpu, Kept(), Silent())


def test_fit__diverging_loss_names_class_and_learning_rate(cpu: Machine) -> None:
    # The last image is infinite: the error names its batch, its class and the learning rate of the step.
    inputs, ids = make_clouds(22)
    inputs[21] = math.inf
    batches = TensorBatches(inputs, ids, batch_size=8, seed=0)
    step = next(i for i, (rows, _, _) in enumerate(batches.epoch(1)) if torch.isinf(rows).any()) + 1
    with pytest.raises(TrainingError) as caught:
        fit(make_trainable(nn.Linear(4, 2)), batches, validations([1.0]), OPTIONS, cpu, Kept(), Silent())
    text = str(caught.value)
    rate = 0.05 * step / 4  # a warm-up of three steps
    assert text.startswith(f"epoch 1, step {step}: the loss of 1 of ")
    assert f"(class 'b') at learning rate {rate:.3g}; lower it" in text
    assert "\n" not in text


def test_fit__frozen_parameters_stay(cpu: Machine) -> None:
    module = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 2))
    before = module[0].weight.clone()
    fit(make_trainable(module, smoothing=0.1), batches_of(), validate, OPTIONS, cpu, Kept(), Silent())
    assert torch.equal(module[0].weight, before)


def test_fit__averaged_weights_are_validated_and_left_in_the_module(cpu: Machine) -> None:
    # Constant learning rate, plain SGD, one linear layer: the average by hand over every step.
    options = dataclasses.replace(
        OPTIONS, epochs=2, optimizer="sgd", momentum=0.0, weight_decay=0.0, schedule="constant", ema_decay=0.7
    )
    options = dataclasses.replace(options, warmup_epochs=0.0, monitor="val_loss")
    torch.manual_seed(1)
    module = nn.Linear(4, 2)
    plain, average = copy.deepcopy(module), None
    judged = []

    def judge(given: nn.Module) -> Figures:
        judged.append(given.weight.detach().clone())
        return {"loss": 1.0 / len(judged), "top1_accuracy": 0.5}  # improves every time

    for epoch in (1, 2):
        for inputs, ids, _ in batches_of().epoch(epoch):
            plain.zero_grad()
            functional.cross_entropy(plain(inputs), ids).backward()
            with torch.no_grad():
                plain.weight -= 0.05 * plain.weight.grad
                plain.bias -= 0.05 * plain.bias.grad
                # torch's average starts with the weights after the first step.
                average = plain.weight.clone() if average is None else 0.7 * average + 0.3 * plain.weight
    trainable = make_trainable(module)
    fit(trainable, batches_of(), judge, options, cpu, NoCheckpoints(), Silent())
    # float32 through six steps with operations in a different order.
    torch.testing.assert_close(judged[-1], average, rtol=0, atol=1e-6)
    assert torch.equal(module.weight, judged[-1])
    assert not torch.allclose(module.weight, plain.weight, rtol=0, atol=1e-4)


def test_fit__accumulated_batches_count_as_one_step(cpu: Machine) -> None:
    # 22 images in batches of 8 are three batches, and two steps of two and one.
    options = dataclasses.replace(OPTIONS, accumulate=2)
    _, history, kept = run_fit(cpu, options)
    steps = {state["step"].item() for state in kept.states[-1]["optimizer"]["state"].values()}
    assert steps == {10}
    # The last of epoch 2 is step 3, one step after a warm-up of 2, of 8.
    assert history[1].lr == pytest.approx(0.05 * 0.5 * (1 + math.cos(math.pi / 8)), rel=1e-12)  # float64


def test_fit__begins_each_epoch_with_its_number(cpu: Machine) -> None:
    begun: list[int] = []
    module = network()
    trainable = make_trainable(module, smoothing=0.1, begin_epoch=begun.append)
    kept = Kept()
    fit(trainable, batches_of(), validate, dataclasses.replace(OPTIONS, epochs=3), cpu, kept, Silent())
    fit(trainable, batches_of(), validate, dataclasses.replace(OPTIONS, epochs=5), cpu, Kept(kept.states[-1]), Silent())
    assert begun == [1, 2, 3, 4, 5]


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
    ("monitor", "best"),
    [
        ("val_macro_f1", 2),
        ("val_ece", 3),
        ("train_loss", 1),
        ("train_top1_accuracy", 3),
        ("val_loss", 1),
        ("val_top1_accuracy", 2),
    ],
)
def test_best_epoch__of_every_monitor(monitor: Any, best: int) -> None:
    history = [
        make_row(1, (0.2, 0.4), (0.1, 0.5), val_macro_f1=0.3, val_ece=0.3),
        make_row(2, (0.3, 0.5), (0.2, 0.7), val_macro_f1=0.8, val_ece=0.2),
        make_row(3, (0.4, 0.6), (0.3, 0.6), val_macro_f1=0.7, val_ece=0.1),
    ]
    assert best_epoch(history, monitor) == best
