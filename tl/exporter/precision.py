"""Export a run in fp16, bf16 or int8. The file is kept only if it agrees with its fp32 original and is faster here.

The fp32 file is built and verified against torch first (`export`). All comparisons here are with that file, on the
run's validation images and on the requested device. Conversion is in `quantization`. For bf16 nothing is converted: the
file has the same fp32 graph, and its contract allows OpenVINO to compute it in bf16, since the two were compared here.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from tl.data.images import check_readable, load_images
from tl.data.manifests import LabeledImage
from tl.errors import ConfigError, DataError, DeviceError, ModelFileError, PrecisionError
from tl.evaluation.metrics import wilson_interval
from tl.exporter.export import Exported, export_run
from tl.exporter.export_source import ExtraOutputs
from tl.exporter.parity import spread
from tl.exporter.publish import GoldenSource, check_model_name, publish
from tl.exporter.quantization import INT8_WAYS, to_fp16, to_int8
from tl.exporter.speed_comparison import WON_ROUNDS, SpeedComparison, compare_speed, run_all
from tl.progress import Progress
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.model_file.contract import Golden, GoldenSample
from tl.runtime.model_file.conversions import Quantization
from tl.runtime.model_file.selftest import golden_image, run_selftest
from tl.runtime.session import Session
from tl.trainer.run_folder.run import Run

# A larger validation split is subsampled evenly to this many images, which measure agreement to half a percent.
MAX_JUDGED = 1000
_LEAST_PROBABILITY = 1e-12
_FP16_WAY = "fp16, with the last layer and softmax in fp32"
_BF16_WAY = "bf16 inside OpenVINO, compared with onnxruntime on the CPU; fp32 on other devices"


@dataclass(frozen=True)
class Lowering:
    """Conversion options. `min_agreement` in [0, 1]; `calibration_images` of the training split, drawn with `seed`.

    `device`: where agreement and speed are measured; bf16 in OpenVINO is compared with fp32 in onnxruntime on the CPU.
    `keep_slower`: keep a file that is not faster there. `taxonomy`: as in `ExtraOutputs`.
    """

    precision: Literal["fp16", "bf16", "int8"]
    min_agreement: float = 0.99
    calibration_images: int = 100
    seed: int = 0
    device: str = "auto"
    keep_slower: bool = False
    taxonomy: str | None = None

    def __post_init__(self) -> None:
        if self.precision == "bf16" and self.device not in ("auto", "openvino"):
            raise ConfigError(
                f"bf16 is computed by OpenVINO only, not on device {self.device!r}", options=["device=openvino"]
            )

    @property
    def plain_device(self) -> str:
        """Where the fp32 graph is computed."""
        return "cpu" if self.precision == "bf16" else self.device

    @property
    def lower_device(self) -> str:
        """Where the lower precision is computed."""
        return "openvino" if self.precision == "bf16" else self.device


@dataclass(frozen=True)
class _Trial:
    """A converted graph at `path`, compared with the fp32 one. `max_abs_diff`: difference of probabilities, or inf."""

    way: str
    model: onnx.ModelProto
    path: Path
    agreement: float
    max_abs_diff: float


def export_lowered(
    run: Run,
    out: str | os.PathLike[str],
    progress: Progress,
    lowering: Lowering,
    *,
    parity_images: Sequence[str | os.PathLike[str]] = (),
    golden: GoldenSource = "validation",
) -> Exported:
    """Export a run's best network in lower precision.

    Raises what `export_run` raises, `DeviceError`, and `PrecisionError` if the file is not worth keeping.
    """
    check_model_name(out)
    config = run.load_config()
    if config.task != "classification":
        raise ConfigError(f"precision {lowering.precision} applies only to classifiers; other files are always fp32")
    judged, calibration = _choose(run, lowering)
    with TemporaryDirectory(prefix="tl-") as folder:
        plain = export_run(
            run,
            Path(folder) / "fp32.onnx",
            progress,
            parity_images=parity_images,
            golden=golden,
            further=ExtraOutputs(unknown=False, taxonomy=lowering.taxonomy),
        )
        preprocessing = plain.contract.preprocessing
        images, ranges = _read(judged, preprocessing, progress), _read(calibration, preprocessing, progress)
        held_out = None
        if config.refit:
            by_key = run.held_out_predictions(plain.contract.class_names)
            held_out = np.array([by_key[image.key] for image in judged], np.float64)
        trial, result = _choose_way(plain.path, images, ranges, held_out, lowering, progress)
        quantization = _quantization(trial, result, len(images), len(ranges), lowering)
        _check_worth_keeping(quantization, trial, lowering)
        contract = replace(
            plain.contract,
            precision=lowering.precision,
            quantization=quantization,
            golden=plain.contract.golden
            if lowering.precision == "bf16"
            else _regolden(plain, _open(trial.path, lowering)),
        )
        publish(trial.model, out, lambda _: contract, lambda path: run_selftest(path, device=lowering.lower_device))
    return Exported(Path(out), contract)


def _choose(run: Run, lowering: Lowering) -> tuple[list[LabeledImage], list[LabeledImage]]:
    """Validation images for the comparison, and training images for range calibration (int8 only)."""
    judged, train = spread(run.images("val"), MAX_JUDGED), run.images("train")
    if not judged:
        raise DataError(
            "the run's validation images no longer exist, but lower precision is compared on them: restore them"
        )
    if lowering.precision != "int8":
        return judged, []
    if not train:
        raise DataError(
            "the run's training images no longer exist, but int8 ranges are calibrated on them: restore them"
        )
    count = min(lowering.calibration_images, len(train))
    return judged, random.Random(lowering.seed).sample(train, count)


def _read(images: Sequence[LabeledImage], preprocessing: Preprocessing, progress: Progress) -> NDArray[np.uint8]:
    """The images as network inputs, uint8 (N, H, W, 3)."""
    if not images:
        return np.empty((0, *preprocessing.input_shape), np.uint8)
    store, bad = load_images(images, preprocessing, "ram", progress)
    check_readable(bad, "all images must be readable to compare lower precision: fix or remove them")
    return np.stack([store.input(i) for i in range(len(store.images))])


def _choose_way(
    plain: Path,
    images: NDArray[np.uint8],
    ranges: NDArray[np.uint8],
    held_out: NDArray[np.float64] | None,
    lowering: Lowering,
    progress: Progress,
) -> tuple[_Trial, SpeedComparison]:
    """The first method that agrees well enough and is faster; else the fastest that agrees; else the best agreement.

    `held_out`: probabilities (N, C) from networks that have not seen the images, if the exported one has. Writes files
    beside `plain`.
    """
    wanted = run_all(Session(plain, device=lowering.plain_device, threads=1), images)
    model = onnx.load(plain)
    if lowering.precision == "bf16":
        found = run_all(_open(plain, lowering), images)
        trial = _Trial(_BF16_WAY, model, plain, *_compare(found, wanted, held_out))
        return trial, _race(plain, plain, images, lowering, progress)
    ways = INT8_WAYS if lowering.precision == "int8" else (None,)
    raced: list[tuple[_Trial, SpeedComparison]] = []
    others: list[_Trial] = []
    for number, way in enumerate(ways, 1):
        progress.start(f"{lowering.precision}, variant {number} of {len(ways)}", 1, "ways")
        lower = to_fp16(model) if way is None else to_int8(model, ranges, way)
        path = plain.with_name(f"{number}.onnx")
        path.write_bytes(lower.SerializeToString())
        found = run_all(_open(path, lowering), images)
        trial = _Trial(way.text if way else _FP16_WAY, lower, path, *_compare(found, wanted, held_out))
        progress.advance(note=f"agreement {trial.agreement:.1%}")
        if trial.agreement < lowering.min_agreement:
            others.append(trial)
            continue
        raced.append((trial, _race(plain, path, images, lowering, progress)))
        if raced[-1][1].is_faster:
            return raced[-1]
    if raced:
        return max(raced, key=lambda pair: pair[1].speedup)
    best = max(others, key=lambda trial: trial.agreement)
    return best, _race(plain, best.path, images, lowering, progress)


def _race(
    plain: Path, path: Path, images: NDArray[np.uint8], lowering: Lowering, progress: Progress
) -> SpeedComparison:
    sessions = Session(plain, device=lowering.plain_device, threads=1), _open(path, lowering)
    return compare_speed(*sessions, images, progress)


def _open(path: Path, lowering: Lowering) -> Session:
    if lowering.precision == "bf16":
        session = Session(path, device=lowering.lower_device, threads=1, precision="bf16")
        if session.precision != "bf16":
            raise DeviceError("bf16 cannot be compared here: this processor has no bf16, so OpenVINO would use fp32")
        return session
    try:
        return Session(path, device=lowering.device, threads=1, require_contract=False)
    except ModelFileError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise PrecisionError(
            f"{lowering.precision} was rejected: {reason}; no file was written", options=["precision=fp32"]
        ) from error


def _compare(
    found: NDArray[np.float32], wanted: NDArray[np.float32], held_out: NDArray[np.float64] | None
) -> tuple[float, float]:
    """Fraction of equal labels and largest difference of probabilities (N, C). Rows with NaN never agree.

    A network is more certain of images that it was fitted to, so that their labels change less. With `held_out`, the
    labels compared are those of the held-out probabilities, before and after the change of the logits that the
    conversion causes.
    """
    is_finite = np.isfinite(found).all(axis=1)
    before, after = wanted.astype(np.float64), found.astype(np.float64)
    if held_out is not None:
        logs = [np.log(np.maximum(part, _LEAST_PROBABILITY)) for part in (held_out, before, after)]
        before, after = logs[0], logs[0] + logs[2] - logs[1]
    agrees = is_finite & (after.argmax(axis=1) == before.argmax(axis=1))
    return float(agrees.mean()), float(np.abs(found - wanted).max()) if is_finite.all() else math.inf


def _quantization(
    trial: _Trial, result: SpeedComparison, judged: int, calibrated: int, lowering: Lowering
) -> Quantization:
    return Quantization(
        method=trial.way,
        calibration_images=calibrated,
        seed=lowering.seed,
        images=judged,
        top1_agreement=trial.agreement,
        max_abs_diff=trial.max_abs_diff,
        speedup=result.speedup,
        slowest=result.slowest,
        fastest=result.fastest,
        rounds=result.rounds,
        faster_rounds=result.faster_rounds,
        provider=result.provider,
        processor=result.processor,
        threads=result.threads,
        batch_size=result.batch_size,
        kept_slower=not result.is_faster,
    )


def _check_worth_keeping(found: Quantization, trial: _Trial, lowering: Lowering) -> None:
    """Raise `PrecisionError` with both numbers and the fix if the file disagrees too often or is no faster."""
    required, cures = [], []
    if found.top1_agreement < lowering.min_agreement or not math.isfinite(trial.max_abs_diff):
        required.append(f"{lowering.min_agreement:.1%} agreement")
        if lowering.precision == "int8":
            cures.append("precision=fp16")
        if math.isfinite(trial.max_abs_diff):
            cures.append(f"min_agreement={math.floor(found.top1_agreement * 1000) / 1000:g}")
    if found.kept_slower and not lowering.keep_slower:
        required.append(f"faster than fp32 in at least {WON_ROUNDS} of {found.rounds} rounds")
        cures.append("keep_slower")
    if required:
        raise PrecisionError(
            f"{lowering.precision} was rejected: {describe(found)}; required: {' and '.join(required)}; no file was "
            "written",
            options=cures,
        )


def describe(found: Quantization) -> str:
    """Agreement and speedup, and their basis, in one line."""
    agreeing = round(found.top1_agreement * found.images)
    low, _ = wilson_interval(agreeing, found.images)
    rest = f"{agreeing} of {found.images} validation images: at least {low:.1%} with 95% confidence"
    base = "fp32 in onnxruntime" if found.method == _BF16_WAY else "fp32"
    spread = f"{found.slowest:.2f} to {found.fastest:.2f} in {found.rounds} rounds"
    return (
        f"top-1 agreement with fp32 {found.top1_agreement:.1%} ({rest}; "
        f"probabilities differ by at most {found.max_abs_diff:.2g}), "
        f"speed {found.speedup:.2f} x {base} ({spread}) on {found.provider} ({found.processor})"
    )


def _regolden(plain: Exported, session: Session) -> Golden:
    """Golden samples with the new graph's outputs: fp32's outputs cannot test whether a machine computes this graph."""
    contract, golden = plain.contract, plain.contract.golden
    images = np.stack([golden_image(sample, contract, str(plain.path)) for sample in golden.samples])
    answers = run_all(session, images)
    samples = [
        GoldenSample(sample.png, tuple(float(p) for p in row))
        for sample, row in zip(golden.samples, answers, strict=True)
    ]
    return replace(golden, samples=tuple(samples))
