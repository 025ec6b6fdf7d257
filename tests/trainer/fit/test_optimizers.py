from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tl.trainer.fit.optimizers import build_optimizer, set_lr
from tl.trainer.models.freezing import ParameterGroup


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))  # float64: hand computation within 1e-12


def group_of(*parameters: nn.Parameter, factor: float = 1.0) -> ParameterGroup:
    return ParameterGroup(parameters, factor)


def step(optimizer: torch.optim.Optimizer, weight: nn.Parameter, *gradient: float) -> None:
    weight.grad = torch.tensor(gradient, dtype=torch.float64)
    optimizer.step()


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
    optimizer = build_optimizer(name, [group_of(parameter(1.0))], 0.03, momentum=0.7, weight_decay=0.002)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.03, 0.002)
    if name in ("sgd", "rmsprop"):
        assert group["momentum"] == 0.7
    if name == "sgd":
        assert group["nesterov"]


def test_build_optimizer__sgd_without_momentum_is_plain() -> None:
    weight = parameter(1.0, -2.0)
    optimizer = build_optimizer("sgd", [group_of(weight)], 0.1, momentum=0.0, weight_decay=0.0)
    for _ in range(2):
        step(optimizer, weight, 1.0, 3.0)
    assert weight.tolist() == pytest.approx([1.0 - 0.2, -2.0 - 0.6], abs=1e-12)


def test_build_optimizer__nesterov_by_hand() -> None:
    weight = parameter(1.0)
    optimizer = build_optimizer("sgd", [group_of(weight)], 0.1, momentum=0.5, weight_decay=0.0)
    # v = 0.5 v + g; w = w - lr (g + 0.5 v). v: 2, then 3.
    step(optimizer, weight, 2.0)
    assert weight.item() == pytest.approx(1 - 0.1 * 3.0, abs=1e-12)
    step(optimizer, weight, 2.0)
    assert weight.item() == pytest.approx(0.7 - 0.1 * 3.5, abs=1e-12)


def test_build_optimizer__sgd_weight_decay_is_a_penalty() -> None:
    weight = parameter(4.0)
    optimizer = build_optimizer("sgd", [group_of(weight)], 0.1, momentum=0.0, weight_decay=0.5)
    step(optimizer, weight, 1.0)
    assert weight.item() == pytest.approx(4 - 0.1 * (1 + 0.5 * 4), abs=1e-12)


@pytest.mark.parametrize(("name", "wanted"), [("adam", 4 - 0.1), ("adamw", 4 * (1 - 0.1 * 0.5) - 0.1)])
def test_build_optimizer__adam_first_step_by_hand(name: Any, wanted: float) -> None:
    # Adam's first step is the learning rate for any gradient, including its penalty; AdamW's penalty is separate.
    weight = parameter(4.0)
    optimizer = build_optimizer(name, [group_of(weight)], 0.1, momentum=0.9, weight_decay=0.5)
    step(optimizer, weight, 1.0)
    assert weight.item() == pytest.approx(wanted, abs=1e-8)  # its epsilon is 1e-8, with gradients of 1 to 3


def test_build_optimizer__rmsprop_first_step_by_hand() -> None:
    weight = parameter(4.0)
    optimizer = build_optimizer("rmsprop", [group_of(weight)], 0.1, momentum=0.0, weight_decay=0.0)
    step(optimizer, weight, 2.0)
    assert weight.item() == pytest.approx(4 - 0.1 * 2 / math.sqrt(0.01 * 4), abs=1e-6)  # its epsilon of 1e-8 vs. 0.2


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_build_optimizer__a_parameter_without_gradient_stays(name: Any) -> None:
    frozen, free = parameter(3.0), parameter(1.0)
    frozen.requires_grad_(False)
    optimizer = build_optimizer(name, [group_of(frozen, free)], 0.1, momentum=0.9, weight_decay=0.5)
    for _ in range(3):
        step(optimizer, free, 1.0)
    assert frozen.item() == 3.0
    assert free.item() != 1.0


def test_build_optimizer__each_group_has_its_rate() -> None:
    slow, fast = parameter(0.0), parameter(0.0)
    groups = [group_of(slow, factor=0.25), group_of(fast)]
    optimizer = build_optimizer("sgd", groups, 0.1, momentum=0.0, weight_decay=0.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.1]
    slow.grad = fast.grad = torch.ones(1, dtype=torch.float64)
    optimizer.step()
    assert (slow.item(), fast.item()) == (-0.025, -0.1)


def test_set_lr__keeps_the_shares_and_passes_over_empty_groups() -> None:
    groups = [group_of(parameter(0.0), factor=0.25), ParameterGroup((), 0.5), group_of(parameter(0.0))]
    optimizer = build_optimizer("adamw", groups, 0.1, momentum=0.9, weight_decay=0.0)
    for lr in (0.4, 0.2):  # from the full rate each time, not from the previous one
        set_lr(optimizer, groups, lr)
        assert [group["lr"] for group in optimizer.param_groups] == [lr / 4, lr]


def test_set_lr__survives_a_loaded_state() -> None:
    groups = [group_of(parameter(0.0), factor=0.5), group_of(parameter(0.0))]
    first, second = (build_optimizer("sgd", groups, lr, momentum=0.9, weight_decay=0.0) for lr in (0.1, 7.0))
    second.load_state_dict(first.state_dict())
    set_lr(second, groups, 0.2)
    assert [group["lr"] for group in second.param_groups] == [0.1, 0.2]


def test_build_optimizer__a_solver_is_none() -> None:
    with pytest.raises(ValueError, match="lbfgs is not an optimizer that trains by steps"):
        build_optimizer("lbfgs", [group_of(parameter(1.0))], 0.1, momentum=0.9, weight_decay=0.0)
