from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional

from tests.trainer.make import make_fit_options
from tl.errors import TrainingError
from tl.progress import Silent
from tl.trainer.fit.batches import TensorBatches
from tl.trainer.fit.distributed import Ranks
from tl.trainer.fit.loop import EpochRow, NoCheckpoints, fit
from tl.trainer.fit.machine import Machine
from tl.trainer.fit.optimizers import build_optimizer
from tl.trainer.fit.steps import (
    Batch,
    Classification,
    StepResult,
    TrainableModel,
    balanced_class_weights,
    build_scaler,
    check_finite,
    train_step,
)
from tl.trainer.models.freezing import ParameterGroup

NAMES = ("ant", "bee", "cat")


class WithAux(nn.Module):
    """Two classifiers in training, only the first in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.aux = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return (self.main(inputs), self.aux(inputs)) if self.training else self.main(inputs)


def data(count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 4, generator=generator), torch.arange(count) % 3


def linear(seed: int = 1) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(4, 3)


def trainee_of(module: nn.Module, **changes: Any) -> TrainableModel:
    groups = [ParameterGroup(tuple(module.parameters()), 1.0)]
    of_loss = {name: changes.pop(name) for name in ("class_weights", "label_smoothing") if name in changes}
    objective = Classification(NAMES, **of_loss)
    return TrainableModel(module, groups, objective, **changes)


def split(sizes: Sequence[int]) -> list[Batch]:
    inputs, ids = data(sum(sizes))
    return [(x, y, len(x)) for x, y in zip(inputs.split(list(sizes)), ids.split(list(sizes)), strict=True)]


def step(
    trainable: TrainableModel,
    batches: Sequence[Batch],
    machine: Machine,
    *,
    ranks: Ranks | None = None,
    clip_norm: float | None = None,
    lr: float = 0.0,
) -> list[StepResult]:
    """One step of plain SGD; at a rate of 0, gradients remain available for inspection."""
    optimizer = build_optimizer("sgd", trainable.groups, lr, momentum=0.0, weight_decay=0.0)
    scaler = build_scaler(machine)
    return train_step(trainable, trainable.module, batches, optimizer, scaler, machine, ranks or Ranks(), clip_norm)


def gradients(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def whole_gradients(weight: Tensor | None = None, smoothing: float = 0.0, count: int = 8) -> Tensor:
    """Gradients of the mean over all images, computed by torch."""
    module, (inputs, ids) = linear(), data(count)
    losses = functional.cross_entropy(module(inputs), ids, weight=weight, label_smoothing=smoothing, reduction="none")
    losses.mean().backward()
    return gradients(module)


# A float32 sum of eight terms below 1, in a different order.
CLOSE = {"rtol": 0, "atol": 5e-7}


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (5, 3), (2, 5, 1), (1,) * 8])
def test_take_step__accumulated_gradient_is_that_of_the_whole_batch(cpu: Machine, sizes: tuple[int, ...]) -> None:
    module = linear()
    results = step(trainee_of(module), split(sizes), cpu)
    torch.testing.assert_close(gradients(module), whole_gradients(), **CLOSE)
    assert [len(result.losses) for result in results] == list(sizes)


@pytest.mark.parametrize("sizes", [(8,), (5, 3)])
def test_take_step__mean_over_processes_is_the_gradient_of_the_whole_batch(
    cpu: Machine, sizes: tuple[int, ...]
) -> None:
    parts = []
    for rank in (0, 1):  # 8 images as 4 + 4, or 5 as 3 + 2 and 3 as 2 + 1
        module, ranks = linear(), Ranks(rank, 2)
        own = [(ranks.shard(x), ranks.shard(y), n) for x, y, n in split(sizes)]
        step(trainee_of(module), own, cpu, ranks=ranks)
        parts.append(gradients(module))
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole_gradients(), **CLOSE)


def test_take_step__class_weights_and_smoothing_by_hand(cpu: Machine) -> None:
    weights, share = torch.tensor([0.5, 2.0, 1.0]), 0.3
    module, (inputs, ids) = linear(), data()
    (result,) = step(trainee_of(module, class_weights=weights, label_smoothing=share), split([8]), cpu)
    with torch.no_grad():
        logs = module(inputs).double().log_softmax(dim=1)
    targets = (1 - share) * functional.one_hot(ids, 3) + share / 3
    wanted = -(targets * weights * logs).sum(dim=1)
    # float32 logits of magnitude 1, with float64 from there on.
    torch.testing.assert_close(result.losses.double(), wanted, rtol=0, atol=2e-6)
    # The mean is over images, not weights: a rare class contributes more, in proportion to its weight.
    torch.testing.assert_close(gradients(module), whole_gradients(weights, share), **CLOSE)


@pytest.mark.parametrize("training", [True, False])
def test_take_step__auxiliary_loss(cpu: Machine, training: bool) -> None:
    module = WithAux().train(training)
    (result,) = step(trainee_of(module), split([8]), cpu)
    inputs, ids = data()
    with torch.no_grad():
        main, aux = (
            functional.cross_entropy(part(inputs), ids, reduction="none") for part in (module.main, module.aux)
        )
        assert torch.equal(result.scores, module.main(inputs).argmax(dim=1) == ids)
    # torchvision's reference training: the auxiliary loss has a weight of 0.4.
    torch.testing.assert_close(result.losses, main + 0.4 * aux if training else main)  # one float32 rounding
    assert (module.aux.weight.grad is not None) == training


def test_take_step__scores_and_targets(cpu: Machine) -> None:
    module = nn.Linear(3, 3)
    with torch.no_grad():
        module.weight.copy_(torch.eye(3))
        module.bias.zero_()
    shown, true = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 2, 2, 1])
    (result,) = step(trainee_of(module), [(functional.one_hot(shown, 3).float(), true, 4)], cpu)
    assert result.scores.tolist() == [True, False, True, True]
    assert result.targets.tolist() == true.tolist()
    assert not result.losses.requires_grad  # otherwise the graphs of a whole epoch would stay in memory


def test_take_step__old_gradients_do_not_count(cpu: Machine) -> None:
    module = linear()
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    step(trainee_of(module), split([8]), cpu)
    torch.testing.assert_close(gradients(module), whole_gradients(), **CLOSE)


@pytest.mark.parametrize(("clip_norm", "is_scaled"), [(0.01, True), (1e3, False)])
def test_take_step__clips_the_norm_of_the_whole_gradient(cpu: Machine, clip_norm: float, is_scaled: bool) -> None:
    module, before = linear(), torch.cat([p.detach().flatten() for p in linear().parameters()])
    step(trainee_of(module), split([5, 3]), cpu, clip_norm=clip_norm, lr=1.0)
    moved = before - torch.cat([p.detach().flatten() for p in module.parameters()])
    whole = whole_gradients()
    wanted = whole * (clip_norm / whole.norm()) if is_scaled else whole
    # Weights below 1 resolve a step to 2^-24; torch divides by the norm plus 1e-6.
    torch.testing.assert_close(moved, wanted, rtol=1e-4, atol=2e-7)


def test_take_step__mixes_what_it_is_given(cpu: Machine) -> None:
    def mix(images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return images.flip(0), functional.one_hot(ids, 3).flip(0).float()

    module, (inputs, ids) = linear(), data()
    (result,) = step(trainee_of(module, mix=mix), split([8]), cpu)
    wanted = functional.cross_entropy(module(inputs), ids, reduction="none").detach()
    torch.testing.assert_close(result.losses, wanted.flip(0))  # torch's two target formats differ by rounding
    assert result.targets.tolist() == ids.tolist()


def result_of(losses: Sequence[float], ids: Sequence[int]) -> StepResult:
    return StepResult(torch.tensor(losses), torch.ones(len(ids), dtype=torch.bool), torch.tensor(ids))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([result_of([1.0, NAN, 2.0], [0, 1, 2])], ["epoch 3, step 7: ", "1 of 3 images", "(class 'bee')"]),
        ([result_of([INF, NAN], [2, 0])], ["2 of 2 images", "(class 'ant', 'cat')"]),
        ([result_of([NAN, NAN, NAN], [1, 1, 1])], ["3 of 3 images", "(class 'bee')"]),
        ([result_of([1.0], [0]), result_of([-INF], [2]), result_of([1.0], [0])], ["step 7, 2 of the last 3 batches: "]),
    ],
)
def test_check_finite__names_step_class_rate_and_cure(results: list[StepResult], words: list[str]) -> None:
    with pytest.raises(TrainingError, match=r"at learning rate 0\.0123; lower it") as caught:
        check_finite(results, Classification(NAMES), "epoch 3, step 7", 0.01234)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_check_finite__many_classes_are_not_all_listed() -> None:
    with pytest.raises(TrainingError, match=r"\(class 'a', 'b', 'c' and others\)"):
        check_finite([result_of([NAN] * 5, [4, 3, 2, 1, 0])], Classification("abcde"), "here", 1.0)


def test_check_finite__quiet_where_all_is_well() -> None:
    check_finite([result_of([1.0, 1e30], [0, 1]), result_of([], [])], Classification(NAMES), "here", 1.0)
    check_finite([], Classification(NAMES), "here", 1.0)


@pytest.mark.parametrize("ids", [[0, 0, 0, 1], [2, 1, 0, 0, 0, 0, 1], [0, 1, 2, 3] * 5])
def test_balanced_class_weights__as_scikit_learn(ids: list[int]) -> None:
    classes = max(ids) + 1
    wanted = compute_class_weight("balanced", classes=np.arange(classes), y=np.array(ids))
    weights = balanced_class_weights(ids, classes)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights.numpy(), wanted, rtol=1e-6)  # one float32 division
    assert float(weights[ids].mean()) == pytest.approx(1, rel=1e-6)  # the learning rate keeps its meaning


def test_balanced_class_weights__a_class_without_images_is_finite() -> None:
    assert balanced_class_weights([0, 0, 2, 2], 3).tolist() == pytest.approx([4 / 6, 4 / 3, 4 / 6], rel=1e-6)  # float32


def fit_linear(machine: Machine, batch_size: int, accumulate: int) -> tuple[list[EpochRow], Tensor]:
    changes = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-3, "clip_norm": 0.5, "ema_decay": 0.5}
    module, options = linear(), make_fit_options(epochs=3, accumulate=accumulate, monitor="val_loss", **changes)
    batches = TensorBatches(*data(22), batch_size=batch_size, seed=0)
    trainable, found = trainee_of(module), {"loss": 1.0, "top1_accuracy": 1.0}
    history = fit(trainable, batches, lambda judged: found, options, machine, NoCheckpoints(), Silent())
    return history, torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 2), (2, 4)])
def test_fit__accumulating_is_a_larger_batch(cpu: Machine, batch_size: int, accumulate: int) -> None:
    # 22 images: three steps of 8, 8 and 6, in six batches of at most 4 or eleven of 2.
    large, large_weights = fit_linear(cpu, 8, 1)
    small, small_weights = fit_linear(cpu, batch_size, accumulate)
    assert [row.lr for row in small] == [row.lr for row in large]
    for ours, theirs in zip(small, large, strict=True):
        # Weights differ by float32 rounding.
        assert ours.figures["train_loss"] == pytest.approx(theirs.figures["train_loss"], rel=1e-5)
    # Nine steps of at most 0.1, each with a rounding of 2^-24 for weights below 1; momentum amplifies this tenfold.
    torch.testing.assert_close(small_weights, large_weights, rtol=0, atol=5e-6)
