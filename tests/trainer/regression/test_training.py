from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from tests.integration.test_regression import number_config
from tests.integration.test_regression import squares as squares
from tests.trainer.make import StopsAt, timeless_file
from tl.errors import RunInterrupted
from tl.exporter.export import export_run
from tl.progress import Silent
from tl.trainer.heads.ridge import cross_validate_ridge, solve_ridge
from tl.trainer.heads.solvers import feature_scale
from tl.trainer.regression.training import RegressedNumbers, rescale_output
from tl.trainer.train import train


def test_solve_ridge__as_scikit_learn_for_each_target_where_it_is_known() -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(30, 8)), rng.normal(size=(30, 2))
    targets[3, 1] = np.nan
    (head,) = solve_ridge((features, targets), [0.5])
    mean, scale = feature_scale(features, "ridge")
    for t, known in enumerate([np.arange(30), np.delete(np.arange(30), 3)]):
        model = Ridge(alpha=2).fit(((features - mean) / scale)[known], targets[known, t])
        expected = model.predict((features - mean) / scale)
        assert head.logits(features)[:, t] == pytest.approx(expected, abs=1e-9)


def test_cross_validate_ridge__held_out_rows_are_not_seen() -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(40, 60)), rng.normal(size=(40, 1))  # nothing to learn, and all can be fitted
    folds = [(np.setdiff1d(np.arange(40), np.arange(k, 40, 4)), np.arange(k, 40, 4)) for k in range(4)]
    found = cross_validate_ridge((features, targets), folds, [1e-6, 1e6])
    assert np.mean((found.head.logits(features) - targets) ** 2) < 1.1
    assert np.mean((found.held_out - targets) ** 2) > 0.7
    assert found.head.c == 1e-6
    assert [trial.c for trial in found.trials] == [1e-6, 1e6]


def test_regressed_numbers__losses_by_hand() -> None:
    found = torch.tensor([[1.0, 5.0], [0.0, 3.0]])
    true = torch.tensor([[3.0, float("nan")], [0.5, 1.0]])
    assert RegressedNumbers("mse").losses(found, true).tolist() == [4.0, (0.25 + 4) / 2]
    assert RegressedNumbers("smooth_l1").losses(found, true).tolist() == [1.5, (0.125 + 1.5) / 2]
    assert RegressedNumbers("quantile", 0.9).losses(found, true).tolist() == pytest.approx([1.8, (0.45 + 0.2) / 2])
    assert RegressedNumbers("mse").scores(found, true).tolist() == [2.0, 1.25]
    bad = RegressedNumbers("mse").figures(np.array([[np.inf]]), np.array([[1.0]], np.float32))
    assert all(np.isnan(list(bad.values())))


def test_regressed_numbers__a_missing_number_has_no_gradient() -> None:
    found = torch.zeros(1, 2, requires_grad=True)
    RegressedNumbers("mse").losses(found, torch.tensor([[2.0, float("nan")]])).sum().backward()
    assert found.grad.tolist() == [[-4.0, 0.0]]


def test_rescale_output__gives_the_user_s_unit() -> None:
    head = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    inputs = torch.randn(5, 3)
    before = head(inputs).detach()
    scale = type("Scale", (), {"std": np.array([10.0, 0.5]), "mean": np.array([100.0, -1.0])})()
    rescale_output(head, scale)
    expected = before * torch.tensor([10.0, 0.5]) + torch.tensor([100.0, -1.0])
    torch.testing.assert_close(head(inputs), expected, rtol=1e-5, atol=1e-4)  # float32 sums


@pytest.mark.parametrize("loss", ["mse", "quantile"])
def test_train__fine_tuning_is_resumed_exactly_and_exported(squares: Path, tmp_path: Path, loss: str) -> None:
    options = {"method": "finetune", "epochs": 3, "batch_size": 8, "number_loss": loss, "target": ("area",)}
    config = number_config(squares, tmp_path / "whole", **options | {"unit": ("px2",)})
    whole = train(config, Silent()).run
    stopped = dataclasses.replace(config, out=str(tmp_path / "stopped"))
    with pytest.raises(RunInterrupted):
        train(stopped, StopsAt(2))
    resumed = train(stopped, Silent(), resume=type(whole)(tmp_path / "stopped")).run
    assert timeless_file(resumed.folder / "history.csv") == timeless_file(whole.folder / "history.csv")
    assert (resumed.folder / "predictions_val.csv").read_text() == (whole.folder / "predictions_val.csv").read_text()
    assert list(whole.rows("history.csv")[0])[2:6] == ["train_loss", "train_scaled_mae", "val_loss", "val_scaled_mae"]
    export_run(whole, tmp_path / "m.onnx", Silent())
