"""Find the problems of a labeled data set in the evidence on its images."""

from __future__ import annotations

from collections.abc import Sequence

from tl.annotation.problems.evidence import Evidence
from tl.annotation.problems.problem import KINDS, Problem


def find_problems(evidence: Evidence, kinds: Sequence[str] = tuple(KINDS)) -> list[Problem]:
    """Return the problems of the given kinds, in the order of `KINDS`, and most doubtful first within a kind.

    An image may have problems of several kinds. Raises ValueError for an unknown kind.
    """
    raise NotImplementedError
