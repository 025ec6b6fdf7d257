"""Learn from the labels while people label: a thread fits a head again, and updates suggestions, choice and estimate.

What it has learned is published as one object that never changes, so that requests need not wait for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tl.annotation.estimate import Estimate, estimate_accuracy
from tl.annotation.features import PhotoFeatures
from tl.annotation.labels import LABELED, OPEN
from tl.annotation.learner import FittedHead, fit_head
from tl.annotation.selection import choose_images

# Images chosen at a time: enough for several windows until the next choice.
CHOSEN = 240
# Labels that follow each other are learned together; new features alone do not hurry.
_SECONDS_AFTER_LABEL, _SECONDS_AFTER_FEATURES = 0.25, 2.0
# The estimate waits for a pause in labeling, but not longer than this.
_SECONDS_BETWEEN_ESTIMATES = 10.0
_log = logging.getLogger(__name__)

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class LabelState:
    """Copies of what is learned from. `reserved` bool (N,): never chosen; `is_random` bool (N,): a random sample.

    `groups` (N,): as in `Photos.group`; empty without groups.
    """

    label: NDArray[np.int32]
    status: NDArray[np.uint8]
    reserved: NDArray[np.bool_]
    is_random: NDArray[np.bool_]
    class_names: tuple[str, ...]
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Learned:
    """What the head says. `best` int32 (N,): class id of the most probable class, -1 for an image without features.

    `confidence` float32 (N,): its probability. `probabilities` float32 (N, C): of `class_ids` (C,). `chosen`: which to
    label next, best first. `fitted_to`: number of labels; 0 without a head. `seconds`: that fitting took.
    """

    best: NDArray[np.int32]
    confidence: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    class_ids: Indices
    chosen: Indices = field(default_factory=lambda: np.zeros(0, np.intp))
    fitted_to: int = 0
    seconds: float = 0.0
    estimate: Estimate | None = None

    def top(self, image: int, count: int = 3) -> list[tuple[int, float]]:
        """Return the most probable class ids of an image with their probabilities; none without features."""
        if not self.fitted_to or self.best[image] < 0:
            return []
        row = self.probabilities[image]
        places = np.argsort(-row, kind="stable")[:count]
        return [(int(self.class_ids[i]), float(row[i])) for i in places]


def nothing_learned(count: int) -> Learned:
    """Return what is known of `count` images before there is a head."""
    none = np.zeros((count, 0), np.float32)
    return Learned(np.full(count, -1, np.int32), np.zeros(count, np.float32), none, np.zeros(0, np.intp))


class Learning:
    """The thread. `learned`: what it has published last. `is_fitting`: whether it is at work.

    `count`: of images. `features` returns those computed so far, None if there are none. `state` returns a copy of the
    labels. `told` is called when something was published.
    """

    def __init__(
        self,
        count: int,
        features: Callable[[], PhotoFeatures | None],
        seed: int,
        state: Callable[[], LabelState],
        told: Callable[[], None],
    ) -> None:
        self._features, self._seed, self._state, self._told = features, seed, state, told
        self.learned = nothing_learned(count)
        self.is_fitting = False
        self._head: FittedHead | None = None
        self._fitted: tuple[bytes, bytes] = (b"", b"")
        self._estimated, self._estimated_at = (b"", b"", b""), -_SECONDS_BETWEEN_ESTIMATES
        self._wake = threading.Condition()
        self._has_labels = self._has_features = self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="learning", daemon=True)

    def start(self) -> None:
        """Begin to learn."""
        self._has_labels = True
        self._thread.start()

    def wake(self, *, is_label: bool) -> None:
        """Learn soon: labels have changed, or there are more features."""
        with self._wake:
            self._has_labels |= is_label
            self._has_features |= not is_label
            self._wake.notify()

    def close(self) -> None:
        """Stop after the step in progress."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while self._wait():
            try:
                self._learn()
            except Exception:  # the page goes on without new suggestions
                _log.exception("a fault of this program while learning")
            finally:
                self.is_fitting = False
                self._told()

    def _wait(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._has_labels or self._has_features or self._is_closed)
            pause = _SECONDS_AFTER_LABEL if self._has_labels else _SECONDS_AFTER_FEATURES
            ends = time.monotonic() + pause
            # A label that comes while features are waited for shortens the pause.
            while not self._is_closed and (left := ends - time.monotonic()) > 0:
                had_labels = self._has_labels
                self._wake.wait(left)
                if self._has_labels and not had_labels:
                    ends = min(ends, time.monotonic() + _SECONDS_AFTER_LABEL)
            self._has_labels = self._has_features = False
            return not self._is_closed

    @property
    def _is_pressed(self) -> bool:
        """Whether there are new labels to learn from, or the program ends."""
        return self._has_labels or self._is_closed

    def _learn(self) -> None:
        state, features = self._state(), self._features()
        if features is None or not features.is_ready.any():
            return
        ready, matrix = features.is_ready.copy(), features.matrix
        rows = np.flatnonzero((state.status == LABELED) & ready)
        class_ids, own = np.unique(state.label[rows].astype(np.intp), return_inverse=True)
        names = tuple(state.class_names[i] for i in class_ids)
        seconds = self.learned.seconds
        key = (rows.tobytes(), state.label[rows].tobytes())
        random = state.is_random[rows]
        if len(class_ids) < 2:
            self._head = None
            self._estimated = (b"", b"", b"")
        elif key != self._fitted or self._head is None:
            self.is_fitting = True
            self._told()
            began = time.monotonic()
            self._head = fit_head(matrix[rows], own.astype(np.int64), names, seed=self._seed)
            seconds = time.monotonic() - began
        self._fitted = key
        learned = self._predict(matrix, ready, class_ids, len(rows), seconds)
        learned = replace(learned, estimate=self.learned.estimate if self._head is not None else None)
        candidates = np.flatnonzero((state.status == OPEN) & ready & ~state.reserved)
        probabilities = learned.probabilities if self._head is not None else None
        chosen = choose_images(matrix, probabilities, candidates, rows, CHOSEN, self._seed + len(rows))
        self.learned = replace(learned, chosen=np.asarray(chosen, np.intp))
        self._told()
        is_due = time.monotonic() - self._estimated_at > _SECONDS_BETWEEN_ESTIMATES or not self._is_pressed
        if self._head is not None and (*key, random.tobytes()) != self._estimated and is_due and not self._is_closed:
            groups = [state.groups[i] for i in rows.tolist()] if state.groups else []
            rest = matrix[(state.status == OPEN) & ready & state.reserved]
            estimate = estimate_accuracy(matrix[rows], own.astype(np.int64), random, names, self._seed, groups, rest)
            self._estimated, self._estimated_at = (*key, random.tobytes()), time.monotonic()
            self.learned = replace(self.learned, estimate=estimate)

    def _predict(
        self, matrix: NDArray[np.float32], ready: NDArray[np.bool_], class_ids: Indices, count: int, seconds: float
    ) -> Learned:
        if self._head is None:
            return nothing_learned(len(ready))
        probabilities = np.full((len(ready), len(class_ids)), 1 / len(class_ids), np.float32)
        known = np.flatnonzero(ready)
        for start in range(0, len(known), 4096):  # bounds the memory of a step
            part = known[start : start + 4096]
            probabilities[part] = self._head.probabilities(matrix[part])
        best = class_ids[probabilities.argmax(axis=1)].astype(np.int32)
        best[~ready] = -1
        return Learned(best, probabilities.max(axis=1), probabilities, class_ids, fitted_to=count, seconds=seconds)
