"""Problems as rows of a table, for programs. Knows no decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tl.annotation.problems import Evidence, Problem
from tl.annotation.review_items import UNREADABLE

PROBLEM_COLUMNS = ("path", "kind", "score", "label", "suggested", "other", "reason")


def problem_rows(evidence: Evidence, problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Return a row for each problem, in order, with `PROBLEM_COLUMNS`; then one for each unreadable image.

    `path` and `other` name images within the data. `score` has four decimals.
    """
    images = evidence.images
    rows = [
        {
            "path": images[one.index].name,
            "kind": one.kind,
            "score": round(one.score, 4),
            "label": images[one.index].label,
            "suggested": one.suggested or "",
            "other": "" if one.other is None else images[one.other].name,
            "reason": one.reason,
        }
        for one in problems
    ]
    for image, reason in evidence.failed:
        facts = {"path": image.name, "kind": UNREADABLE, "score": 1.0, "label": image.label, "reason": reason}
        rows.append({"suggested": "", "other": ""} | facts)
    return rows
