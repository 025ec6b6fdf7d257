"""Warn about a batch of images as a whole: values far below the maximum, or many images unlike those of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tl.commands.console import warn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tl.runtime.imaging.decode import ImageSource
    from tl.runtime.predictor import Predictor
    from tl.runtime.results import Result


def warn_if_dark(predictor: Predictor[Any], sources: Iterable[ImageSource]) -> None:
    """Warn if the first 16-bit images are far darker than the models expect.

    Addresses are skipped: each image is read from its server once, by the prediction.
    """
    from tl.runtime.imaging.inspection import find_dark
    from tl.runtime.sources.remote import is_remote

    contracts = [session.contract for session in predictor.ensemble.sessions if session.contract is not None]
    darkest = min((contract.preprocessing for contract in contracts), key=lambda one: one.bit_depth_max)
    local = (source for source in sources if not is_remote(source))
    if warning := find_dark(local, darkest.bit_depth_max, darkest):
        warn(f"warning: {warning}")


class OodCount:
    """Count the images of a prediction that are unlike the training images, for a single classifier with a limit."""

    def __init__(self, predictor: Predictor[Any]) -> None:
        sessions = predictor.ensemble.sessions
        contract = sessions[0].contract if len(sessions) == 1 else None
        self._facts = None if contract is None else contract.ood
        self._count = self._unknown = 0

    def see(self, result: Result) -> None:
        """Count one result."""
        score = getattr(result, "ood_score", None)
        if self._facts is not None and score is not None:
            self._count += 1
            self._unknown += not score <= self._facts.limit

    def warn_if_many(self) -> None:
        """Say if these are more than in the data that the model was validated on."""
        from tl.runtime.ensembles.selective import is_unfamiliar

        facts = self._facts
        if facts is None:
            return
        expected = max(facts.false_alarm, 1 / (facts.held_out + 1))  # a few held-out images may be below it by chance
        if not is_unfamiliar(self._unknown, self._count, expected):
            return
        warn(
            f"{self._unknown} of {self._count} images ({self._unknown / self._count:.0%}) are unlike the training "
            f"images; of the held-out images, {facts.false_alarm:.1%} were. This may be another site, camera or "
            "subject, where the accuracy is not known: label some of these images and evaluate the model on them"
        )


class LackingCount:
    """Collect the images of a prediction without a box or a scale. `boxes`, `scales`: their paths."""

    def __init__(self, predictor: Predictor[Any]) -> None:
        from tl.runtime.results import PointFields

        fields = predictor.fields
        self._has_scale = isinstance(fields, PointFields) and fields.with_scale
        self.boxes: list[str] = []
        self.scales: list[str] = []

    def see(self, result: Result) -> None:
        """Look at one result."""
        from tl.runtime.results import Landmarks, NoBox

        if isinstance(result, NoBox):
            self.boxes.append(result.path)
        if self._has_scale and isinstance(result, Landmarks) and result.mm_per_px is None:
            self.scales.append(result.path)

    def warn(self) -> None:
        """Say how many there are, and the first."""
        if scales := self.scales:
            warn(f"{len(scales)} images have no scale, first {scales[0]}: paths in the file are relative to its folder")
        if self.boxes:
            warn(f"{len(self.boxes)} images have no box, and therefore no label; first {self.boxes[0]}")
