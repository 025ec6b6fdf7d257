"""Convert a model file of fixed input size to one that takes images of any size, written only if results stay alike.

The steps: check, write the nodes (`graph`), compare with the fixed-size file on real images, publish. Needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from tl.data.manifests import LabeledImage
from tl.errors import ConfigError, DataError, ImageReadError, ModelFileError, ParityError
from tl.exporter.any_size.graph import INTERPOLATIONS, PREPARED, resizing_alone, with_resizing
from tl.exporter.parity import agreement_of, serve, serve_points
from tl.exporter.publish import (
    NUM_SAMPLES,
    TOLERANCE,
    GoldenSource,
    build_golden,
    check_model_name,
    embed_contract,
    load_model,
    publish,
    synthetic_inputs,
)
from tl.progress import Progress
from tl.runtime.imaging.decode import decode_image, read_size
from tl.runtime.imaging.geometry import crop_to_input, place, working_image
from tl.runtime.imaging.preprocessing import JpegScale, Preprocessing
from tl.runtime.model_file.contract import Contract, Golden
from tl.runtime.model_file.conversions import AnySize
from tl.runtime.model_file.selftest import run_selftest
from tl.runtime.session import Session

# For files that decode JPEGs at full size, and for those that decode them smaller: twice what benchmarks/any_size.py
# measures on real images, 0.012 (where a few values of the input differ by 1 or 2 of 255) and 0.04.
MAX_DIFF: dict[JpegScale, float] = {"full": 0.03, "2x": 0.08}
MAX_DIFF_PX = 0.5
# Levels of 255 on average. An offset of half a pixel causes several on natural images, other rounding 0.3 at most.
MAX_MEAN_PIXEL_DIFF = 0.5
# Another processor may round single pixels differently.
_GOLDEN_TOLERANCE = {name: max(limit, 5e-3) for name, limit in TOLERANCE.items()}
_GOLDEN_TOLERANCE_PX = {"fp32": 0.5}
# The longer side of a golden sample, in input sides: large enough to be resized, small enough to be embedded.
_GOLDEN_SIDE = 1.4
_SYNTHETIC_SIDES = ((1.5, 1.2), (0.8, 1.6), (1.0, 1.0), (2.0, 0.7))


@dataclass(frozen=True)
class AnySizeFile:
    """The finished file and its contract."""

    path: Path
    contract: Contract


def to_any_size(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    images: Sequence[str],
    progress: Progress,
    *,
    golden: GoldenSource = "images",
) -> AnySizeFile:
    """Write a file that resizes images in its graph. `images`: paths of real images, on which both files must agree.

    `keypoints` of the new file are in pixels of the image that it is given.
    Raises `ConfigError`, `ModelFileError`, `DataError`, `ParityError` or `OutputError`.
    """
    check_model_name(out)
    session = Session(model, device="cpu")
    contract = check_convertible(session)
    if Path(out).exists() and Path(out).samefile(model):
        raise ConfigError(f"{os.fspath(out)}: would overwrite the file of fixed size: choose another name")
    if not images:
        raise DataError("no images to compare the two files on", options=["images=DIR"])
    preprocessing = replace(contract.preprocessing, resized_by="graph", jpeg_scale="full")
    proto = _with_resizing(model, contract)
    nothing = AnySize(0, 0, 0.0, 0.0, None, 0.0)
    bare = replace(contract, preprocessing=preprocessing, any_size=nothing, golden=Golden("synthetic", {}, ()))
    if contract.precision == "bf16":  # the graph is of fp32, and has not been compared in bf16 with its resizing
        bare = replace(bare, precision="fp32", quantization=None)
    embed_contract(proto, bare)
    progress.start("any input size", 2 + len(images), "steps")

    def certify(path: Path) -> Contract:
        pixels = _compare_pixels(path, images, contract.preprocessing, progress)
        converted = Session(path, device="cpu")
        progress.advance(note="results")
        found = _compare_results(session, converted, images, pixels)
        samples = _golden(converted, golden, images, bare)
        progress.advance(note="self-test")
        return replace(bare, any_size=found, golden=samples)

    return AnySizeFile(Path(out), publish(proto, out, certify, lambda path: run_selftest(path, device="cpu")))


def check_convertible(session: Session) -> Contract:
    """Return the contract of a file that can be converted. Raises `ModelFileError` with the reason for others."""
    contract = session.contract
    if contract is None:
        raise ModelFileError(f"{session.path}: contains no contract")
    preprocessing, landmarks = contract.preprocessing, contract.landmarks
    reason = None
    if preprocessing.any_size:
        reason = "takes images of any size already"
    elif contract.boxes is not None or (landmarks is not None and landmarks.region != "whole"):
        reason = "uses a region of each image, which a graph of any input size does not choose: use the fixed size"
    elif preprocessing.chooses or preprocessing.num_channels != 3:
        reason = "chooses channels or pages of a file, but a graph of any input size takes RGB: use the fixed size"
    elif preprocessing.interpolation not in INTERPOLATIONS:
        reason = (
            f"resizes with {preprocessing.interpolation}, but ONNX antialiases only {' and '.join(INTERPOLATIONS)}: "
            "use the fixed size, or train with another interpolation"
        )
    if reason is not None:
        raise ModelFileError(f"{session.path}: {reason}")
    return contract


def _with_resizing(model: str | os.PathLike[str], contract: Contract) -> onnx.ModelProto:
    try:
        return with_resizing(load_model(model), contract.preprocessing)
    except ModelFileError as error:
        raise ModelFileError(f"{os.fspath(model)}: {error}") from error


def _compare_pixels(
    path: Path, images: Sequence[str], preprocessing: Preprocessing, progress: Progress
) -> tuple[int, float]:
    """Return the largest and the mean difference of the network's input. Raises `DataError` and `ParityError`."""
    alone = path.with_name(f"{path.name}-resizing.onnx")
    largest, total, faults = 0, 0.0, []
    try:
        alone.write_bytes(resizing_alone(preprocessing).SerializeToString())
        session = Session(alone, device="cpu", require_contract=False)
        for image in images:
            try:
                decoded = decode_image(image, preprocessing)
                wanted = crop_to_input(working_image(decoded, preprocessing), preprocessing)
            except ImageReadError as error:
                faults.append(str(error))
                continue
            (found,) = session.run(decoded[None], [PREPARED])
            difference = np.abs(found[0].astype(np.int16) - wanted)
            largest, total = max(largest, int(difference.max())), total + float(difference.mean())
            progress.advance()
    finally:
        alone.unlink(missing_ok=True)
    if faults:
        raise DataError(f"all images must be readable to compare the two files: {'; '.join(faults[:5])}")
    mean = total / len(images)
    if not mean < MAX_MEAN_PIXEL_DIFF:
        raise ParityError(
            f"the graph resizes {len(images)} images differently than tl.runtime: values differ by {mean:.2g} on "
            f"average (allowed: {MAX_MEAN_PIXEL_DIFF:g}), at most {largest}; no file was written"
        )
    return largest, mean


def _compare_results(fixed: Session, converted: Session, images: Sequence[str], pixels: tuple[int, float]) -> AnySize:
    """Compare the results of `tl.runtime` with both files, from the same images. Raises `ParityError`."""
    contract = check_convertible(fixed)
    agreement, limit, what = None, MAX_DIFF[contract.preprocessing.jpeg_scale], "results"
    if contract.task == "landmarks":
        limit, what = MAX_DIFF_PX, "points, in input pixels,"
        labeled = [LabeledImage(path, path, "") for path in images]
        placements = [place(read_size(path), contract.preprocessing) for path in images]
        before, after = (
            np.stack([p.to_input(xy) for p, xy in zip(placements, serve_points(session, labeled), strict=True)])
            for session in (fixed, converted)
        )
        worst = float(np.abs(after - before).max())
    else:
        wanted, found = (serve(session, images, "the fixed-size file") for session in (fixed, converted))
        worst = float((np.abs(found - wanted) / contract.output_scale).max())
        if contract.task == "classification":
            agreement = agreement_of(found, wanted, 2 * min(worst, limit))  # closer classes are a tie
    report = AnySize(len(images), *pixels, worst, agreement, limit)
    if not worst < limit or (agreement is not None and agreement < 1):
        labels = "" if agreement is None else f", {agreement:.1%} of the labels agree"
        raise ParityError(
            f"{what} of the graph that resizes images differ by {worst:.2g} from those of the fixed-size file on "
            f"{len(images)} images (allowed: {limit:g}){labels}; no file was written"
        )
    return report


def _golden(session: Session, source: GoldenSource, images: Sequence[str], contract: Contract) -> Golden:
    """Build golden samples of several sizes with the outputs of the converted graph itself."""
    inputs = _synthetic(contract.preprocessing) if source == "synthetic" else []
    for path in images[: 4 * NUM_SAMPLES] if source != "synthetic" else []:
        image = Image.fromarray(decode_image(path, contract.preprocessing))
        side = round(_GOLDEN_SIDE * max(contract.preprocessing.input_hw))
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        inputs.append(np.asarray(image))
    expected = np.concatenate([session.run(image[None], [contract.main_output])[0] for image in inputs])
    samples = build_golden(source, inputs, expected, contract.task)
    tolerance = _GOLDEN_TOLERANCE_PX if contract.task == "landmarks" else _GOLDEN_TOLERANCE
    return replace(samples, tolerance=dict(tolerance))


def _synthetic(preprocessing: Preprocessing) -> list[NDArray[np.uint8]]:
    height, width = preprocessing.input_hw
    sizes = [(round(tall * height), round(wide * width)) for tall, wide in _SYNTHETIC_SIDES]
    return [synthetic_inputs((*size, 3))[i] for i, size in enumerate(sizes)]
