"""What a model file says of several labels: thresholds, and the data for sets of labels of any coverage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# How thresholds were chosen: the highest F1, the lowest that reaches a precision, or by other means.
ThresholdRule = Literal["f1", "precision", "fixed"]


@dataclass(frozen=True)
class RiskCurve:
    """How many labels a threshold misses, on `images` held-out images that have a label.

    A set holds the labels with a probability of at least t. `risks`: for each of the ascending `thresholds`, the mean
    share of an image's labels that the set lacks. `source`: description of those images.
    """

    thresholds: tuple[float, ...]
    risks: tuple[float, ...]
    images: int
    source: str

    def __post_init__(self) -> None:
        if not self.thresholds or len(self.thresholds) != len(self.risks) or self.images < 1:
            raise ValueError("a risk curve requires a risk for each threshold, at least one, and images")
        if any(list(values) != sorted(values) for values in (self.thresholds, self.risks)):
            raise ValueError("thresholds and risks of a risk curve must ascend")


@dataclass(frozen=True)
class MultilabelFacts:
    """How the probabilities of a model of several labels were made and are used, in the order of `class_names`.

    `temperatures`: divide the logits before the sigmoid. `thresholds`: an image has a label if its probability is at
    least this. `rule`: how they were chosen; `min_precision`: the precision of rule precision. `curve`: for sets of
    labels; None without held-out images that have a label.
    """

    temperatures: tuple[float, ...]
    thresholds: tuple[float, ...]
    rule: ThresholdRule
    min_precision: float | None
    curve: RiskCurve | None

    def __post_init__(self) -> None:
        if not all(value > 0 for value in self.temperatures) or not all(0 <= value <= 1 for value in self.thresholds):
            raise ValueError("labels require positive temperatures, and thresholds between 0 and 1")
        if (self.rule == "precision") != (self.min_precision is not None):
            raise ValueError(f"min_precision is {self.min_precision} for rule {self.rule!r}")


def set_threshold(curve: RiskCurve, coverage: float) -> float | None:
    """The highest threshold of sets that lack at most 1 - `coverage` of an image's labels on average; None if the
    images are too few to promise that.

    Source: Angelopoulos et al. 2022, "Conformal Risk Control": n / (n + 1) risk + 1 / (n + 1) <= 1 - coverage.
    """
    count = curve.images
    allowed = [
        threshold
        for threshold, risk in zip(curve.thresholds, curve.risks, strict=True)
        if (count * risk + 1) / (count + 1) <= 1 - coverage + 1e-12
    ]
    return max(allowed, default=None)


def check_lengths(facts: MultilabelFacts | None, names: Sequence[str]) -> None:
    """Raise ValueError unless every label has its values."""
    if facts is not None and not len(facts.temperatures) == len(facts.thresholds) == len(names):
        raise ValueError(f"multilabel requires a temperature and a threshold for each of the {len(names)} labels")
