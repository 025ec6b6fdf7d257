"""`tl evaluate`: evaluate model files on labeled images, with one row per model and voting rule."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl.commands.batch_warnings import warn_if_dark
from tl.commands.box_flags import LabeledBoxFlags, open_boxes, say_absent
from tl.commands.console import EXIT_SOME_FAILED, console_progress, packages_of, warn, write_beside
from tl.commands.model_files import check_model_files
from tl.commands.options import (
    FOR_ENSEMBLES,
    ClassFlags,
    ImageFolder,
    LabelColumn,
    ModelFlags,
    Overwrite,
    PathColumn,
    PointFlags,
    SplitColumn,
    Tta,
    check_outputs,
    fit_vote_file,
    open_landmark_predictor,
    open_models,
    open_predictor,
    task_of,
)
from tl.commands.requests import from_flags, refuse_given
from tl.commands.sequence_flags import ScoredSequences
from tl.commands.tables import Evaluated, write_evaluated
from tl.commands.target_evaluation import TargetData, evaluate_label_files, evaluate_number_files, say_split
from tl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tl.data.manifests import LabeledImage, ManifestColumns
    from tl.evaluation.evaluate import Evaluation, Row
    from tl.runtime.predictor import Predictor
    from tl.runtime.results import Classification, Failure
    from tl.runtime.session import Session

_WORST = 3


@dataclass(frozen=True, kw_only=True)
class _Data:
    """The labeled images."""

    data: Annotated[
        Path,
        typer.Argument(
            help="Folder of class folders, or of train/ val/ test/ folders that hold them, or CSV. Landmarks: CSV, "
            "TPS, COCO, DeepLabCut.",
            show_default=False,
        ),
    ]
    split: Annotated[str | None, typer.Option(help="train, val, test or all. Default: test, else val, else all.")] = (
        None
    )
    split_column: SplitColumn = "split"
    by_site: Annotated[
        bool,
        typer.Option(
            "--by-site",
            help="Classes: one row per value of the CSV column site, or else group, lowest first.",
            rich_help_panel="Data",
        ),
    ] = False
    path_column: PathColumn = None
    label_column: LabelColumn = None
    images: ImageFolder = None


@dataclass(frozen=True, kw_only=True)
class _ForLandmarks(PointFlags):
    """What applies to landmark models alone."""


@dataclass(frozen=True, kw_only=True)
class _ForVotes:
    """What applies to ensembles of classifiers alone."""

    fit_vote_weights: Annotated[
        Path | None,
        typer.Option(help="Fit vote weights and write them to this file. Fit on --split val and evaluate on test."),
    ] = None
    select: Annotated[
        bool,
        typer.Option(
            "--select",
            help="With --fit-vote-weights: select members greedily and leave out the others.",
            rich_help_panel=FOR_ENSEMBLES,
        ),
    ] = False
    merged: Annotated[
        Path | None,
        typer.Option(
            help="Merged file of the same ensemble, evaluated in an additional row.", rich_help_panel=FOR_ENSEMBLES
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """Everything that `tl evaluate` was asked for."""

    data: _Data
    models: ModelFlags
    votes: _ForVotes
    landmarks: _ForLandmarks
    sequences: ScoredSequences
    boxes: LabeledBoxFlags
    tta: Tta = None
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the rows to this file, as CSV or with --json as JSON.")
    ] = None
    report: Annotated[
        Path | None,
        typer.Option(help="Also write an HTML page: errors and calibration, or where voting helps or hurts."),
    ] = None
    overwrite: Overwrite = False
    as_json: Annotated[bool, typer.Option("--json", help="Print rows with per-class scores as JSON.")] = False


@from_flags
def command(request: EvaluateRequest) -> None:
    """Evaluate a model file, or an ensemble under every voting rule, on images with labels, numbers or landmarks.

    Examples:
    - `tl evaluate held-out/ --model beetles.onnx --report held-out.html`; with --boxes FILE, scores are of boxes

    - `tl evaluate labels.csv --split test --ensemble a.onnx b.onnx c.onnx --report ensemble.html`

    - `tl evaluate labels.csv --split val --ensemble models/*.onnx --fit-vote-weights weights.json --select`

    Prints CSV, on a terminal a table in words. Columns: model, voting, n, top1_accuracy, ci_low, ci_high (95%,
    Wilson), macro_f1, ece. Ensembles add mcnemar_p (against the member that is best on these images) and a row for the
    oracle, which is correct if any member is. With --tta, each row is followed by one with tta, gain (in accuracy),
    gain_p (McNemar, against the row before) and images_per_s. With --sequence, each row has sequences (their number),
    sequence_top1_accuracy, sequence_ci_low and sequence_ci_high; with a taxonomy, RANK_top1_accuracy and RANK_macro_f1.

    For numbers: model, merging, n, mae (mean absolute error), ci_low, ci_high (95%, bootstrap), rmse, r2, coverage_90
    (share of true numbers in the intervals for 90%).

    For several labels: model, voting, n, map (mean average precision), ci_low, ci_high (95%, bootstrap), macro_f1,
    micro_f1, subset_accuracy, hamming_loss, ece, and for a single model coverage_90 and set_size_90: the share of an
    image's labels in its set for 90%, and the number of labels in these sets.

    For landmarks: model, merging, n, points, error_px (mean distance in pixels of the photos), ci_low, ci_high (95%,
    bootstrap), rmse_px, normalized_error (by centroid size), extent_error (by the extent of an image's points).
    Without --locator, a model that uses a region of each photo receives the region from the annotations, as in
    training.
    """
    is_of_points = _is_of_points(request)
    _check_choices(request, is_of_points)
    outputs = (request.output, request.report, request.votes.fit_vote_weights)
    check_outputs(request.overwrite, *outputs, inputs=[request.data.data, *request.models.paths()])
    if is_of_points:
        done = _evaluate_points(request)
    elif (task := task_of(sessions := open_models(request.models))) == "regression":
        _refuse_for_classes(request, "but this model predicts numbers")
        done = evaluate_number_files(_targets(request.data), sessions, request.models, request.landmarks)
    elif task == "multilabel":
        _refuse_for_classes(request, "but this model gives several labels")
        done = evaluate_label_files(_targets(request.data), sessions, request.models)
    else:
        name, images, failures = _read_split(request.data, request.boxes, request.sequences.sequence)
        evaluate = _evaluate_classes if request.tta is None else _evaluate_tta
        done = evaluate(request, sessions, name, images)
        done.failures.extend(failures)
    write_evaluated(done, request.output, as_json=request.as_json)
    if done.failures or not done.has_report:
        raise typer.Exit(EXIT_SOME_FAILED)


def _is_of_points(request: EvaluateRequest) -> bool:
    """Whether points are evaluated. A labeling tool's file may contain classes too: then the model's task decides."""
    from tl.runtime.labeling.tools import find_tool
    from tl.runtime.landmarks.files import is_landmark_file
    from tl.runtime.model_file.contract import parse_contract
    from tl.runtime.model_file.safety import check_model_file

    data, model = request.data.data, request.models.paths()[0]
    if not is_landmark_file(data):
        return False
    if find_tool(data) is None:
        return True
    check_model_files(model)
    text = check_model_file(model).contract_text
    return text is None or parse_contract(text, str(model)).task == "landmarks"


def _check_choices(request: EvaluateRequest, is_of_points: bool) -> None:
    """Raise `ConfigError` for options that would be ignored, before any prediction."""
    from tl.runtime.sources.remote import remote_name

    data, votes, augmented = request.data.data, request.votes, ClassFlags(tta=request.tta)
    if request.report is not None and request.report.suffix not in (".html", ".htm"):
        raise ConfigError(f"{request.report}: --report expects a name that ends in .html")
    expected = ".json" if request.as_json else ".csv"
    if request.output is not None and request.output.suffix != expected:
        raise ConfigError(f"{request.output}: --out expects a name that ends in .csv, or in .json with --json")
    if remote_name(str(data)) and request.report is not None:
        raise ConfigError("--report shows images from files: it cannot be combined with data in an object store")
    if votes.select and votes.fit_vote_weights is None:
        raise ConfigError("--select requires --fit-vote-weights FILE")
    if request.sequences.sequence is None:
        refuse_given(request.sequences, "requires --sequence")
    if request.data.by_site:
        refuse_given(request.sequences, "cannot be combined with --by-site, whose rows are of single images")
    if request.tta is not None:
        refuse_given(request.sequences, "cannot be combined with --tta")
        refuse_given(votes, "cannot be combined with --tta, which evaluates each model with and without it")
        if request.report is not None:
            raise ConfigError("--report cannot be combined with --tta: its page is of one prediction of each image")
    if is_of_points:
        refuse_given(augmented, f"applies only to classification, but {data} contains landmarks")
        refuse_given(request.sequences, f"applies only to classification, but {data} contains landmarks")
        refuse_given(votes, f"applies only to classification, but {data} contains landmarks")
        refuse_given(request.boxes, f"applies only to classification: the boxes of landmarks are in {data}")
        if request.report is not None:
            raise ConfigError(f"--report applies only to classification, but {data} contains landmarks")
    else:
        refuse_given(request.landmarks, f"applies only to landmarks, but {data} contains classes")
    if request.models.model is not None:
        refuse_given(votes, "requires --ensemble; a single merged file is evaluated with --model")


def _columns(flags: _Data, sequence: str | None = None) -> ManifestColumns:
    from tl.data.manifests import ManifestColumns

    folder = None if flags.images is None else str(flags.images)
    return ManifestColumns(flags.split_column, flags.path_column, flags.label_column, folder, sequence)


def _read_split(
    flags: _Data, box_flags: LabeledBoxFlags, sequence: str | None
) -> tuple[str, list[LabeledImage], list[Failure]]:
    """Return the name and the images of the split, and those whose boxes are not known."""
    from tl.data.boxed import read_labeled_boxes, say_unused
    from tl.data.sequences import tie_sequences
    from tl.evaluation.evaluate import choose_split
    from tl.runtime.results import Failure

    label = flags.label_column if flags.data.is_dir() else None
    boxes = open_boxes(box_flags, [flags.data, *([flags.images] if flags.images else [])], label)
    found = read_labeled_boxes(flags.data, _columns(flags, sequence), boxes, box_flags.box_labels, warn)
    name, images = choose_split(found.images, flags.split)
    images = tie_sequences(images, sequence, warn)
    say_split(name, len(images), "RUN/manifest.csv")
    if boxes is not None:
        failed = [image for image, _ in found.failed]
        say_absent(boxes, (image.path for image in (*found.images, *found.unboxed, *failed)))
    say_unused([image for image in found.unboxed if name in (image.split, "all")], warn)
    failures = [Failure(image.path, why) for image, why in found.failed if name in (image.split, "all")]
    return name, images, failures


def _evaluate_tta(
    request: EvaluateRequest, sessions: list[Session], name: str, images: list[LabeledImage]
) -> Evaluated:
    from tl.evaluation.evaluate import TTA_COLUMNS, evaluate_tta

    models = request.models
    with (
        open_predictor(sessions, models, ClassFlags()) as plain,
        open_predictor(sessions, models, ClassFlags(tta=request.tta)) as augmented,
        console_progress() as progress,
    ):
        _check_boxed(plain, images)
        result = evaluate_tta(plain, augmented, images, progress)
    return Evaluated(name, result.rows, (*result.columns, *TTA_COLUMNS), result.failures)


def _refuse_for_classes(request: EvaluateRequest, why: str) -> None:
    """Raise `ConfigError` for options that only classifiers have."""
    for given in (request.votes, request.sequences, request.boxes):
        refuse_given(given, f"applies only to classifiers, {why}")
    if request.tta is not None or request.report is not None or request.data.by_site:
        raise ConfigError(f"--tta, --report and --by-site: apply only to classifiers, {why}")


def _targets(flags: _Data) -> TargetData:
    return TargetData(flags.data, _columns(flags), flags.split)


def _evaluate_classes(
    request: EvaluateRequest, sessions: list[Session], name: str, images: list[LabeledImage]
) -> Evaluated:
    from tl.evaluation.evaluate import SITE_COLUMNS, check_unseen, evaluate
    from tl.runtime.predictor import load

    models, votes = request.models, request.votes
    if request.report is not None:
        with packages_of("train"):
            from tl.studies.report.ensemble_page import write_ensemble_report
            from tl.studies.report.evaluation_page import EvaluatedFile, write_evaluation_report
    with ExitStack() as open_files:
        predictor = open_files.enter_context(open_predictor(sessions, models, ClassFlags()))
        _check_boxed(predictor, images)
        try:
            check_unseen(predictor.ensemble.sessions, name)
        except DataError as error:
            if votes.fit_vote_weights is not None:
                raise
            warn(str(error))
        warn_if_dark(predictor, [image.path for image in images])
        beside = None
        if votes.merged is not None:
            check_model_files(votes.merged)
            beside = open_files.enter_context(load(votes.merged, device=models.device, threads=models.threads))
        result = evaluate(predictor, images, open_files.enter_context(console_progress()), beside)
        contract = predictor.ensemble.sessions[0].contract
    rows = result.rows
    if votes.fit_vote_weights is not None:
        fitted = fit_vote_file(result, votes.fit_vote_weights, select=votes.select)
        rows = [*rows[:-1], fitted, rows[-1]]  # before the oracle
    rows, columns = _with_sequences(result, rows, images, request.sequences)
    has_report = True
    if request.report is not None and contract is not None:
        page, known = request.report, contract
        if models.ensemble is None:
            scored = EvaluatedFile(replace(result, rows=rows), sessions[0], name, images, str(request.data.data))

            def write() -> Path:
                with console_progress() as progress:
                    return write_evaluation_report(scored, page, progress)

            has_report = write_beside(write)
        else:
            has_report = write_beside(lambda: write_ensemble_report(result, known.preprocessing, name, page))
    by_site = result.site_rows()
    if request.data.by_site:
        if not by_site:
            raise DataError(
                "scores by site require a CSV with a column site, or group of 10 images or more, that names 2 to 50"
            )
        return Evaluated(name, by_site, SITE_COLUMNS, result.failures, has_report)
    if by_site:
        lowest = by_site[0]
        nameless = f"; {result.sites.count('')} images have no site" if "" in result.sites else ""
        shown = f"top-1 accuracy {lowest['top1_accuracy']:.4f} (95% {lowest['ci_low']:.4f} to {lowest['ci_high']:.4f})"
        warn(f"lowest site: '{lowest['site']}', {shown}, {lowest['n']} images{nameless}")
    return Evaluated(name, rows, columns, result.failures, has_report)


def _with_sequences(
    result: Evaluation, rows: list[Row], images: list[LabeledImage], flags: ScoredSequences
) -> tuple[list[Row], tuple[str, ...]]:
    """Return rows and columns with those of sequences, if they were asked for."""
    from tl.evaluation.sequences import COLUMNS, sequence_rows

    if flags.sequence is None:
        return rows, result.columns
    scored, mixed = sequence_rows(result, rows, images, flags.sequence_vote or "soft")
    if mixed:
        warn(f"{mixed} sequences have images of several classes and are left out of the scores of sequences")
    return scored, (*result.columns, *COLUMNS)


def _check_boxed(predictor: Predictor[Classification], images: list[LabeledImage]) -> None:
    from tl.data.boxed import check_boxed
    from tl.runtime.ensembles.ensemble import Ensemble

    if isinstance(predictor.ensemble, Ensemble):
        check_boxed(images, predictor.ensemble.crop, predictor.ensemble.sessions[0].path)


def _evaluate_points(request: EvaluateRequest) -> Evaluated:
    from tl.evaluation.landmarks import COLUMNS, evaluate_points, read_split

    flags, landmarks = request.data, request.landmarks
    images = read_split(flags.data, flags.split, flags.images, flags.label_column)
    for remark in images.remarks:
        warn(f"{flags.data}: {remark}")
    say_split(images.split, len(images.paths), "RUN/annotations.json")
    sessions = open_models(request.models)
    boxes = None if landmarks.locator else images.boxes(_region(sessions))
    with (
        open_landmark_predictor(sessions, request.models, landmarks, boxes=boxes) as predictor,
        console_progress() as progress,
    ):
        result = evaluate_points(predictor, images, progress)
    for path, error in result.worst[:_WORST]:
        warn(f"worst: {path}: mean error {error:.1f} px")
    return Evaluated(images.split, result.rows, COLUMNS, result.failures)


def _region(sessions: list[Session]) -> Literal["whole", "box", "points"]:
    """Return the region that the models use: the first that is not "whole", if any."""
    contracts = [session.contract for session in sessions]
    found = [c.landmarks.region for c in contracts if c is not None and c.landmarks is not None]
    return next((region for region in found if region != "whole"), "whole")
