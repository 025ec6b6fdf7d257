"""Successive halving: many settings for few epochs, the best of them for more.

Knows ranked settings. Does not train or draw.
Source: Jamieson & Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter Optimization".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tl.studies.leaderboard import Setting
from tl.studies.search import Search, rung_epochs
from tl.studies.study import Cell


def next_rung(settings: Sequence[Setting], search: Search, epochs: Mapping[str, int]) -> list[Cell]:
    """The runs that follow when all there are have ended: the best of the last round, for more epochs.

    `settings`: best validation first. `epochs`: variant -> of its last round. Settings that failed do not go on. Of
    each variant and each combination of what is not searched, one in `factor` does, one at least. Empty when all is
    done.
    """
    groups: dict[tuple[Any, ...], list[Setting]] = {}
    for setting in settings:
        rest = tuple((n, str(v)) for n, v in setting.point if n not in search.ranges and n != "epochs")
        groups.setdefault((setting.variant, rest), []).append(setting)
    cells: list[Cell] = []
    for (variant, _), own in groups.items():
        rungs = rung_epochs(search, epochs[variant])
        reached = max(dict(setting.point)["epochs"] for setting in own)
        if reached not in rungs[:-1]:
            continue
        last = [s for s in own if dict(s.point)["epochs"] == reached]
        good = [setting for setting in last if setting.val is not None]
        best = good[: max(1, len(last) // (search.factor or 1))]
        more = rungs[rungs.index(reached) + 1]
        cells += [run.cell.with_epochs(more) for setting in best for run in setting.done]
    return cells
