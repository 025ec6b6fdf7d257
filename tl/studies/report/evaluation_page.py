"""Build the report of one classifier's evaluation on labeled images: scores, errors, calibration, prediction sets."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl.data.manifests import LabeledImage
from tl.evaluation.evaluate import Evaluation
from tl.evaluation.metrics import wilson_interval
from tl.progress import Progress
from tl.runtime.ensembles.selective import conformal_limit, prediction_sets
from tl.runtime.model_file.contract import Contract
from tl.runtime.model_file.summary import summarize_contract
from tl.runtime.results import Failure
from tl.runtime.session import Session
from tl.studies.report.class_sections import (
    ClassCards,
    ClassResults,
    Judged,
    accuracy_note,
    class_figures,
    class_sections,
    rank_section,
    site_section,
    uncertainty_section,
)
from tl.studies.report.first_screen import class_headline, examples
from tl.studies.report.image_map import map_section
from tl.studies.report.model_map import map_results
from tl.studies.report.next_steps import class_steps, review_command
from tl.studies.report.page import Block, Code, Facts, Note, Page, Section, Table, write_page

_COVERAGES = (0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class EvaluatedFile:
    """An evaluation of one model file on `data`. `images`: all labeled images, also those that could not be read."""

    evaluation: Evaluation
    session: Session
    split: str
    images: Sequence[LabeledImage]
    data: str

    @property
    def readable(self) -> list[LabeledImage]:
        """The images that were scored."""
        return [self.images[place] for place in self.evaluation.places]


def write_evaluation_report(evaluated: EvaluatedFile, path: Path, progress: Progress) -> Path:
    """Write the page. Raises `OutputError`, `MissingExtraError`."""
    command = shlex.join(["tl", *sys.argv[1:]])
    write_page(build_evaluation_page(evaluated, command, progress), path)
    return path


def build_evaluation_page(evaluated: EvaluatedFile, command: str, progress: Progress) -> Page:
    """Build the page of an evaluation of one model file. `command`: command line that repeats it."""
    evaluation, contract, split = evaluated.evaluation, evaluated.session.contract, evaluated.split
    if contract is None:
        raise ValueError("a report is of a file with a contract")
    (decided,), scores = evaluation.decided, evaluation.rows[0]
    judged = _judge(evaluated)
    results = ClassResults(
        evaluation.class_names, contract.preprocessing, scores, judged, review=review_command(evaluated.data)
    )
    cards = ClassCards(results)
    mapped = map_results(evaluated.session, evaluated.readable, judged, progress)
    confusion, classes, confidence, *images = class_sections(results, cards)
    sections = [
        confusion,
        *([] if mapped is None else map_section(mapped, evaluation.class_names, contract.preprocessing)),
        classes,
        *uncertainty_section(accuracy_note(scores)),
        confidence,
        *_coverage(decided.probabilities, evaluation.true_ids, contract),
        *rank_section(scores),
        *_sites(evaluation),
        *images,
        *_unreadable(evaluation.failures),
        Section("Model file", [Facts(dict(summarize_contract(contract)))]),
        Section("Repeat", [Code(command)]),
    ]
    subtitle = f"{decided.model}, {contract.provenance.backbone}. {_of_split(split)}"
    return Page(
        title=f"Evaluation of {decided.model}",
        subtitle=subtitle,
        figures=class_figures(scores),
        sections=sections,
        kicker=f"Evaluation of a classifier of {len(evaluation.class_names)} classes",
        headline=class_headline(scores, "images" if split == "all" else f"{split} images"),
        steps=class_steps(scores, judged, evaluation.class_names, [], {}, results.review),
        strip=[cards.brief(each) for each in examples(judged)],
    )


def _judge(evaluated: EvaluatedFile) -> list[Judged]:
    evaluation = evaluated.evaluation
    (decided,) = evaluation.decided
    common = os.path.commonpath([Path(path).parent for path in evaluation.paths])
    found = zip(evaluated.readable, evaluation.true_ids, decided.label_ids, decided.probabilities, strict=True)
    return [
        Judged(
            *(image.path, os.path.relpath(image.path, common), int(true_id), int(label_id)),
            probabilities.astype(np.float64),
            image.region,
        )
        for image, true_id, label_id, probabilities in found
    ]


def _of_split(split: str) -> str:
    if split == "all":
        return "Scores are on all images of the data; they are too optimistic if the model was trained on some of them."
    return f"Scores are on the split '{split}'."


def _coverage(probabilities: NDArray[np.float32], true_ids: NDArray[np.int64], contract: Contract) -> list[Section]:
    """How often the prediction sets of the file contain the true class on these images, and how large they are."""
    if contract.conformal is None:  # the file gives no prediction sets
        return []
    rows = []
    for coverage in _COVERAGES:
        sets = prediction_sets(probabilities, conformal_limit(contract.conformal.scores, coverage))
        sizes, count = sets.sum(axis=1), len(true_ids)
        held = int(sets[np.arange(count), true_ids].sum())
        low, high = wilson_interval(held, count)
        rows.append((f"{coverage:.0%}", held / count, low, high, float(sizes.mean()), float((sizes == 1).mean())))
    columns = ("coverage asked", "coverage found", "95% low", "95% high", "classes in a set", "sets of one class")
    note = (
        "A set contains the true class with the coverage asked, if these images are like those that it was measured on "
        f"({len(contract.conformal.scores)}, {contract.conformal.source}). An interval below the coverage asked means "
        "that they are not: the sets promise too much here."
    )
    blocks: list[Block] = [Table(columns, rows), Note(note)]
    return [Section("Prediction sets", blocks)]


def _sites(evaluation: Evaluation) -> list[Section]:
    return site_section(
        [
            (row["site"], row["n"], row["top1_accuracy"], row["ci_low"], row["ci_high"], None)
            for row in evaluation.site_rows()
        ]
    )


def _unreadable(failures: Sequence[Failure]) -> list[Section]:
    if not failures:
        return []
    note = Note(f"{len(failures)} images could not be read and are not part of the scores.")
    table = Table(("image", "reason"), [(failure.path, failure.error) for failure in failures])
    return [Section("Unreadable images", [note, table])]
