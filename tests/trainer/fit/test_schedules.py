from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from tl.trainer.fit.optimizers import SchedulePlan, count_plateaus, lr_factor

# Cosines in float64.
FLOAT64 = 1e-12


def make_plan(schedule: Any, epochs: int = 10, **changes: Any) -> SchedulePlan:
    return SchedulePlan(
        **{
            "schedule": schedule,
            "epochs": epochs,
            "warmup_epochs": 0.0,
            "drop_epochs": 3,
            "drop_factor": 0.1,
            **changes,
        }
    )


def factors(plan: SchedulePlan, steps_per_epoch: int) -> list[float]:
    """The factor of every step of a run."""
    return [lr_factor(step, steps_per_epoch, plan) for step in range(plan.epochs * steps_per_epoch)]


def make_sgd() -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def torch_factors(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[float]:
    """The factors of a torch scheduler, step by step."""
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if len(found) < steps:
            scheduler.step()
    return found


@pytest.mark.parametrize("schedule", ["cosine", "constant", "step", "plateau"])
def test_lr_factor__warmup_by_hand(schedule: str) -> None:
    plan = make_plan(schedule, 10, warmup_epochs=2.0)
    assert factors(plan, 2)[:5] == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5, 1], abs=FLOAT64)


def test_lr_factor__warmup_of_half_an_epoch() -> None:
    plan = make_plan("constant", 4, warmup_epochs=0.5)
    assert factors(plan, 3)[:4] == pytest.approx([1 / 2.5, 2 / 2.5, 1, 1], abs=FLOAT64)  # 1.5 steps


def test_lr_factor__warmup_takes_at_most_half_of_the_epochs() -> None:
    assert factors(make_plan("constant", 2, warmup_epochs=100.0), 2) == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert lr_factor(0, 1, make_plan("cosine", 1, warmup_epochs=1.0)) == pytest.approx(1 / 1.5)


def test_lr_factor__cosine_by_hand() -> None:
    plan = make_plan("cosine", 9, warmup_epochs=1.0)
    found = factors(plan, 1)
    # Eight steps follow the warm-up: cosines of eighths of pi.
    wanted = [0.5, *(0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8))]
    assert found == pytest.approx(wanted, abs=FLOAT64)
    assert found[5] == pytest.approx(0.5, abs=FLOAT64)


def test_lr_factor__cosine_is_torch_s_and_ends_near_0() -> None:
    optimizer = make_sgd()
    wanted = torch_factors(optimizer, CosineAnnealingLR(optimizer, T_max=200), 200)
    found = factors(make_plan("cosine", 20), 10)
    assert found == pytest.approx(wanted, abs=1e-9)  # torch computes each step from the previous one
    assert found[0] == 1.0
    assert found[-1] < 1e-4
    assert (np.diff(found) < 0).all()


def test_lr_factor__constant() -> None:
    assert set(factors(make_plan("constant", 3), 4)) == {1.0}


def test_lr_factor__step_is_torch_s() -> None:
    optimizer = make_sgd()
    by_epoch = torch_factors(optimizer, StepLR(optimizer, step_size=3, gamma=0.1), 10)
    found = factors(make_plan("step", 10), 4)
    assert found == pytest.approx(np.repeat(by_epoch, 4).tolist(), rel=FLOAT64)
    assert found[11:13] == pytest.approx([1.0, 0.1], rel=FLOAT64)  # the third epoch's last step, the fourth's first


@pytest.mark.parametrize("steps", [10, 40, 100, 1000])
def test_lr_factor__onecycle_is_torch_s(steps: int) -> None:
    optimizer = make_sgd()
    scheduler = OneCycleLR(optimizer, max_lr=1.0, total_steps=steps, cycle_momentum=False)
    wanted = torch_factors(optimizer, scheduler, steps)
    found = factors(make_plan("onecycle", 5), steps // 5)
    assert found == pytest.approx(wanted, abs=1e-9)  # the same formula in float64


@pytest.mark.parametrize("steps", [4, 20, 500])
def test_lr_factor__onecycle_begins_peaks_and_ends_as_documented(steps: int) -> None:
    found = factors(make_plan("onecycle", 2, warmup_epochs=1.0), steps // 2)  # it includes its own warm-up
    assert found[0] == pytest.approx(1 / 25, abs=FLOAT64)
    assert found[-1] == pytest.approx(1 / 250_000, abs=FLOAT64)
    peak = int(np.argmax(found))
    assert (np.diff(found[: peak + 1]) > 0).all()
    assert (np.diff(found[peak:]) < 0).all()
    assert abs(peak - 0.3 * steps) <= 1


@pytest.mark.parametrize("schedule", ["cosine", "constant", "onecycle", "step", "plateau"])
@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(1, 1), (1, 2), (2, 1), (3, 1), (1, 7)])
def test_lr_factor__the_shortest_runs_still_learn(schedule: str, epochs: int, steps_per_epoch: int) -> None:
    found = factors(make_plan(schedule, epochs, warmup_epochs=1.0), steps_per_epoch)
    assert all(0 < factor <= 1 for factor in found)
    assert max(found) > 0.3 or (schedule == "onecycle" and len(found) < 3)  # with two steps, one starts and one ends


def test_lr_factor__plateau_by_hand() -> None:
    plan = make_plan("plateau", 20, drop_epochs=2, drop_factor=0.5, warmup_epochs=1.0)
    #          warm-up, best, worse, equal: a drop; better, worse, better, worse, worse: a drop; worse, worse: a drop
    monitored = [0.9, 0.5, 0.6, 0.5, 0.4, 0.6, 0.3, 0.4, 0.4, 0.5, 0.5]
    drops = [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 3]
    found = [lr_factor(3 * epoch, 3, plan, monitored[:epoch]) for epoch in range(12)]
    assert found == pytest.approx([1 / 4, *(0.5**count for count in drops[1:])], abs=FLOAT64)
    within = {lr_factor(3 * 4 + step, 3, plan, monitored[:4]) for step in range(3)}
    assert within == {0.5}


def test_lr_factor__only_plateau_looks_at_the_history() -> None:
    for schedule in ("cosine", "constant", "onecycle", "step"):
        plan = make_plan(schedule)
        assert lr_factor(30, 4, plan, [1.0] * 7) == lr_factor(30, 4, plan)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("drop_epochs", [1, 2, 4])
def test_count_plateaus__is_torch_s(seed: int, drop_epochs: int) -> None:
    monitored = np.random.default_rng(seed).integers(0, 30, 40).tolist()
    optimizer = make_sgd()
    # Torch drops the rate after more than `patience` bad epochs.
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=drop_epochs - 1, threshold=0, eps=0)
    for epoch, value in enumerate(monitored):
        scheduler.step(value)
        drops = count_plateaus(monitored[: epoch + 1], drop_epochs)
        assert 0.5**drops == pytest.approx(optimizer.param_groups[0]["lr"], rel=FLOAT64)


@pytest.mark.parametrize(
    ("monitored", "plateaus"),
    [([], 0), ([1.0], 0), ([3, 2, 1], 0), ([1, 1, 1], 1), ([1, 2, 2, 2, 2], 2), ([-0.5, -0.4, -0.5, -0.6, -0.6], 1)],
)
def test_count_plateaus__by_hand(monitored: list[float], plateaus: int) -> None:
    assert count_plateaus(monitored, 2) == plateaus


def test_count_plateaus__no_number_is_nothing_better() -> None:
    assert count_plateaus([1.0, math.nan, math.nan, 0.5], 2) == 1
    assert count_plateaus([1.0, math.inf, 0.9, math.nan], 2) == 0
