"""Derive what is most worth doing after a run, from its scores, errors and findings.

States no rule that the numbers of the page do not show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tl.studies.report.class_sections import WIDE, Judged, doubted_paths
from tl.studies.report.page import Step
from tl.studies.report.point_sections import WIDE as WIDE_ERROR

MOST = 3
# A class is pointed out if its recall is this much below the mean of all classes, with at least `_FEW` images.
_WEAK, _FEW = 0.05, 5
# A point or image is pointed out if its error is this many times the median.
_FAR = 2.0
# What each kind of finding asks for: title, and what it does to the score. "{}" is the number of findings.
_FINDINGS = {
    "labels disagree": ("Correct {} images with two labels", "The same image has different labels, so one is wrong."),
    "duplicate across splits": (
        "Remove {} images that are in two splits",
        "They were trained on and scored, which makes the score too optimistic.",
    ),
    "near duplicate across splits": (
        "Check {} nearly equal images in two splits",
        "If they show the same thing, the score is too optimistic. A group column keeps them in one split.",
    ),
    "point outside": ("Check {} points outside of their image", "A point outside of the image cannot be learned."),
    "equal points": ("Check {} images with equal points", "Two points at one place are often a slip of the mouse."),
    "odd shape": ("Check {} images of odd shape", "Their points differ most from those of all others."),
    "few images": ("Add images to {} small classes", ""),
    "imbalanced classes": ("Balance {} classes", ""),
}


def class_steps(
    scores: Mapping[str, Any],
    judged: Sequence[Judged],
    class_names: Sequence[str],
    findings: Sequence[Mapping[str, str]],
    trained: Mapping[str, int],
) -> list[Step]:
    """The steps of a classifier, most useful first. `trained`: class -> its training images, if known."""
    found = _of_findings(findings)
    grave = [step for kind, step in found if kind in ("labels disagree", "duplicate across splits")]
    steps = [
        *grave,
        *_doubtful(judged),
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
        f"{test_images} test images were kept back. Export the model, then score it once on the test split of "
        f"{run}/manifest.csv with tl evaluate."
    )
    return [Step("Evaluate the test images once", reason, "Data")]


def _doubtful(judged: Sequence[Judged]) -> list[Step]:
    doubted = doubted_paths(judged)
    wrong = sum(each.true_id != each.label_id for each in judged)
    if not doubted:
        return []
    labels = "label" if len(doubted) == 1 else "labels"
    reason = (
        f"{len(doubted)} of {wrong} errors were made with a confidence that is usual for right answers. "
        "If a label is wrong, correct it and train again: tl review shows the images."
    )
    return [Step(f"Check {len(doubted)} doubtful {labels}", reason, "Misclassified")]


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
        f"{counts[i]} of its {count} images are found ({counts[i] / count:.0%}), the least of all classes; {missed} "
        f"are taken for '{class_names[other]}'."
    )
    if trained.get(name):
        reason += f" It has {trained[name]} training images."
    return [Step(f"Add images of '{name}'", reason, "Classes")]


def _interval(scores: Mapping[str, Any]) -> list[Step]:
    low, high, count = scores["ci_low"], scores["ci_high"], scores["n"]
    if high - low <= WIDE:
        return []
    unit = "groups" if "groups" in scores else "images"
    count = scores.get("groups", count)
    reason = (
        f"{count} {unit} leave the accuracy between {low:.0%} and {high:.0%}. About {4 * count:,} would halve that "
        "interval, which shrinks with the square root of their number."
    )
    return [Step(f"Evaluate more {unit}", reason, "Uncertainty")]


def _worst_point(scores: Mapping[str, Any]) -> list[Step]:
    rows = {name: row["error_px"] for name, row in scores["per_keypoint"].items() if row["error_px"] is not None}
    if len(rows) < 3:
        return []
    ordered = sorted(rows, key=lambda name: rows[name])
    name, usual = ordered[-1], rows[ordered[len(rows) // 2]]
    if rows[name] < _FAR * usual:
        return []
    reason = f"Its mean error is {rows[name]:.3g} px, {rows[name] / usual:.1f} times that of the middle point."
    return [Step(f"Check the annotations of '{name}'", reason, "Points")]


def _error_interval(scores: Mapping[str, Any]) -> list[Step]:
    low, high, mean, count = scores["ci_low"], scores["ci_high"], scores["error_px"], scores["n"]
    if high - low <= WIDE_ERROR * mean:
        return []
    reason = (
        f"{count} images leave the mean error between {low:.3g} and {high:.3g} px. About {4 * count:,} would halve "
        "that interval, which shrinks with the square root of their number."
    )
    return [Step("Evaluate more images", reason, "Uncertainty")]


def _of_findings(findings: Sequence[Mapping[str, str]]) -> list[tuple[str, Step]]:
    """One step for each kind of finding that has one, gravest first."""
    counts = Counter(row["kind"] for row in findings)
    steps = []
    for kind, (title, effect) in _FINDINGS.items():
        if counts[kind]:
            first = next(row for row in findings if row["kind"] == kind)
            reason = effect or first["detail"][:1].upper() + first["detail"][1:] + "."
            steps.append((kind, Step(title.format(counts[kind]), reason, "Data")))
    return steps
