"""Derive what is most worth doing after a run, from its scores, errors and findings.

States no rule that the numbers of the page do not show.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tl.studies.report.class_sections import WIDE, Judged, doubted_keys
from tl.studies.report.page import Step
from tl.studies.report.point_sections import WIDE as WIDE_ERROR

MOST = 3
# A class is pointed out if its recall is this much below the mean of all classes, with at least `_FEW` images.
_WEAK, _FEW = 0.05, 5
# A point or image is pointed out if its error is this many times the median.
_FAR = 2.0
_SEEN = "Scores of images that training or selection has seen are too optimistic."


@dataclass(frozen=True)
class _Kind:
    """What a kind of finding asks for: `title` of the step, and the `effect` of doing nothing. `is_reviewed`: whether
    tl review shows such images and writes what was decided about them.

    The finding's own detail is the reason. Titles have no counts: a finding may be of one image, two, or a class, which
    may stand for others, and an image may have several findings.
    """

    title: str
    effect: str = ""
    is_reviewed: bool = False


_FINDINGS = {
    "labels disagree": _Kind("Correct labels of equal images", "One of the labels is wrong.", is_reviewed=True),
    "duplicate across splits": _Kind("Remove duplicates across splits", _SEEN, is_reviewed=True),
    "near duplicate across splits": _Kind(
        "Check nearly equal images in two splits",
        f"{_SEEN} If they show the same object, a group column keeps them in one split.",
        is_reviewed=True,
    ),
    "point outside": _Kind("Check points outside of the image", "A point that is not in the image cannot be learned."),
    "equal points": _Kind("Check images with the same points", "One of them may have the annotation of the other."),
    "odd shape": _Kind("Check annotations of odd shape"),
    "few images": _Kind("Add images to small classes"),
    "imbalanced classes": _Kind("Balance the classes"),
}


def class_steps(
    scores: Mapping[str, Any],
    judged: Sequence[Judged],
    class_names: Sequence[str],
    findings: Sequence[Mapping[str, str]],
    trained: Mapping[str, int],
    review: str = "",
) -> list[Step]:
    """The steps of a classifier, most useful first. `trained`: class -> its training images, if known.

    `review`: as of `review_command`.
    """
    found = _of_findings(findings, review)
    grave = [step for kind, step in found if kind in ("labels disagree", "duplicate across splits")]
    steps = [
        *grave,
        *_doubtful(judged, review),
        *_weakest(scores, class_names, trained),
        *_interval(scores),
        *(step for _, step in found if step not in grave),
    ]
    return steps[:MOST]


def point_steps(scores: Mapping[str, Any], findings: Sequence[Mapping[str, str]]) -> list[Step]:
    """The steps of a landmark model, most useful first."""
    return [*(step for _, step in _of_findings(findings)), *_worst_point(scores), *_error_interval(scores)][:MOST]


def test_step(split: str, test_images: int, run: str) -> list[Step]:
    """The step of a run whose test images have not been scored yet."""
    if split != "val" or not test_images:
        return []
    reason = (
        f"{_counted(test_images, 'test image')} {_were(test_images)} kept back. Export the model, then score it once "
        f"on the test split of {run}/manifest.csv with tl evaluate."
    )
    return [Step("Evaluate the test images once", reason, "Data")]


def review_command(data: str) -> str:
    """The command that shows the problems of a run or data set, and writes the labels as corrected."""
    return shlex.join(["tl", "review", data, "-o", "reviewed.csv"])


def _doubtful(judged: Sequence[Judged], review: str) -> list[Step]:
    doubted = doubted_keys(judged)
    wrong = sum(each.true_id != each.label_id for each in judged)
    if not doubted:
        return []
    reason = (
        f"{len(doubted)} of {_counted(wrong, 'error')} {_were(len(doubted))} made with a confidence that is usual for "
        "right answers. If a label is wrong, correct it and train again."
    )
    return [Step(f"Check {_counted(len(doubted), 'doubtful label')}", reason, "Misclassified", review)]


def _weakest(scores: Mapping[str, Any], class_names: Sequence[str], trained: Mapping[str, int]) -> list[Step]:
    rows = {name: row for name, row in scores["per_class"].items() if row["n"] >= _FEW and row["recall"] is not None}
    if len(rows) < 2:
        return []
    name = min(rows, key=lambda each: (rows[each]["recall"], each))
    if rows[name]["recall"] > sum(row["recall"] for row in rows.values()) / len(rows) - _WEAK:
        return []
    i = list(class_names).index(name)
    counts = scores["confusion"][i]
    missed, other = max((count, j) for j, count in enumerate(counts) if j != i)
    count = sum(counts)
    reason = (
        f"{counts[i]} of its {_counted(count, 'image')} {_are(counts[i])} found ({counts[i] / count:.0%}), the least "
        f"of all classes; {missed} {_are(missed)} taken for '{class_names[other]}'."
    )
    if trained.get(name):
        reason += f" It has {_counted(trained[name], 'training image')}."
    return [Step(f"Add images of '{name}'", reason, "Classes")]


def _interval(scores: Mapping[str, Any]) -> list[Step]:
    low, high, count = scores["ci_low"], scores["ci_high"], scores["n"]
    if high - low <= WIDE:
        return []
    unit = "group" if "groups" in scores else "image"
    count = scores.get("groups", count)
    reason = (
        f"With {_counted(count, unit)}, the accuracy is between {low:.0%} and {high:.0%}. About {4 * count:,} would "
        "halve that interval, which shrinks with the square root of their number."
    )
    return [Step(f"Evaluate more {unit}s", reason, "Uncertainty")]


def _worst_point(scores: Mapping[str, Any]) -> list[Step]:
    rows = {name: row["error_px"] for name, row in scores["per_keypoint"].items() if row["error_px"] is not None}
    if len(rows) < 3:
        return []
    ordered = sorted(rows, key=lambda name: rows[name])
    name, usual = ordered[-1], rows[ordered[len(rows) // 2]]
    if not usual or rows[name] < _FAR * usual:  # no error is a multiple of none
        return []
    reason = f"Its mean error is {rows[name]:.3g} px, {rows[name] / usual:.1f} times that of the middle point."
    return [Step(f"Check the annotations of '{name}'", reason, "Points")]


def _error_interval(scores: Mapping[str, Any]) -> list[Step]:
    low, high, mean, count = scores["ci_low"], scores["ci_high"], scores["error_px"], scores["n"]
    if high - low <= WIDE_ERROR * mean:
        return []
    reason = (
        f"With {_counted(count, 'image')}, the mean error is between {low:.3g} and {high:.3g} px. About {4 * count:,} "
        "would halve that interval, which shrinks with the square root of their number."
    )
    return [Step("Evaluate more images", reason, "Uncertainty")]


def _of_findings(findings: Sequence[Mapping[str, str]], review: str = "") -> list[tuple[str, Step]]:
    """One step for each kind of finding that has one, gravest first."""
    steps = []
    for kind, asked in _FINDINGS.items():
        if found := [row for row in findings if row["kind"] == kind]:
            reason = f"{_example(found)} {asked.effect}".rstrip()
            steps.append((kind, Step(asked.title, reason, "Data", review if asked.is_reviewed else "")))
    return steps


def _example(found: Sequence[Mapping[str, str]]) -> str:
    """The first of the findings of a kind as a sentence, with the number of others."""
    first = found[0]
    images = " and ".join(name for name in (first["path"], first["other"]) if name)
    detail = f"{images}: {first['detail']}" if images else first["detail"][:1].upper() + first["detail"][1:]
    more = f" ({_counted(len(found) - 1, 'more finding')} of this kind)" if len(found) > 1 else ""
    return f"{detail}{more}."


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"
