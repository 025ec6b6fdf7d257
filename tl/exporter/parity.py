"""Proof that a model file computes what was validated, on real pictures; or `ParityError` and no file.

Compares (1) torch with onnxruntime on every output, alone and in batches, and (2) the trainer's evaluation path with
`tl.runtime` from file to result. Knows torch and the runtime. Does not know runs or where pictures come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tl.errors import ParityError
from tl.runtime.contract import Parity
from tl.runtime.ensemble import Ensemble
from tl.runtime.predictor import Predictor
from tl.runtime.results import Failure
from tl.runtime.session import Session

# fp32 sums differ by order alone; a wrong resize or channel order differs by 1e-2 and more.
TOLERANCE = 1e-4
# A training on CUDA may have rounded its convolutions to TF32; another picture or network differs by more.
CLAIM_TOLERANCE = 1e-2
BATCH_SIZES = (1, 8)


def check_parity(
    module: nn.Module, session: Session, paths: Sequence[Path], inputs: NDArray[np.uint8], outputs: Sequence[str]
) -> tuple[Parity, NDArray[np.float32]]:
    """Compare a module with the model file that `session` holds, on the pictures at `paths`.

    `inputs`: the same pictures as the trainer's evaluation sees them, uint8 (N, H, W, 3). `outputs` name the module's
    outputs, `probabilities` first. Returns the report and torch's probabilities (N, C). Raises `ParityError`.
    """
    if len(inputs) == 0:
        raise ParityError("no pictures to check parity on; give some by --parity-images DIR")
    expected = run_torch(module, inputs)
    worst, scaled = dict.fromkeys(outputs, 0.0), dict.fromkeys(outputs, 0.0)
    for size in BATCH_SIZES:
        for start in range(0, len(inputs), size):
            chunk = slice(start, start + size)
            for name, value, wanted in zip(outputs, session.run(inputs[chunk], outputs), expected, strict=True):
                difference = _difference(value, wanted[chunk])
                worst[name] = max(worst[name], difference)
                scaled[name] = max(scaled[name], difference / _scale(name, wanted))
    served = _serve(session, paths)
    pipeline = float(np.abs(served - expected[0]).max())
    agreement = float((served.argmax(axis=1) == expected[0].argmax(axis=1)).mean())
    report = Parity(len(inputs), BATCH_SIZES, worst, pipeline, agreement, TOLERANCE)
    _check(report, scaled)
    return report, expected[0]


def check_claims(
    probabilities: NDArray[np.float32], paths: Sequence[str], claimed: Mapping[str, Sequence[float]]
) -> None:
    """Raise `ParityError` where the network does not give what its training reported for the same pictures.

    `probabilities` (N, C) of `paths`; `claimed` holds rows of `predictions_val.csv` for some of them.
    """
    known = [i for i, path in enumerate(paths) if path in claimed]
    if not known:
        return
    wanted = np.array([claimed[paths[i]] for i in known])
    worst = float(np.abs(probabilities[known] - wanted).max())
    if not worst < CLAIM_TOLERANCE:
        raise ParityError(
            f"the run's predictions_val.csv and its network differ by {worst:.2g} on its own validation pictures "
            f"(allowed: {CLAIM_TOLERANCE:.0e}): the run or a picture was changed; train again; no file was written"
        )


@torch.no_grad()
def run_torch(module: nn.Module, inputs: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """A module's outputs in torch on the CPU, in batches of eight. `inputs`: uint8 (N, H, W, 3)."""
    parts = [module(torch.from_numpy(inputs[i : i + 8])) for i in range(0, len(inputs), 8)]
    return [torch.cat(tensors).float().numpy() for tensors in zip(*parts, strict=True)]


def _difference(value: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.abs(value - wanted).max()) if np.isfinite(value).all() else float("inf")


def _scale(name: str, wanted: NDArray[np.float32]) -> float:
    """Probabilities are compared as they are; other outputs have no bound and are compared with their largest value."""
    return 1.0 if name == "probabilities" else max(1.0, float(np.abs(wanted).max()))


def _serve(session: Session, paths: Sequence[Path]) -> NDArray[np.float32]:
    predictor = Predictor(Ensemble([session]), with_votes=False)
    rows = []
    for result in predictor.predict_iter(paths):
        if isinstance(result, Failure):
            raise ParityError(f"{result.path}: the trainer read this picture, the runtime did not: {result.error}")
        rows.append(result.probabilities)
    return np.stack(rows)


def _check(report: Parity, scaled: dict[str, float]) -> None:
    faults = [
        f"output {name} differs by {value:.2g} between torch and onnxruntime"
        for name, value in scaled.items()
        if not value < report.tolerance
    ]
    if not report.pipeline_max_abs_diff < report.tolerance:
        faults.append(f"probabilities differ by {report.pipeline_max_abs_diff:.2g} between training and runtime")
    if report.top1_agreement < 1:
        faults.append(f"only {report.top1_agreement:.1%} of the labels agree")
    if faults:
        raise ParityError(
            f"parity failed on {report.images} pictures (allowed: {report.tolerance:.0e}): {'; '.join(faults)}; "
            "no file was written"
        )
