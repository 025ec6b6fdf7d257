"""Run a model file's golden samples on this machine to check that it still computes what was validated."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl.errors import ModelFileError, ParityError
from tl.runtime.model_file.contract import Contract, GoldenSample, Precision
from tl.runtime.session import Session

MAX_SECONDS = 300.0
# Far above what an export embeds, and little to decode.
MAX_GOLDEN_PIXELS = 1 << 24


@dataclass(frozen=True)
class SelfTest:
    """Result of a self-test over `samples` golden samples, run one at a time and, if they are of one size, as a batch.

    `precision`: in which the network was computed. `max_abs_diff`: largest difference in a probability, in a coordinate
    in pixels of the sample, or in a number in standard deviations.
    """

    provider: str
    precision: Precision
    samples: int
    max_abs_diff: float
    tolerance: float


def run_selftest(
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    threads: int | None = None,
    max_seconds: float = MAX_SECONDS,
) -> SelfTest:
    """Open a file and run its golden samples: see `run_golden_samples`."""
    return run_golden_samples(Session(path, device=device, threads=threads), max_seconds=max_seconds)


def run_golden_samples(session: Session, *, max_seconds: float = MAX_SECONDS) -> SelfTest:
    """Run the golden samples. Raises `ParityError` if they differ by more than the contract's tolerance.

    `max_seconds`: raises `ModelFileError` if the model computes longer than this, as an endless loop would.
    """
    contract = session.contract
    if contract is None or not contract.golden.samples:
        raise ModelFileError(f"{session.path}: contains no golden samples to verify")
    images = [golden_image(sample, contract, session.path) for sample in contract.golden.samples]
    alike = [np.stack(images)] if len({image.shape for image in images}) == 1 else []  # a batch has one size
    expected = np.array([sample.expected for sample in contract.golden.samples], np.float32)
    alone = [image[None] for image in images]
    found = _results(session, [*alike, *alone], contract.main_output, max_seconds)
    if contract.ood is not None:
        _results(session, alike or alone, "ood_score", max_seconds)  # must be finite
    differences = np.abs(np.concatenate(found).reshape(-1, *expected.shape) - expected) / contract.output_scale
    worst = float(differences.max()) if np.isfinite(differences).all() else float("inf")
    tolerance = contract.golden.tolerance.get(session.precision)
    if tolerance is None:
        raise ModelFileError(f"{session.path}: its contract contains no tolerance for precision {session.precision!r}")
    if worst > tolerance:
        raise ParityError(
            f"{session.path}: on {session.provider} the golden samples differ by {worst:.2g}, allowed "
            f"{tolerance:.2g}: do not use it on this machine (run tl doctor to find the cause)"
        )
    return SelfTest(session.provider, session.precision, len(images), worst, tolerance)


def _results(
    session: Session, batches: Sequence[NDArray[np.uint8]], output: str, max_seconds: float
) -> list[NDArray[np.float32]]:
    """Run all batches in `max_seconds`."""
    ends = time.monotonic() + max_seconds
    results = []
    for batch in batches:
        left = max(ends - time.monotonic(), 0.001)
        try:
            results.append(session.run(batch, [output], max_seconds=left)[0])
        except ModelFileError as error:
            if time.monotonic() < ends:
                raise
            raise ModelFileError(
                f"{session.path}: the self-test did not finish within {max_seconds:g} s: the model loops without end, "
                "or this machine is too slow for it",
                options=["max_seconds=3600"],
            ) from error
    return results


def golden_image(sample: GoldenSample, contract: Contract, where: str) -> NDArray[np.uint8]:
    """Return the input of a golden sample: uint8 (H, W, 3) RGB, or (H, W, C). Raises `ModelFileError` if damaged.

    Its size is the input size, or at most `MAX_GOLDEN_PIXELS` pixels if the graph takes any size.
    """
    height, width, channels = contract.preprocessing.input_shape
    mode, planes = ("RGB", 1) if channels == 3 else ("L", channels)
    is_any_size = contract.preprocessing.any_size
    try:
        with Image.open(BytesIO(base64.b64decode(sample.png, validate=True)), formats=("PNG",)) as image:
            is_of_size = (image.height, image.width) == (planes * height, width)
            if is_any_size:
                is_of_size = image.height * image.width <= MAX_GOLDEN_PIXELS
            if not is_of_size or image.mode != mode:
                raise ValueError(f"is {image.mode} {image.width}x{image.height}")
            pixels = np.array(image)
            return (
                pixels if channels == 3 else np.ascontiguousarray(np.moveaxis(pixels.reshape(-1, height, width), 0, -1))
            )
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:  # the types that Pillow raises
        raise ModelFileError(f"{where}: a golden sample is damaged ({error})") from error


def encode_golden_png(image: NDArray[np.uint8]) -> str:
    """Encode uint8 (H, W, 3) RGB as the base64 text of a PNG; (H, W, C) as a gray PNG, one channel below the other."""
    if image.shape[2] != 3:
        image = np.ascontiguousarray(np.moveaxis(image, -1, 0)).reshape(-1, image.shape[1])
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
