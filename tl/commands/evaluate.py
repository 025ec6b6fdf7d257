"""`tl evaluate`: evaluate model files on labeled images, with one row per model and voting rule."""

from __future__ import annotations

import csv
import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl.commands.console import EXIT_SOME_FAILED, console_progress, packages_of, warn
from tl.commands.options import (
    CropMargin,
    Device,
    EnsembleFiles,
    Locator,
    Merge,
    ModelFile,
    Threads,
    Tta,
    VoteWeights,
    fit_vote_file,
    model_region,
    open_landmark_predictor,
    open_models,
    open_predictor,
    refuse_given,
)
from tl.errors import ConfigError

if TYPE_CHECKING:
    from tl.data.manifests import LabeledImage
    from tl.runtime.results import Failure

_WORST = 3

ImagesFrom = Annotated[
    Path | None, typer.Option(help="Landmarks: folder that image names are relative to, if not the file's own.")
]
FitVoteWeights = Annotated[
    Path | None,
    typer.Option(help="Fit vote weights and write them to this file. Fit on --split val and evaluate on test."),
]
Select = Annotated[
    bool, typer.Option("--select", help="With --fit-vote-weights: select members greedily and leave out the others.")
]
Merged = Annotated[Path | None, typer.Option(help="Merged file of the same ensemble, evaluated in an additional row.")]
ReportTo = Annotated[
    Path | None, typer.Option(help="Write an HTML report: members, agreement, and where voting helps or hurts.")
]


Data = Annotated[
    Path,
    typer.Argument(
        help="Folder of class folders, or of train/ val/ test/ folders that hold them, or CSV. Landmarks: CSV, TPS, "
        "COCO, DeepLabCut.",
        show_default=False,
    ),
]
Split = Annotated[str | None, typer.Option(help="train, val, test or all. Default: test, else val, else all.")]
SplitColumn = Annotated[str, typer.Option(help="CSV column that holds the split.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print rows with per-class scores as JSON.")]


def command(
    data: Data,
    model: ModelFile = None,
    ensemble: EnsembleFiles = None,
    split: Split = None,
    split_column: SplitColumn = "split",
    vote_weights: VoteWeights = None,
    merge: Merge = None,
    locator: Locator = None,
    crop_margin: CropMargin = None,
    images: ImagesFrom = None,
    merged: Merged = None,
    fit_vote_weights: FitVoteWeights = None,
    select: Select = False,
    tta: Tta = None,
    report: ReportTo = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model file, or an ensemble under every voting rule, on labeled or annotated images.

    Examples:
    - `tl evaluate held-out/ --model beetles.onnx`

    - `tl evaluate labels.csv --split test --ensemble a.onnx b.onnx c.onnx --report ensemble.html`

    - `tl evaluate labels.csv --split val --model beetles.onnx --tta hflip,crops` shows whether TTA is worth its time

    - `tl evaluate labels.csv --split val --ensemble models/*.onnx --fit-vote-weights weights.json --select`

    - `tl evaluate wings.csv --split test --model wing.onnx --locator coarse.onnx`

    Columns: model, voting, n, top1_accuracy, ci_low, ci_high (95%, Wilson), macro_f1, ece. Ensembles add mcnemar_p
    (against the member that is best on these images) and a row for the oracle, which is correct if any member is. With
    --tta, each row is followed by one with tta, gain (in accuracy), gain_p (McNemar, against the row before) and
    images_per_s.

    For landmarks: model, merging, n, points, error_px (mean distance in pixels of the photos), ci_low, ci_high (95%,
    bootstrap), rmse_px, normalized_error (by centroid size), extent_error (by the extent of an image's points).
    Without --locator, a model that uses a region of each photo receives the region from the annotations, as in
    training.
    """
    from tl.runtime.landmarks.files import is_landmark_file

    opened: dict[str, Any] = {"vote_weights": vote_weights, "device": device, "threads": threads}
    of_points = {"merge": merge, "locator": locator, "crop_margin": crop_margin, "images": images}
    of_votes = {"merged": merged, "fit_vote_weights": fit_vote_weights, "select": select or None, "report": report}
    _check_choices(data, of_points, of_votes, tta)
    if is_landmark_file(data):
        done = _evaluate_points(data, split, model, ensemble, opened | of_points)
    else:
        name, labeled = _read_split(data, split, split_column)
        if tta is not None:
            done = _evaluate_tta(name, labeled, model, ensemble, opened, tta)
        else:
            done = _evaluate_classes(name, labeled, model, ensemble, opened, of_votes)
    _report(done, as_json)
    if done.failures:
        raise typer.Exit(EXIT_SOME_FAILED)


def _check_choices(data: Path, of_points: dict[str, Any], of_votes: dict[str, Any], tta: str | None) -> None:
    """Raise `ConfigError` for options that would be ignored, before any prediction."""
    from tl.runtime.landmarks.files import is_landmark_file

    if of_votes["select"] and of_votes["fit_vote_weights"] is None:
        raise ConfigError("--select chooses members for --fit-vote-weights FILE: give that too")
    if tta is not None:
        refuse_given(of_votes, "leave it out with --tta, which shows models with and without it")
    if is_landmark_file(data):
        refuse_given({"tta": tta, **of_votes}, f"for classes, and {data} has landmarks")
    else:
        refuse_given(of_points, f"for landmarks, and {data} has classes")


@dataclass(frozen=True)
class _Evaluated:
    """Rows to print, and the keys that become columns."""

    split: str
    rows: list[dict[str, Any]]
    columns: tuple[str, ...]
    failures: list[Failure]


def _read_split(data: Path, split: str | None, split_column: str) -> tuple[str, list[LabeledImage]]:
    from tl.data.manifests import read_images
    from tl.evaluation.evaluate import choose_split

    name, images = choose_split(read_images(data, split_column, warn), split)
    _say_split(name, len(images), "RUN/manifest.csv")
    return name, images


def _evaluate_tta(
    name: str,
    images: list[LabeledImage],
    model: Path | None,
    ensemble: list[Path] | None,
    opened: dict[str, Any],
    tta: str,
) -> _Evaluated:
    from tl.evaluation.evaluate import TTA_COLUMNS, evaluate_tta

    models = open_models(model, ensemble, opened["device"], opened["threads"])
    with (
        open_predictor(models, **opened) as plain,
        open_predictor(models, **opened, tta=tta) as augmented,
        console_progress() as progress,
    ):
        result = evaluate_tta(plain, augmented, images, progress)
    return _Evaluated(name, result.rows, (*result.columns, *TTA_COLUMNS), result.failures)


def _evaluate_classes(
    name: str,
    images: list[LabeledImage],
    model: Path | None,
    ensemble: list[Path] | None,
    opened: dict[str, Any],
    of_votes: dict[str, Any],
) -> _Evaluated:
    from tl.evaluation.evaluate import evaluate
    from tl.runtime.predictor import load

    report = of_votes["report"]
    if report is not None:
        with packages_of("train"):
            from tl.studies.report.ensemble_page import write_ensemble_report
    if model is not None:
        refuse_given({"report": report}, "shows an ensemble; the page of one model is its run's: tl report RUN")
        refuse_given(of_votes, "for an --ensemble; a merged file alone is a --model")
    with ExitStack() as open_files:
        models = open_models(model, ensemble, opened["device"], opened["threads"])
        predictor = open_files.enter_context(open_predictor(models, **opened))
        beside = None
        if of_votes["merged"] is not None:
            beside = open_files.enter_context(
                load(of_votes["merged"], device=opened["device"], threads=opened["threads"])
            )
        result = evaluate(predictor, images, open_files.enter_context(console_progress()), beside)
        contract = predictor.ensemble.sessions[0].contract
    if report is not None and contract is not None:
        warn(f"report: {write_ensemble_report(result, contract.preprocessing, name, report)}")
    rows = result.rows
    if of_votes["fit_vote_weights"] is not None:
        fitted = fit_vote_file(result, of_votes["fit_vote_weights"], select=bool(of_votes["select"]))
        rows = [*rows[:-1], fitted, rows[-1]]  # before the oracle
    return _Evaluated(name, rows, result.columns, result.failures)


def _evaluate_points(
    data: Path,
    split: str | None,
    model: Path | None,
    ensemble: list[Path] | None,
    opened: dict[str, Any],
) -> _Evaluated:
    from tl.evaluation.landmarks import COLUMNS, evaluate_points, read_split

    images = read_split(data, split, opened.pop("images"))
    for remark in images.remarks:
        warn(f"{data}: {remark}")
    _say_split(images.split, len(images.paths), "RUN/annotations.json")
    models = open_models(model, ensemble, opened["device"], opened["threads"])
    boxes = None if opened["locator"] else images.boxes(model_region(models))
    with (
        open_landmark_predictor(models, boxes=boxes, **opened) as predictor,
        console_progress() as progress,
    ):
        result = evaluate_points(predictor, images, progress)
    for path, error in result.worst[:_WORST]:
        warn(f"worst: {path}: mean error {error:.1f} px")
    return _Evaluated(images.split, result.rows, COLUMNS, result.failures)


def _shown(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else value


def _say_split(name: str, count: int, held_out: str) -> None:
    warn(f"evaluating on split '{name}': {count} images")
    if name == "all":
        warn(f"scores on training images are too optimistic; for a run's held-out images: {held_out} --split val")


def _report(done: _Evaluated, as_json: bool) -> None:
    if as_json:
        failures = [failure.as_dict() for failure in done.failures]
        typer.echo(json.dumps({"split": done.split, "rows": done.rows, "failures": failures}))
    else:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(done.columns)
        for row in done.rows:
            writer.writerow(_shown(row[column]) for column in done.columns)
    for failure in done.failures:
        warn(f"not read: {failure.path}: {failure.error}")
