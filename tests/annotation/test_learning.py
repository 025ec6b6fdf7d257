"""What is learned anew when labels change, and when only their part in the estimate does."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from tests.annotation.features import make_clouds
from tl.annotation.estimate import estimate_accuracy
from tl.annotation.labels import LABELED, OPEN, UNSURE
from tl.annotation.learning import LabelState, Learning

COUNT = 60


def make_learning(state: list[LabelState]) -> Learning:
    """Learning without its thread; `state[0]` is the current one."""
    matrix, _ = make_clouds(2, COUNT, apart=6)
    features = SimpleNamespace(matrix=matrix, is_ready=np.ones(COUNT, bool))
    return Learning(COUNT, lambda: features, 0, lambda: state[0], lambda: None)  # type: ignore[arg-type,return-value]


def make_state(ids: np.ndarray, is_random: np.ndarray) -> LabelState:
    reserved = np.arange(COUNT) < 30
    return LabelState(ids.astype(np.int32), np.full(COUNT, LABELED, np.uint8), reserved, is_random, ("a", "b"))


def test_learn__the_estimate_follows_what_is_random() -> None:
    ids = make_clouds(2, COUNT, apart=6)[1]
    state = [make_state(ids, np.zeros(COUNT, bool))]
    learning = make_learning(state)
    found = []
    for random in (0, 20, 30, 5):  # as when an image before them in the order is decided, or is open again
        state[0] = make_state(ids, np.arange(COUNT) < random)
        learning._learn()
        estimate = learning.learned.estimate
        found.append(estimate and estimate.n)
    assert found == [None, 20, 30, None]


def test_learn__the_estimate_comes_back_with_the_head() -> None:
    ids, random = make_clouds(2, COUNT, apart=6)[1], np.arange(COUNT) < 30
    state = [make_state(ids, random)]
    learning = make_learning(state)
    for labels, has_estimate in ((ids, True), (np.zeros(COUNT), False), (ids, True)):
        state[0] = make_state(labels, random)
        learning._learn()
        assert (learning.learned.estimate is not None) == has_estimate


def test_learn__the_estimate_knows_the_images_of_the_reserve_that_are_open() -> None:
    matrix, ids = make_clouds(2, COUNT, apart=0.2)
    features = SimpleNamespace(matrix=matrix, is_ready=np.arange(COUNT) != 29)
    state = replace(make_state(ids, np.arange(COUNT) < 15), status=np.full(COUNT, LABELED, np.uint8))
    state.status[15:18], state.status[18:30], state.status[50:] = UNSURE, OPEN, OPEN
    learning = Learning(COUNT, lambda: features, 0, lambda: state, lambda: None)  # type: ignore[arg-type,return-value]
    learning._learn()
    rows = np.flatnonzero(state.status == LABELED)
    own = matrix[rows], ids[rows], state.is_random[rows], ("a", "b")
    assert learning.learned.estimate == estimate_accuracy(*own, unlabeled=matrix[18:29])
    assert learning.learned.estimate != estimate_accuracy(*own)
