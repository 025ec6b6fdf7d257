"""Convert a classifier exported by another tool into our model file, written only if the probabilities are the same.

The steps: read, wrap, verify, publish. Needs no torch.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from tl.errors import DeviceError, ModelFileError
from tl.exporter.adoption.imported_model import AdoptOptions, ImportedModel, open_imported_model, read_plan
from tl.exporter.adoption.wrap import MAX_OPSET, wrapped_graphs
from tl.exporter.parity import Original, check_outputs
from tl.exporter.parity_images import find_parity_images, load_parity_images, noise_images
from tl.exporter.publish import (
    TOLERANCE,
    build_golden,
    check_model_name,
    embed_contract,
    opset_of,
    publish,
    synthetic_inputs,
    uncertified_contract,
)
from tl.progress import Progress
from tl.runtime.model_file.contract import Contract, Provenance
from tl.runtime.model_file.label_facts import MultilabelFacts
from tl.runtime.model_file.selftest import run_selftest
from tl.runtime.session import Session
from tl.trainer.run_folder.environment import library_versions

_LIBRARIES = ("onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "pillow", "simplejpeg")
# Measured in docs/how-to/adopt.md.
_CROP_CAVEAT = (
    "note: transformers rounds the center crop's corner down, tl to the nearest even number: in about "
    "one photo in six the crop is offset by one pixel, which changes its probabilities by a few hundredths"
)
_TRIAL_IMAGES = 3  # differs from any common fixed batch size


@dataclass(frozen=True)
class Adopted:
    """The finished file, its contract, its opset, and whether it was verified on real images."""

    path: Path
    contract: Contract
    opset: int
    on_real_images: bool


def adopt(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: AdoptOptions,
    progress: Progress,
    *,
    images: Sequence[str | os.PathLike[str]] = (),
    golden: Literal["images", "synthetic"] = "images",
) -> Adopted:
    """Write a verified model file around the classifier at `path`, an ONNX file or a Hugging Face folder.

    It must give the probabilities of the foreign file on `images`, or on noise if there are none.
    Raises `ModelFileError`, `ConfigError`, `DataError`, `ParityError` or `OutputError`.
    """
    check_model_name(out)
    plan = read_plan(Path(path), options)
    are_real = bool(images)
    sources = find_parity_images(images) if are_real else noise_images()
    loaded = load_parity_images(sources, plan.preprocessing, progress)
    imported = open_imported_model(plan, loaded.inputs, options.outputs)
    progress.say(describe(imported))
    if plan.preset == "huggingface-folder" and plan.preprocessing.resize_mode == "short_side":
        progress.say(_CROP_CAVEAT)
    progress.start("adopting", 3, "steps")
    model = _first_that_agrees(imported)
    bare = _uncertified(imported, opset_of(model), are_real)
    embed_contract(model, bare)
    progress.advance(note="parity")

    def certify(temporary: Path) -> Contract:
        expected = imported.probabilities(loaded.inputs)
        task = bare.task
        parity = check_outputs(
            Session(temporary, device="cpu"),
            loaded.sources,
            loaded.inputs,
            {"probabilities": expected},
            Original("the foreign file", "the foreign file", "adoption"),
            TOLERANCE[bare.precision],
        )
        progress.advance(note="self-test")
        if golden == "synthetic" or not are_real:
            inputs = synthetic_inputs(plan.preprocessing.input_shape)
            samples = build_golden("synthetic", inputs, imported.probabilities(inputs), task)
        else:
            samples = build_golden("images", loaded.inputs, expected, task)
        return replace(bare, parity=parity, golden=samples)

    contract = publish(model, out, certify, lambda temporary: run_selftest(temporary, device="cpu"))
    progress.advance(note="done")
    return Adopted(Path(out), contract, opset_of(model), are_real)


def describe(imported: ImportedModel) -> str:
    """One line on what was detected, to make a wrong preset visible."""
    plan, foreign = imported.plan, imported.plan.foreign
    pixels, (height, width) = plan.pixel_rules, plan.preprocessing.input_hw
    resize = f"{pixels.resize_mode} {pixels.short_side}" if pixels.short_side else pixels.resize_mode
    what = "labels, each by itself" if plan.is_multilabel else "classes"
    return (
        f"found: input {foreign.layout.upper()} {width}x{height}, output {imported.kind}, "
        f"{len(plan.class_names)} {what}; {plan.preset}: resize {resize}, {pixels.interpolation}, "
        f"scale {pixels.scale:.6g}, mean {_shown(pixels.mean)}, std {_shown(pixels.std)}"
    )


def _first_that_agrees(imported: ImportedModel) -> onnx.ModelProto:
    """The first candidate graph that runs on one and on several images and gives the same values."""
    plan, foreign = imported.plan, imported.plan.foreign
    height, width = plan.preprocessing.input_hw
    inputs = np.random.default_rng(0).integers(0, 256, (_TRIAL_IMAGES, height, width, 3)).astype(np.uint8)
    expected = imported.probabilities(inputs)
    faults = []
    graphs = wrapped_graphs(
        *(foreign, plan.pixel_rules, imported.kind, plan.preprocessing.input_hw, len(plan.class_names)),
        activation="Sigmoid" if plan.is_multilabel else "Softmax",
    )
    for model in graphs:
        embed_contract(model, _uncertified(imported, opset_of(model), on_real_images=False))
        fault = _trial(model, inputs, expected, TOLERANCE[foreign.precision])
        if fault is None:
            return model
        faults.append(fault)
    if not faults:
        raise ModelFileError(
            f"{foreign.path}: opset {opset_of(foreign.model)} cannot be converted to {MAX_OPSET}, which "
            f"all supported onnxruntime versions can load: export it again with opset {MAX_OPSET} or lower"
        )
    if foreign.batch is not None:
        raise ModelFileError(
            f"{foreign.path}: has a fixed batch size of {foreign.batch} that cannot be made dynamic "
            f"({faults[0][:120]}): export it with a dynamic batch "
            "(torch: dynamic_shapes or dynamic_axes; Ultralytics: dynamic=True)"
        )
    raise ModelFileError(f"{foreign.path}: its preprocessing cannot be added to the graph: {faults[0]}")


def _trial(
    model: onnx.ModelProto, inputs: NDArray[np.uint8], expected: NDArray[np.float32], tolerance: float
) -> str | None:
    """The fault of a graph, or None."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.onnx"
        path.write_bytes(model.SerializeToString())
        try:
            session = Session(path, device="cpu", require_contract=False)
            (together,) = session.run(inputs, ["probabilities"])
            (alone,) = session.run(inputs[:1], ["probabilities"])
        except (ModelFileError, DeviceError) as error:
            return str(error).removeprefix(f"{path}: ")
    if together.shape != expected.shape or alone.shape != expected[:1].shape:
        return f"its output shape is {[*together.shape]} instead of {[*expected.shape]}"
    worst = max(float(np.abs(together - expected).max()), float(np.abs(alone - expected[:1]).max()))
    return None if worst < tolerance else f"its output changes by {worst:.2g}"


def _uncertified(imported: ImportedModel, opset: int, on_real_images: bool) -> Contract:
    plan = imported.plan
    return uncertified_contract(
        plan.class_names,
        plan.preprocessing,
        ("probabilities",),
        _provenance(imported, opset, on_real_images),
        precision=plan.foreign.precision,
        multilabel=_label_facts(len(plan.class_names)) if plan.is_multilabel else None,
    )


def _label_facts(count: int) -> MultilabelFacts:
    """Half for every label, as no labeled images say better."""
    return MultilabelFacts((1.0,) * count, (0.5,) * count, "fixed", None, None)


def _provenance(imported: ImportedModel, opset: int, on_real_images: bool) -> Provenance:
    plan, foreign = imported.plan, imported.plan.foreign
    digest = hashlib.sha256(foreign.data).hexdigest()
    return Provenance(
        backbone=f"{foreign.model.producer_name} {foreign.model.producer_version}".strip() or "unknown",
        weights=f"{foreign.path.name} (sha256 {digest})",
        method="adopted",
        config={
            "preset": plan.preset,
            "scale": plan.pixel_rules.scale,
            "mean": list(plan.pixel_rules.mean),
            "std": list(plan.pixel_rules.std),
            "layout": foreign.layout,
            "output": imported.kind,
            "opset_before": opset_of(foreign.model),
            "opset": opset,
            "parity_images": "given" if on_real_images else "noise",
        },
        data_hash="",
        val_metrics={},
        versions=library_versions(_LIBRARIES),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _shown(values: Sequence[float]) -> str:
    return ",".join(f"{value:.4g}" for value in values)
