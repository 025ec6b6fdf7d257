"""Merge model files into one file that gives their joint vote, written only if it passes verification.

The steps: check compatibility, join, verify against the separate files, publish. Needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tl.data.manifests import LabeledImage
from tl.errors import ConfigError, EnsembleError, ParityError
from tl.exporter.merging.calibrate import Calibration, calibrate_votes
from tl.exporter.merging.graph import OUTPUTS, UNKNOWN, Ballot, merge_graphs
from tl.exporter.parity import Original, check_outputs
from tl.exporter.parity_images import ParityImages, find_parity_images, load_parity_images, noise_images
from tl.exporter.publish import (
    TOLERANCE,
    GoldenSource,
    build_golden,
    check_fixed_size,
    check_model_name,
    embed_contract,
    load_model,
    publish,
    synthetic_inputs,
    uncertified_contract,
)
from tl.progress import Progress
from tl.runtime.ensembles.ensemble import Ensemble, mean_ood_score
from tl.runtime.ensembles.voting import Voting, soften, vote
from tl.runtime.imaging.decode import ImageSource
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.model_file.contract import (
    Contract,
    EnsembleFacts,
    MemberFacts,
    OodFacts,
    Parity,
    Precision,
    Provenance,
)
from tl.runtime.model_file.selftest import golden_image, run_selftest
from tl.runtime.session import Session
from tl.trainer.run_folder.environment import library_versions

_LIBRARIES = ("onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu")
# Both run the same kernels; only onnxruntime's fusions may differ where several members use a value.
_TOLERANCE_FP32 = 1e-5
_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Merged:
    """The finished file, its contract, and the total bytes of all members.

    `left_out`: outputs of the members that the file does not have, and the members that have them.
    """

    path: Path
    contract: Contract
    separate_bytes: int
    left_out: dict[str, tuple[str, ...]]


def merge(
    models: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    progress: Progress,
    *,
    voting: Voting = "soft",
    weights: Sequence[float] | None = None,
    images: Sequence[str | os.PathLike[str]] = (),
    golden: Literal["images", "synthetic"] = "images",
    held_out: Sequence[LabeledImage] = (),
    false_alarm: float = 0.05,
) -> Merged:
    """Write one file that gives the same results as voting over the files `models`.

    `held_out`: labeled images that no member was trained on, used to calibrate the confidence of votes and to measure
    prediction sets for any coverage. If every member detects unknown images, so does the file; its limit flags
    a fraction `false_alarm` of these images. The file is verified on `images`, or without any on the members' golden
    samples and noise.
    Raises `ModelFileError`, `EnsembleError`, `ConfigError`, `DataError`, `ParityError` or `OutputError`.
    """
    ensemble = _open_members(models, voting, weights)
    _check_name(out, models)
    contracts, preprocessing = ensemble.contracts, ensemble.preprocessings[0]
    own, golden_source = _golden_images(ensemble)
    sources: list[ImageSource] = [*find_parity_images(images)] if images else [*own, *noise_images(preprocessing)]
    loaded = load_parity_images(sources, preprocessing, progress, ensemble.crop)
    calibration = calibrate_votes(ensemble, held_out, progress, false_alarm)
    progress.start("merging", 3, "steps")
    facts, unknown = _facts(ensemble), _unknown_facts(contracts, calibration)
    joined = (_ballots(ensemble), preprocessing.input_shape, voting, facts.weights, calibration.temperature)
    model = merge_graphs(*joined, with_ood_score=unknown is not None)
    bare = replace(
        _uncertified(contracts, ensemble.class_names, facts),
        outputs=OUTPUTS if unknown is None else (*OUTPUTS, UNKNOWN),
        temperature=calibration.temperature,
        conformal=calibration.conformal,
        ood=unknown,
        taxonomy=ensemble.taxonomy,
    )
    embed_contract(model, bare)
    progress.advance(note="parity")

    def certify(temporary: Path) -> Contract:
        session = Session(temporary, device="cpu")
        parity, expected = _prove(session, ensemble, loaded, bare)
        progress.advance(note="self-test")
        if golden == "synthetic" or (golden_source == "synthetic" and not images):
            inputs = synthetic_inputs(preprocessing.input_shape)
            voted = ensemble.decide(_members(ensemble, inputs)).probabilities
            samples = build_golden("synthetic", inputs, soften(voted, bare.temperature))
        else:
            real = len(sources) if images else len(own)
            source = "images" if images else golden_source
            samples = build_golden(source, loaded.inputs[:real], expected[:real])
        return replace(bare, parity=parity, golden=samples)

    contract = publish(model, out, certify, lambda temporary: run_selftest(temporary, device="cpu"))
    progress.advance(note="done")
    separate_bytes = sum(Path(model).stat().st_size for model in models)
    return Merged(Path(out), contract, separate_bytes, _left_out(ensemble, contract))


def _left_out(ensemble: Ensemble, merged: Contract) -> dict[str, tuple[str, ...]]:
    """Return the members that have each output that the merged file lacks."""
    members = list(zip(ensemble.member_names, ensemble.contracts, strict=True))
    names = dict.fromkeys(name for contract in ensemble.contracts for name in contract.outputs)
    return {
        name: tuple(member for member, contract in members if name in contract.outputs)
        for name in names
        if name not in merged.outputs
    }


def _check_name(out: str | os.PathLike[str], models: Sequence[str | os.PathLike[str]]) -> None:
    check_model_name(out)
    if Path(out).exists() and any(Path(out).samefile(model) for model in models):
        raise ConfigError(f"{os.fspath(out)}: would overwrite a member: choose another name for the merged file")


def _open_members(
    models: Sequence[str | os.PathLike[str]], voting: Voting, weights: Sequence[float] | None
) -> Ensemble:
    if len(models) < 2:
        raise EnsembleError("merging requires at least two model files")
    sessions = [Session(model, device="cpu") for model in models]
    for session in sessions:
        check_fixed_size(session, "merge")
        contract = session.contract
        if contract is not None and contract.task != "classification":
            raise EnsembleError(
                f"{session.path}: models for {contract.task} cannot be merged into one file; predict with them as an "
                "ensemble"
            )
        if contract is not None and contract.ensemble is not None:
            raise EnsembleError(f"{session.path}: already an ensemble; merge its members instead")
    ensemble = Ensemble(sessions, voting=voting, weights=weights)
    for session, contract in zip(sessions[1:], ensemble.contracts[1:], strict=True):
        if different := _differences(ensemble.contracts[0].preprocessing, contract.preprocessing):
            raise EnsembleError(
                f"{session.path}: preprocesses images differently from {sessions[0].path} "
                f"({'; '.join(different)}), but a merged file has only one input; "
                "predict with them as an ensemble instead"
            )
    return ensemble


def _differences(first: Preprocessing, other: Preprocessing) -> list[str]:
    pairs = [(field.name, getattr(first, field.name), getattr(other, field.name)) for field in fields(Preprocessing)]
    return [f"{name} {theirs} instead of {ours}" for name, ours, theirs in pairs if ours != theirs]


def _golden_images(ensemble: Ensemble) -> tuple[list[NDArray[np.uint8]], GoldenSource]:
    """The members' own samples without duplicates, and their source; synthetic ones only if there are no others."""
    found: dict[str, dict[str, NDArray[np.uint8]]] = {"validation": {}, "images": {}, "synthetic": {}}
    for session, contract in zip(ensemble.sessions, ensemble.contracts, strict=True):
        for sample in contract.golden.samples:
            found[contract.golden.source][sample.png] = golden_image(sample, contract, session.path)
    if found["validation"]:
        return list(found["validation"].values()), "validation"
    if found["images"]:
        return list(found["images"].values()), "images"
    return list(found["synthetic"].values()), "synthetic"


def _facts(ensemble: Ensemble) -> EnsembleFacts:
    count = len(ensemble.sessions)
    members = [
        MemberFacts(name, contract.provenance)
        for name, contract in zip(ensemble.member_names, ensemble.contracts, strict=True)
    ]
    # In float32, as the runtime counts.
    weights = tuple(float(np.float32(weight)) for weight in (ensemble.weights or [1.0] * count))
    return EnsembleFacts(ensemble.voting, weights, tuple(members))


def _unknown_facts(contracts: Sequence[Contract], calibration: Calibration) -> OodFacts | None:
    """Facts of the members' mean score: the fewest images and the most dimensions of any member's fit."""
    members = [contract.ood for contract in contracts if contract.ood is not None]
    if calibration.unknown_limit is None or len(members) < len(contracts):
        return None
    return OodFacts(
        images=min(member.images for member in members),
        dimensions=max(member.dimensions for member in members),
        limit=calibration.unknown_limit,
        false_alarm=calibration.false_alarm,
        held_out=calibration.images,
    )


def _ballots(ensemble: Ensemble) -> list[Ballot]:
    return [
        Ballot(load_model(session.path), [contract.class_names.index(name) for name in ensemble.class_names])
        for session, contract in zip(ensemble.sessions, ensemble.contracts, strict=True)
    ]


def _members(ensemble: Ensemble, inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The outputs of the separate files, (N, M, C)."""
    parts = [ensemble.member_probabilities(batch) for batch in _batches(ensemble, inputs)]
    return np.concatenate(parts)


def _unknown(ensemble: Ensemble, inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The mean of the separate files' `ood_score`, (N,)."""
    parts = [mean_ood_score(ensemble.run_members(batch, [UNKNOWN])[1][0]) for batch in _batches(ensemble, inputs)]
    return np.concatenate(parts)


def _batches(ensemble: Ensemble, inputs: NDArray[np.uint8]) -> Iterator[dict[Preprocessing, NDArray[np.uint8]]]:
    for start in range(0, len(inputs), 8):
        yield {ensemble.preprocessings[0]: inputs[start : start + 8]}


def _prove(
    session: Session, ensemble: Ensemble, images: ParityImages, bare: Contract
) -> tuple[Parity, NDArray[np.float32]]:
    """Check that members give the outputs of the separate files, and that the graph counts votes as the runtime does.

    Returns the report and the voted probabilities (N, C). Raises `ParityError`.
    """
    inputs = images.inputs
    own_members, own_label = session.run(inputs, ["member_probabilities", "label"])
    # Count the merged file's own member outputs: a vote that depends on the last digit may go either way.
    counted = vote(own_members, ensemble.voting, ensemble.weights)
    if not np.array_equal(own_label, counted.label_ids):
        wrong = int((own_label != counted.label_ids).sum())
        raise ParityError(
            f"the merged graph votes differently from tl on {wrong} of {len(inputs)} images; no file was written"
        )
    voted = soften(counted.probabilities, bare.temperature)
    expected = {"probabilities": voted, "member_probabilities": _members(ensemble, inputs)}
    if bare.ood is not None:
        expected[UNKNOWN] = _unknown(ensemble, inputs)
    tolerance = _TOLERANCE_FP32 if bare.precision == "fp32" else TOLERANCE[bare.precision]
    names = Original("the separate files", "the separate files", "merging")
    return check_outputs(session, images.sources, inputs, expected, names, tolerance), voted


def _uncertified(contracts: Sequence[Contract], class_names: tuple[str, ...], facts: EnsembleFacts) -> Contract:
    hashes = {contract.provenance.data_hash for contract in contracts}
    provenance = Provenance(
        backbone=_joined(contract.provenance.backbone for contract in contracts),
        weights=_joined(contract.provenance.weights for contract in contracts),
        method="merged",
        config={"voting": facts.voting, "weights": list(facts.weights)},
        data_hash=hashes.pop() if len(hashes) == 1 else "",
        val_metrics={},
        versions=library_versions(_LIBRARIES),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    # A graph that may be computed in bf16 is an fp32 graph; the merged one has not been compared in bf16.
    graphs: list[Precision] = ["fp32" if contract.precision == "bf16" else contract.precision for contract in contracts]
    precision = max(graphs, key=_PRECISIONS.index)
    return uncertified_contract(
        class_names,
        contracts[0].preprocessing,
        OUTPUTS,
        provenance,
        precision=precision,
        ensemble=facts,
        boxes=contracts[0].boxes,
    )


def _joined(names: Iterable[str]) -> str:
    return " + ".join(dict.fromkeys(names))
