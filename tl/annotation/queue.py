"""What a window labels next: the learner's choice with random images mixed in, and no image in two windows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

# An image that another window was offered is not offered for this time, in which its group is usually labeled.
SECONDS_OFFERED = 240.0


class Queue:
    """Offers images to windows. Not thread-safe: `session` has the lock.

    `reserve`: images drawn at random, in order. `others`: all other images, in an order in which they are offered when
    nothing was chosen. `random_share`: share of an offer that is from the reserve.
    """

    def __init__(self, reserve: NDArray[np.intp], others: NDArray[np.intp], random_share: float) -> None:
        self._reserve, self._others, self._share = reserve, others, random_share
        self._offered: dict[int, tuple[str, float]] = {}

    def offer(
        self, window: str, count: int, chosen: NDArray[np.intp], is_open: NDArray[np.bool_], now: float | None = None
    ) -> list[int]:
        """Return up to `count` open images, best first. `is_open` bool (N,)."""
        now = time.monotonic() if now is None else now
        self._offered = {i: one for i, one in self._offered.items() if is_open[i] and now - one[1] < SECONDS_OFFERED}
        is_free = is_open.copy()
        is_free[[i for i, (other, _) in self._offered.items() if other != window]] = False
        ids = self._mixed(count, chosen, is_free) or self._mixed(count, chosen, is_open)
        self._offered |= dict.fromkeys(ids, (window, now))
        return ids

    def _mixed(self, count: int, chosen: NDArray[np.intp], may: NDArray[np.bool_]) -> list[int]:
        """Spread the random ones evenly; if one kind is too few, take more of the other."""
        drawn = self._reserve[may[self._reserve]]
        picked = chosen[may[chosen]]
        if len(picked) < count:
            rest = self._others[may[self._others]]
            picked = np.concatenate([picked, rest[~np.isin(rest, picked)][:count]])
        wanted = max(round(self._share * count), count - len(picked))
        mixed = _spread(iter(drawn[:wanted].tolist()), iter(picked.tolist()), max(wanted, 1) / count)
        return [image for _, image in zip(range(count), mixed, strict=False)]


def _spread(drawn: Iterator[int], picked: Iterator[int], share: float) -> Iterable[int]:
    """Yield from both, `share` of it from `drawn`, until both are used up."""
    due = 0.5
    while True:
        due += share
        first, second = (drawn, picked) if due >= 1 else (picked, drawn)
        due = due - 1 if due >= 1 else due
        image = next(first, None)
        image = next(second, None) if image is None else image
        if image is None:
            return
        yield image
