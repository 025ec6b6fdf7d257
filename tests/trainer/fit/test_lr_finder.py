from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.trainer.make import (
    Listener,
    assert_same_run,
    make_clouds,
    make_fit_options,
    make_trainable,
    read_rows,
    stop_and_resume,
    train_here,
)
from tl.errors import TrainingError
from tl.progress import Silent
from tl.trainer.fit.batches import TensorBatches
from tl.trainer.fit.loop import Figures, NoCheckpoints, fit
from tl.trainer.fit.machine import Machine
from tl.trainer.fit.steps import TrainableModel
from tl.trainer.fit.trainables import FinderRow, find_lr
from tl.trainer.models.freezing import ParameterGroup
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 100


def network() -> nn.Module:
    """With dropout, and a batch norm whose statistics change in training."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def batches() -> TensorBatches:
    return TensorBatches(*make_clouds(40), batch_size=8, seed=0)


def search(
    machine: Machine, trainable: TrainableModel, optimizer: Any = "adamw", **changes: Any
) -> tuple[float, list[FinderRow]]:
    plain = {"momentum": 0.9, "weight_decay": 1e-4, "seed": 3, "machine": machine, "progress": Silent()}
    return find_lr(trainable, batches(), optimizer, **{**plain, **changes})


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_find_lr__leaves_the_module_as_it_was(cpu: Machine, optimizer: str) -> None:
    module = network()
    before = copy.deepcopy(module.state_dict())
    search(cpu, make_trainable(module), optimizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_find_lr__curve_by_hand(cpu: Machine, optimizer: str) -> None:
    found, rows = search(cpu, make_trainable(network()), optimizer)
    rates = LOWEST * (HIGHEST / LOWEST) ** (np.arange(len(rows)) / (STEPS - 1))
    np.testing.assert_allclose([row.lr for row in rows], rates, rtol=1e-12)  # float64
    # An exponential average that decays by a fifth per step, divided by the sum of its weights.
    weights = [0.2 * 0.8 ** np.arange(i, -1, -1) for i in range(len(rows))]
    losses = np.array([row.loss for row in rows])
    smoothed = [(w * losses[: i + 1]).sum() / w.sum() for i, w in enumerate(weights)]
    np.testing.assert_allclose([row.smoothed_loss for row in rows], smoothed, rtol=1e-9)  # float64, up to 100 terms
    assert found == pytest.approx(rates[int(np.argmin(smoothed))] / 10, rel=1e-12)  # float64
    assert LOWEST / 10 <= found <= HIGHEST / 10


def test_find_lr__training_with_it_lowers_the_loss(cpu: Machine) -> None:
    module = network()
    found, _ = search(cpu, make_trainable(module))
    options = make_fit_options(lr=found, schedule="constant", warmup_epochs=0, monitor="train_loss")

    def judge(judged: nn.Module) -> Figures:
        return {"loss": 1.0}

    history = fit(make_trainable(module), batches(), judge, options, cpu, NoCheckpoints(), Silent())
    # Before training, the loss is about that of a coin flip, 0.69; these clouds are 3 standard deviations apart.
    assert history[-1].figures["train_loss"] < 0.5 * history[0].figures["train_loss"]


def test_find_lr__repeats(cpu: Machine) -> None:
    (first, rows), (again, same) = (search(cpu, make_trainable(network())) for _ in range(2))
    assert (first, rows) == (again, same)


def test_find_lr__stops_where_the_loss_diverges(cpu: Machine) -> None:
    module = nn.Linear(4, 2)
    scaled = dataclasses.replace(make_trainable(module), groups=[ParameterGroup(tuple(module.parameters()), 1e4)])
    _, rows = search(cpu, scaled, "sgd")
    smoothed = [row.smoothed_loss for row in rows]
    assert len(rows) < STEPS
    assert smoothed[-1] > 3 * min(smoothed)
    assert all(value <= 3 * min(smoothed[: i + 1]) for i, value in enumerate(smoothed[:-1]))


def test_find_lr__a_loss_that_overflows_later_ends_the_curve(cpu: Machine) -> None:
    class Grows(nn.Module):
        """Finite for three steps, then not."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.calls = nn.Parameter(torch.zeros(2)), 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls += 1
            return inputs[:, :2] * 0 + self.weight + (float("inf") if self.calls > 3 else 0.0)

    _, rows = search(cpu, make_trainable(Grows()))
    assert len(rows) == 3
    assert all(np.isfinite([row.loss, row.smoothed_loss]).all() for row in rows)


def test_find_lr__not_finite_from_the_start(cpu: Machine) -> None:
    module = network()
    nn.init.constant_(module[0].weight, float("nan"))
    with pytest.raises(TrainingError, match="lr auto: the loss is not finite even at the lowest learning rate, 1e-06"):
        search(cpu, make_trainable(module))


def test_find_lr__rates_are_shares_where_layers_decay(cpu: Machine) -> None:
    # Half the rate for every weight: the same curve, shifted by half a rate.
    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 2))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs @ self.weight

    module = Still()
    inputs, ids = make_clouds(40)
    with torch.no_grad():
        wanted = float(functional.cross_entropy(module(inputs), ids))
    _, rows = search(cpu, make_trainable(module, factor=1e-12), "sgd")
    assert [row.loss for row in rows] == pytest.approx([wanted] * STEPS, rel=1e-6)  # weights hardly change; float32


@pytest.mark.parametrize("method", ["scratch", "features"])
def test_train__auto_is_written_down_and_used(photos: Path, finished_run: Run, tmp_path: Path, method: str) -> None:
    weights = str(finished_run.folder) if method == "features" else "none"
    changes = {"method": method, "weights": weights, "head": "mlp", "optimizer": "adamw", "schedule": "constant"}
    run = train_here(photos, tmp_path / "r", lr="auto", warmup_epochs=0.0, **changes).run
    rows = read_rows(run.folder / "lr_finder.csv")
    lowest = min(rows, key=lambda row: float(row["smoothed_loss"]))
    found = run.load_config().lr
    assert isinstance(found, float)
    assert found == pytest.approx(float(lowest["lr"]) / 10, rel=0.05)  # two digits are kept
    assert [float(row["lr"]) for row in read_rows(run.folder / "history.csv")] == pytest.approx([found] * 2, rel=1e-5)
    # The search has no side effects: a run that sets the found rate is identical.
    (run.folder / "lr_finder.csv").unlink()
    assert_same_run(run, train_here(photos, tmp_path / "given", lr=found, warmup_epochs=0.0, **changes).run)


class StopsSearch(Silent):
    """Presses Ctrl-C in the middle of the search."""

    def __init__(self) -> None:
        self.seen = 0

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.seen += note.startswith("lr ")
        if self.seen == 20:
            raise KeyboardInterrupt


def test_train__resumed_run_does_not_search_again(photos: Path, tmp_path: Path) -> None:
    run = train_here(photos, tmp_path / "r", lr="auto").run
    listener = Listener()
    train(run.load_config(), listener, resume=run)
    assert "searching for a learning rate" not in listener.tasks


def test_train__search_that_was_interrupted_begins_anew(photos: Path, tmp_path: Path) -> None:
    whole = train_here(photos, tmp_path / "whole", lr="auto").run
    run = stop_and_resume(photos, tmp_path / "stopped", StopsSearch(), lr="auto")
    assert_same_run(run, whole)
    assert (run.folder / "lr_finder.csv").read_bytes() == (whole.folder / "lr_finder.csv").read_bytes()
