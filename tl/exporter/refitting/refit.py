"""Fit a new head on a model file's trunk with labeled images, verify it, and write a new model file; needs no torch.

The steps: check, embed the images (`seen`), fit, replace the head (`graph`), verify, publish.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tl.data.boxed import check_boxed
from tl.data.manifests import hash_data
from tl.errors import ConfigError, ModelFileError, ParityError
from tl.evaluation.calibration import conformal_of, fit_useful_temperature
from tl.evaluation.metrics import Metrics, classification_metrics
from tl.evaluation.ood import MAX_KNOWN, Known, measure_ood
from tl.exporter.parity import Original, check_outputs, spread
from tl.exporter.parity_images import MAX_IMAGES
from tl.exporter.publish import build_golden, check_fixed_size, embed_contract, load_model, publish, synthetic_inputs
from tl.exporter.refitting.graph import EMBEDDING, NewHead, replace_head
from tl.exporter.refitting.seen import (
    RefitOptions,
    Seen,
    audit_data,
    embed,
    read_labeled,
    score_old,
    settle_class_names,
)
from tl.progress import Progress
from tl.runtime.model_file.contract import Contract, Golden, OodFacts, Parity, Provenance
from tl.runtime.model_file.selftest import run_selftest
from tl.runtime.session import Session
from tl.runtime.sources.paths import hash_file
from tl.trainer.defaults import C_VALUES
from tl.trainer.heads.solvers import LinearHead, solve_head
from tl.trainer.run_folder.environment import library_versions

_LIBRARIES = ("onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "scikit-learn", "pillow", "simplejpeg")


@dataclass(frozen=True)
class Refitted:
    """The finished file. `before`: metrics of the old head on validation images of its own classes, None if there are
    none; `after`: metrics of the new head on all validation images.
    """

    path: Path
    contract: Contract
    added: tuple[str, ...]
    dropped: tuple[str, ...]
    before: Metrics | None
    after: Metrics


def refit(
    model: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    progress: Progress,
    options: RefitOptions,
) -> Refitted:
    """Fit a linear head to labeled images and write it on the trunk of `model`.

    Classes are those of `data`: the model's classes in its order, then new ones. Validation images are used to
    choose C, to fit the temperature, and to measure prediction sets and the limit of `ood_score`.
    Raises `ConfigError`, `ModelFileError`, `DataError`, `ParityError` or `OutputError`.
    """
    session, contract = _open(model, out)
    images = read_labeled(data, options, progress)
    check_boxed(images, contract.boxes, session.path)
    class_names = settle_class_names(contract, images, options.drop)
    seen = audit_data(session, contract, images, class_names, options, progress)
    progress.start("fitting", 4, "steps")
    fitted, head, facts = _fit(seen, options, progress)
    head = replace(head, with_cam="cam" in contract.outputs)
    progress.advance(note="joining")
    probabilities = head.probabilities(seen.split("val")[0])
    true_ids = seen.split("val")[1]
    after = classification_metrics(true_ids, probabilities, class_names)
    bare = replace(
        contract,
        class_names=class_names,
        outputs=head.outputs,
        temperature=head.temperature,
        conformal=conformal_of(probabilities, true_ids, "validation split"),
        taxonomy=contract.taxonomy if class_names == contract.class_names else None,
        ood=facts,
        provenance=_provenance(model, contract, seen, options, fitted, after),
        parity=Parity(0, (), {}, 0.0, None, 0.0),
        golden=Golden("synthetic", {}, ()),
    )
    proto = replace_head(load_model(model), head)
    embed_contract(proto, bare)
    progress.advance(note="parity")
    contract_of_file = publish(
        proto,
        out,
        lambda path: _certify(path, session, bare, head, seen, options.golden),
        lambda path: run_selftest(path, device="cpu"),
    )
    progress.advance(note="done")
    return Refitted(
        path=Path(out),
        contract=contract_of_file,
        added=tuple(name for name in class_names if name not in contract.class_names),
        dropped=tuple(name for name in contract.class_names if name not in class_names),
        before=score_old(seen, contract.class_names),
        after=after,
    )


def _open(model: str | os.PathLike[str], out: str | os.PathLike[str]) -> tuple[Session, Contract]:
    """Open the old file, which must pass its self-test on this machine."""
    if Path(out).suffix != ".onnx":
        raise ConfigError(f"{os.fspath(out)}: expected a file name that ends in .onnx")
    session = Session(model, device="cpu", require_contract=True)
    if Path(out).exists() and Path(out).samefile(model):
        raise ConfigError(f"{os.fspath(out)}: would overwrite the old file: choose another name for the new one")
    check_fixed_size(session, "refit")
    contract = session.contract
    if contract is None or contract.task != "classification":
        raise ModelFileError(f"{session.path}: only classifiers have a head that can be refitted")
    if contract.boxes is not None:
        raise ModelFileError(f"{session.path}: was trained on boxes, but refitting uses whole images: train it again")
    if contract.ensemble is not None:
        raise ModelFileError(f"{session.path}: a merged file; refit its members and merge them again")
    if EMBEDDING not in contract.outputs:
        raise ModelFileError(f"{session.path}: has no output '{EMBEDDING}'; expected a file exported from a run")
    if contract.precision != "fp32":
        raise ModelFileError(
            f"{session.path}: has precision {contract.precision}; refit the fp32 file that it was created from"
        )
    run_selftest(model, device="cpu")
    return session, contract


def _fit(seen: Seen, options: RefitOptions, progress: Progress) -> tuple[LinearHead, NewHead, OodFacts | None]:
    """The head as solved in double precision, the same in the graph's precision, and the facts of `ood_score`."""
    train, val = seen.split("train"), seen.split("val")
    head, trials = solve_head(
        "svm" if options.head == "svm" else "logistic",
        train,
        val,
        options.c_values or C_VALUES[options.head],
        options.seed,
    )
    progress.say(
        f"{options.head} head with C {head.c:g}, selected from {', '.join(f'{trial.c:g}' for trial in trials)}"
    )
    progress.advance(note="calibrating")
    temperature = float(np.float32(fit_useful_temperature(head.logits(val[0]), val[1])))
    kept = [spread(range(len(part)), MAX_KNOWN) for part in (train[1], val[1])]
    known = Known(train[0][kept[0]], train[1][kept[0]], held_out=val[0][kept[1]])
    found = measure_ood(known, len(seen.class_names), options.false_alarm)
    if isinstance(found, str):
        progress.say(f"no out-of-distribution score: {found}")
    fit, facts = (None, None) if isinstance(found, str) else found
    weight, bias = head.weight.astype(np.float32), head.bias.astype(np.float32)
    return head, NewHead(weight, bias, temperature, fit), facts


def _provenance(
    model: str | os.PathLike[str],
    contract: Contract,
    seen: Seen,
    options: RefitOptions,
    head: LinearHead,
    metrics: Metrics,
) -> Provenance:
    store = seen.store
    rows = zip(store.hashes, (p.label for p in store.images), (p.split for p in store.images), strict=True)
    return replace(
        contract.provenance,
        method="refit",
        config={
            **{"head": options.head, "c": head.c, "val_fraction": options.val_fraction, "seed": options.seed},
            **{"trunk_of": Path(model).name, "trunk_of_sha256": hash_file(model)},
            **{"trunk_trained_by": contract.provenance.method, "trunk_data_hash": contract.provenance.data_hash},
        },
        data_hash=hash_data(rows),
        val_metrics={name: float(value) for name, value in metrics.items() if isinstance(value, int | float)},
        versions=library_versions(_LIBRARIES),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _certify(
    path: Path,
    old: Session,
    bare: Contract,
    head: NewHead,
    seen: Seen,
    golden: Literal["validation", "synthetic"],
) -> Contract:
    """Check, on validation images, that the new file gives the old embeddings and the fitted outputs for them."""
    places = spread(seen.store.indices("val"), MAX_IMAGES)
    inputs = np.stack([seen.store.input(i) for i in places])
    expected = head.expected(embed(old, inputs))
    sources = [seen.store.images[i].path for i in places]
    names = Original("the fitted head", "fitting", "fitting")
    session = Session(path, device="cpu")
    parity = check_outputs(session, sources, inputs, expected, names)
    if head.with_cam:
        worst = _prove_maps(session, inputs, head.logits(expected[EMBEDDING]), parity.tolerance)
        parity = replace(parity, session_max_abs_diff={**parity.session_max_abs_diff, "cam": worst})
    if golden == "synthetic":
        inputs = synthetic_inputs(bare.preprocessing.input_shape)
        expected = head.expected(embed(old, inputs))
    return replace(bare, parity=parity, golden=build_golden(golden, inputs, expected["probabilities"]))


def _prove_maps(session: Session, inputs: NDArray[np.uint8], logits: NDArray[np.float64], tolerance: float) -> float:
    """Check that the mean of a class's map is its logit. Returns the largest difference. Raises `ParityError`."""
    parts = [session.run(inputs[i : i + 8], ["cam"])[0] for i in range(0, len(inputs), 8)]
    means = np.concatenate(parts).mean(axis=(2, 3), dtype=np.float64)
    worst = float(np.abs(means - logits).max())
    if not worst < tolerance * max(1.0, float(np.abs(logits).max())):
        raise ParityError(f"class activation maps differ by {worst:.2g} from the logits; no file was written")
    return worst
