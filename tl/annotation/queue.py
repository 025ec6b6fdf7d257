"""What a window labels next: the learner's choice with random images mixed in, and no image in two windows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

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
        self._is_random = frozenset(reserve.tolist())
        self._offered: dict[int, tuple[str, float]] = {}
        self._decided = self._decided_random = 0  # images that were offered and then decided

    def offer(
        self,
        window: str,
        count: int,
        chosen: NDArray[np.intp],
        is_open: NDArray[np.bool_],
        *,
        kept: Sequence[int] = (),
        now: float | None = None,
    ) -> list[int]:
        """Return up to `count` open images, best first. `is_open` bool (N,).

        `kept`: images that the window shows and that stay first, in their order. The share of random images is that of
        all that was decided here and of what is offered now.
        """
        now = time.monotonic() if now is None else now
        self._settle(is_open, now)
        first = [i for i in dict.fromkeys(kept) if is_open[i]][:count]
        is_free = is_open.copy()
        is_free[first] = False
        is_alone = is_free.copy()
        is_alone[[i for i, (other, _) in self._offered.items() if other != window]] = False
        rest = self._mixed(count - len(first), chosen, is_alone, first)
        if not first and not rest:
            rest = self._mixed(count, chosen, is_free, first)
        ids = [*first, *rest]
        self._offered |= dict.fromkeys(ids, (window, now))
        return ids

    def _settle(self, is_open: NDArray[np.bool_], now: float) -> None:
        """Count what was decided since the last offer, and forget old offers."""
        decided = [i for i in self._offered if not is_open[i]]
        self._decided += len(decided)
        self._decided_random += sum(i in self._is_random for i in decided)
        self._offered = {i: one for i, one in self._offered.items() if is_open[i] and now - one[1] < SECONDS_OFFERED}

    def _mixed(self, count: int, chosen: NDArray[np.intp], may: NDArray[np.bool_], first: Sequence[int]) -> list[int]:
        """Spread the random ones evenly, behind the images `first`; if one kind is too few, take more of the other."""
        drawn = self._reserve[may[self._reserve]]
        picked = chosen[may[chosen]]
        if len(picked) < count:
            rest = self._others[may[self._others]]
            picked = np.concatenate([picked, rest[~np.isin(rest, picked)][:count]])
        before = self._decided + len(first)
        lacking = self._share * before - self._decided_random - sum(i in self._is_random for i in first)
        mixed = _spread(iter(drawn.tolist()), iter(picked.tolist()), self._share, 0.5 + lacking)
        return [image for _, image in zip(range(count), mixed, strict=False)]


def _spread(drawn: Iterator[int], picked: Iterator[int], share: float, due: float) -> Iterable[int]:
    """Yield from both, `share` of it from `drawn`, until both are used up. `due`: random images due at the start."""
    while True:
        due += share
        first, second = (drawn, picked) if due >= 1 else (picked, drawn)
        due = due - 1 if due >= 1 else due
        image = next(first, None)
        image = next(second, None) if image is None else image
        if image is None:
            return
        yield image
