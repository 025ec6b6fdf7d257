"""Say in a sentence how good a model is, and choose the images that show it. Knows no run folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tl.studies.report.class_sections import Judged

# Images in the strip of examples.
_RIGHT, _WRONG = 4, 4


def class_headline(scores: Mapping[str, Any], images: str) -> str:
    """The sentence on a classifier. `images`: what was scored, such as "validation images"."""
    count, accuracy = scores["n"], scores["top1_accuracy"]
    largest = max((row["n"] for row in scores["per_class"].values()), default=0)
    text = (
        f"The model is right for {round(accuracy * count)} of {count} {images}: {accuracy:.1%} "
        f"(95% interval {scores['ci_low']:.1%} to {scores['ci_high']:.1%})."
    )
    if count:
        text += f" Always naming the largest class would be right for {largest / count:.1%}."
    return text


def point_headline(scores: Mapping[str, Any], points: int, images: str) -> str:
    """The sentence on a landmark model."""
    text = (
        f"The model places {points} points with a mean error of {scores['error_px']:.3g} px (95% interval "
        f"{scores['ci_low']:.3g} to {scores['ci_high']:.3g} px) on {scores['n']} {images}."
    )
    if scores.get("extent_error") is not None:
        text += f" That is {scores['extent_error']:.1%} of the extent of the points."
    return text


def number_headline(scores: Mapping[str, Any], unit: str, images: str) -> str:
    """The sentence on a model that predicts numbers."""
    return (
        f"The model is off by {scores['mae']:.3g}{unit} on average (95% interval {scores['ci_low']:.3g} to "
        f"{scores['ci_high']:.3g}) on {scores['n']} {images}. Always naming the training mean would be off by "
        f"{scores['baseline_mae']:.3g}{unit}."
    )


def label_headline(scores: Mapping[str, Any], images: str) -> str:
    """The sentence on a model that gives several labels."""
    return (
        f"The model reaches a mean average precision of {scores['map']:.3f} (95% interval {scores['ci_low']:.3f} to "
        f"{scores['ci_high']:.3f}) on {scores['n']} {images}; all labels are right for {scores['subset_accuracy']:.1%}."
    )


def examples(judged: Sequence[Judged]) -> list[Judged]:
    """Images to show first: some right ones, of different classes, and the errors of highest confidence."""
    right = sorted((each for each in judged if each.is_right), key=lambda each: -each.confidence)
    wrong = sorted((each for each in judged if not each.is_right), key=lambda each: -each.confidence)
    return [*spread_over_classes(right, _RIGHT), *spread_over_classes(wrong, _WRONG)]


def spread_over_classes(judged: Sequence[Judged], count: int) -> list[Judged]:
    """The first images of each class in turn, at most `count`."""
    turns: dict[int, int] = {}
    placed = []
    for place, each in enumerate(judged):
        turn = turns[each.true_id] = turns.get(each.true_id, -1) + 1
        placed.append((turn, place, each))
    return [each for _, _, each in sorted(placed, key=lambda found: found[:2])[:count]]
