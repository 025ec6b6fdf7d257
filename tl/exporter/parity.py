"""Proof that a model file computes what was validated, on real pictures; or `ParityError` and no file.

Compares (1) torch with onnxruntime on every output, alone and in batches, and (2) the trainer's evaluation path with
`tl.runtime` from file to result. Knows torch and what a run claims. Does not know runs or where pictures come from, nor
how outputs are compared (`comparison`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tl.errors import ParityError
from tl.exporter.comparison import BATCH_SIZES as BATCH_SIZES
from tl.exporter.comparison import TOLERANCE as TOLERANCE
from tl.exporter.comparison import Original, check_outputs
from tl.runtime.contract import Parity
from tl.runtime.session import Session

# A training on CUDA may have rounded its convolutions to TF32; another picture or network differs by more.
CLAIM_TOLERANCE = 1e-2


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
    wanted = dict(zip(outputs, expected, strict=True))
    report = check_outputs(session, paths, inputs, wanted, Original("torch", "training", "the trainer"))
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
