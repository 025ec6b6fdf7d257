"""Does a model file give the outputs that its original gave, on the same pictures? `ParityError` if not.

Compares (1) every output of the session, alone and in batches, and (2) `tl.runtime` from file to result. Knows sessions
and arrays. Does not know what the original is or how it was run, so it needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tl.errors import ParityError
from tl.runtime.contract import Parity
from tl.runtime.decode import ImageSource
from tl.runtime.ensemble import Ensemble
from tl.runtime.predictor import Predictor
from tl.runtime.results import Failure
from tl.runtime.session import Session

Item = TypeVar("Item")

# fp32 sums differ by order alone; a wrong resize or channel order differs by 1e-2 and more.
TOLERANCE = 1e-4
BATCH_SIZES = (1, 8)
# Two classes closer than this share of the tolerance are a tie, which rounding decides: seen once in 64 photos.
_TIE = 0.1


@dataclass(frozen=True)
class Original:
    """What messages call the original: what computed its outputs, its way from file to result, and who went it."""

    network: str
    pipeline: str
    reader: str


def check_outputs(
    session: Session,
    sources: Sequence[ImageSource],
    inputs: NDArray[np.uint8],
    expected: Mapping[str, NDArray[np.float32]],
    original: Original,
    tolerance: float = TOLERANCE,
) -> Parity:
    """Compare what `session` gives with what the original gave.

    `sources`: the pictures; `inputs`: the same, uint8 (N, H, W, 3), as the original saw them. `expected`: output name
    -> the original's values (N, ...), with `probabilities` among them. `tolerance` bounds the probabilities'
    differences; those of other outputs it bounds as a share of their largest value.
    Raises `ParityError`.
    """
    outputs = list(expected)
    worst, scaled = dict.fromkeys(outputs, 0.0), dict.fromkeys(outputs, 0.0)
    for size in BATCH_SIZES:
        for start in range(0, len(inputs), size):
            chunk = slice(start, start + size)
            for name, value in zip(outputs, session.run(inputs[chunk], outputs), strict=True):
                difference = _difference(value, expected[name][chunk])
                worst[name] = max(worst[name], difference)
                scaled[name] = max(scaled[name], difference / _scale(name, expected[name]))
    wanted = expected["probabilities"]
    served = _serve(session, sources, original.reader)
    pipeline = float(np.abs(served - wanted).max())
    agreement = _agreement(served, wanted, _TIE * tolerance)
    report = Parity(len(inputs), BATCH_SIZES, worst, pipeline, agreement, tolerance)
    _check(report, scaled, original)
    return report


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` (2 or more) of the items, evenly spread over them, as a sorted list's classes are."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _agreement(served: NDArray[np.float32], wanted: NDArray[np.float32], tie: float) -> float:
    """Share of pictures whose served label is the original's, or tied with it there."""
    chosen = np.take_along_axis(wanted, served.argmax(axis=1)[:, None], axis=1)[:, 0]
    return float((chosen >= wanted.max(axis=1) - tie).mean())


def _difference(value: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.abs(value - wanted).max()) if np.isfinite(value).all() else float("inf")


def _scale(name: str, wanted: NDArray[np.float32]) -> float:
    """Probabilities are compared as they are; other outputs have no bound and are compared with their largest value."""
    return 1.0 if name == "probabilities" else max(1.0, float(np.abs(wanted).max()))


def _serve(session: Session, sources: Sequence[ImageSource], reader: str) -> NDArray[np.float32]:
    predictor = Predictor(Ensemble([session]), with_votes=False)
    rows = []
    for result in predictor.predict_iter(sources):
        if isinstance(result, Failure):
            raise ParityError(f"{result.path}: {reader} read this picture, the runtime did not: {result.error}")
        rows.append(result.probabilities)
    return np.stack(rows)


def _check(report: Parity, scaled: dict[str, float], original: Original) -> None:
    faults = [
        f"output {name} differs by {value:.2g} between {original.network} and onnxruntime"
        for name, value in scaled.items()
        if not value < report.tolerance
    ]
    if not report.pipeline_max_abs_diff < report.tolerance:
        faults.append(
            f"probabilities differ by {report.pipeline_max_abs_diff:.2g} between {original.pipeline} and runtime"
        )
    if report.top1_agreement is not None and report.top1_agreement < 1:
        faults.append(f"only {report.top1_agreement:.1%} of the labels agree")
    if faults:
        raise ParityError(
            f"parity failed on {report.images} pictures (allowed: {report.tolerance:.0e}): {'; '.join(faults)}; "
            "no file was written"
        )
