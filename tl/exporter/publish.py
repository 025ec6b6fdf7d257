"""Write a model file: preliminary contract, golden samples, atomic write.

Needs onnx, no torch. Does not depend on what a graph computes or how it is verified.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from tl.errors import ConfigError, ModelFileError
from tl.runtime.ensembles.taxonomy import Taxonomy
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.imaging.regions import BoxCrop
from tl.runtime.model_file.contract import (
    METADATA_KEY,
    OLD_OUTPUTS,
    SCHEMA_VERSION,
    Conformal,
    Contract,
    EnsembleFacts,
    Golden,
    GoldenSample,
    LandmarkFacts,
    OodFacts,
    Parity,
    Precision,
    Provenance,
    RegressionFacts,
    Task,
    dump_contract,
)
from tl.runtime.model_file.label_facts import MultilabelFacts
from tl.runtime.model_file.selftest import encode_golden_png
from tl.runtime.output.files import atomic_path, output_errors
from tl.runtime.session import Session


def opset_of(model: onnx.ModelProto) -> int:
    """The opset version of the standard ONNX operators in a model."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


NUM_SAMPLES = 4
# fp32: summation order. fp16: 11-bit mantissa through some 50 layers, bf16: 8-bit. int8: one step of 1/256 at several
# layers.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "int8": 1e-1}
# For landmarks, in input pixels.
TOLERANCE_PX = {"fp32": 0.05, "fp16": 1.0}

GoldenSource = Literal["validation", "images", "synthetic"]


def build_golden(
    source: GoldenSource,
    inputs: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    expected: NDArray[np.float32],
    task: Task = "classification",
) -> Golden:
    """Samples of inputs uint8 (N, H, W, 3), or of several sizes, with expected outputs: probabilities (N, C), points
    (N, K, 2) or values (N, T).

    Uses the first images of each predicted class, so that several classes are tested; for other tasks, the first
    images. Tolerances of values are in standard deviations.
    """
    is_classes = task == "classification"
    chosen = _spread(expected.argmax(axis=1)) if is_classes else range(min(NUM_SAMPLES, len(expected)))
    samples = tuple(
        GoldenSample(encode_golden_png(inputs[i]), tuple(float(value) for value in expected[i].ravel())) for i in chosen
    )
    return Golden(source, dict(TOLERANCE_PX if task == "landmarks" else TOLERANCE), samples)


def synthetic_inputs(input_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Images without personal data: smooth color gradients, uint8 (4, H, W, C), identical on every machine."""
    height, width, num_channels = input_shape
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    images = []
    for k in range(NUM_SAMPLES):
        channels = [0.5 + 0.5 * np.sin((k + 1) * (3 * x + c * y) + c) for c in range(num_channels)]
        images.append(np.stack(channels, axis=-1))
    return (np.stack(images) * 255).astype(np.uint8)


def _spread(label_ids: NDArray[np.int64]) -> list[int]:
    """Up to four indices: the first image of each label in turn, then further ones."""
    seen: dict[int, int] = {}
    ranked = []
    for place, label_id in enumerate(label_ids.tolist()):
        rank = seen.get(label_id, 0)
        seen[label_id] = rank + 1
        ranked.append((rank, place))
    return [place for _, place in sorted(ranked)[:NUM_SAMPLES]]


def uncertified_contract(
    names: tuple[str, ...],
    preprocessing: Preprocessing,
    outputs: tuple[str, ...],
    provenance: Provenance,
    *,
    precision: Precision = "fp32",
    temperature: float = 1.0,
    landmarks: LandmarkFacts | None = None,
    ensemble: EnsembleFacts | None = None,
    conformal: Conformal | None = None,
    ood: OodFacts | None = None,
    taxonomy: Taxonomy | None = None,
    regression: RegressionFacts | None = None,
    multilabel: MultilabelFacts | None = None,
    boxes: BoxCrop | None = None,
) -> Contract:
    """A preliminary contract without verification results, for temporary files. `names`: of classes or of keypoints."""
    task: Task = "classification" if landmarks is None else "landmarks"
    if regression is not None:
        task, names = "regression", ()
    if multilabel is not None:
        task = "multilabel"
    is_classes = task in ("classification", "multilabel")
    return Contract(
        schema_version=SCHEMA_VERSION,
        task=task,
        precision=precision,
        class_names=names if is_classes else (),
        keypoint_names=() if is_classes else names,
        landmarks=landmarks,
        regression=regression,
        multilabel=multilabel,
        preprocessing=preprocessing,
        outputs=outputs,
        temperature=temperature,
        ensemble=ensemble,
        conformal=conformal,
        ood=ood,
        taxonomy=taxonomy,
        boxes=boxes,
        provenance=provenance,
        parity=Parity(0, (), {}, 0.0, 0.0 if task == "classification" else None, 0.0),
        quantization=None,
        any_size=None,
        golden=Golden("synthetic", {}, ()),
    )


def check_model_name(out: str | os.PathLike[str]) -> None:
    """Raise `ConfigError` for a name that does not end in .onnx."""
    if Path(out).suffix != ".onnx":
        raise ConfigError(f"{os.fspath(out)}: expected a file name that ends in .onnx")


def check_fixed_size(session: Session, doing: str) -> None:
    """Raise `ModelFileError` for a file that takes images of any size, which `doing` ("merge", ...) does not change."""
    if session.takes_any_size:
        raise ModelFileError(
            f"{session.path}: takes images of any size, so it cannot be used here: {doing} the file of fixed size that "
            "it was made from, and convert the result"
        )


MAX_BYTES = 2_000_000_000  # protobuf's limit is 2 GiB


def load_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """A model file's graph, with its outputs under their current names."""
    model = onnx.load(path)
    for output in model.graph.output:
        new = OLD_OUTPUTS.get(output.name, output.name)
        for node in model.graph.node:
            node.input[:] = [new if name == output.name else name for name in node.input]
            node.output[:] = [new if name == output.name else name for name in node.output]
        output.name = new
    return model


def embed_contract(model: onnx.ModelProto, contract: Contract) -> None:
    """Write the contract into the model's metadata, replacing an earlier one."""
    kept = [(prop.key, prop.value) for prop in model.metadata_props if prop.key != METADATA_KEY]
    onnx.helper.set_model_props(model, dict([*kept, (METADATA_KEY, dump_contract(contract))]))


def publish(
    model: onnx.ModelProto,
    out: str | os.PathLike[str],
    certify: Callable[[Path], Contract],
    self_test: Callable[[Path], object],
) -> Contract:
    """Write a model file only after it passes its own checks.

    `certify` runs the graph at a temporary path and returns the final contract, or raises. `self_test` then runs on the
    finished file. Only after both succeed is the file moved to its final name.
    Raises `OutputError`, `ModelFileError` or what the two callbacks raise.
    """
    if model.ByteSize() > MAX_BYTES:
        raise ModelFileError(f"{out}: {model.ByteSize() / 1e9:.1f} GB exceed the limit of one ONNX file (2 GB)")
    onnx.checker.check_model(model)
    with atomic_path(out) as temporary:
        _write(model, temporary)
        contract = certify(temporary)
        embed_contract(model, contract)
        _write(model, temporary)
        self_test(temporary)
    return contract


def _write(model: onnx.ModelProto, path: Path) -> None:
    with output_errors(path):
        path.write_bytes(model.SerializeToString())
