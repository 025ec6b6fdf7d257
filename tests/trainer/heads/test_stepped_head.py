from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.metrics import f1_score

from tests.trainer.make import timeless
from tl.progress import Silent
from tl.trainer.config import TrainConfig
from tl.trainer.fit.loop import EpochRow, NoCheckpoints
from tl.trainer.fit.machine import Machine
from tl.trainer.fit.steps import Classification
from tl.trainer.heads.stepped_head import Labeled, SteppedHead, build_stepped_head, fit_stepped_head
from tl.trainer.options import resolve


def noise(seed: int, count: int = 40) -> Labeled:
    """Nothing to learn, so that validation scores fluctuate."""
    rng = np.random.default_rng(seed)
    return rng.normal(3, 2, size=(count, 6)).astype(np.float32), np.arange(count) % 2


def fit_on_noise(cpu: Machine, *, keeps_best: bool, **changes: Any) -> tuple[SteppedHead, list[EpochRow]]:
    plain = {"method": "features", "head": "mlp", "head_sizes": (8,), "epochs": 6, "lr": 0.1, "batch_size": 8}
    config = resolve(TrainConfig(**{**plain, **changes}))
    stepped = build_stepped_head(config, noise(0), 2, Classification(("a", "b")), cpu)
    history = fit_stepped_head(stepped, config, noise(1), NoCheckpoints(), Silent(), keeps_best=keeps_best)
    return stepped, history


def scores(logits: NDArray[np.floating], true_ids: NDArray[np.int64]) -> tuple[float, float, float]:
    """Loss, accuracy and macro F1."""
    decided = logits.argmax(axis=1)
    loss = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(true_ids)), true_ids].mean()
    return float(loss), float((decided == true_ids).mean()), float(f1_score(true_ids, decided, average="macro"))


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.5}])
def test_fit_stepped_head__is_left_at_its_best_or_its_last_epoch(cpu: Machine, changes: dict[str, Any]) -> None:
    best_left, history = fit_on_noise(cpu, keeps_best=True, **changes)
    last_left, same = fit_on_noise(cpu, keeps_best=False, **changes)
    assert timeless(history) == timeless(same)
    best = max(history, key=lambda row: (row.figures["val_top1_accuracy"], -row.figures["val_loss"]))
    assert best.epoch < len(history)  # otherwise best and last are indistinguishable
    features, true_ids = noise(1)
    for stepped, row in ((best_left, best), (last_left, history[-1])):
        found = scores(stepped.logits(features), true_ids)
        wanted = [row.figures[name] for name in ("val_loss", "val_top1_accuracy", "val_macro_f1")]
        assert found == pytest.approx(wanted, rel=1e-5)  # float32 losses


def test_stepped_head__tensors_give_the_logits_by_hand(cpu: Machine) -> None:
    stepped, _ = fit_on_noise(cpu, keeps_best=False, head="linear", head_sizes=None)
    train, (features, _) = noise(0)[0], noise(1)
    tensors = stepped.tensors()
    assert set(tensors) == {"head.weight", "head.bias", "standardize.mean", "standardize.std"}
    np.testing.assert_allclose(tensors["standardize.mean"], train.mean(axis=0), rtol=1e-5)  # float32 sums of 40
    np.testing.assert_allclose(tensors["standardize.std"], train.std(axis=0), rtol=1e-5)
    own = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    standardized = (features - own["standardize.mean"]) / own["standardize.std"]
    wanted = standardized @ own["head.weight"].T + own["head.bias"]
    np.testing.assert_allclose(stepped.logits(features), wanted, rtol=0, atol=1e-5)  # float32 sums of six
