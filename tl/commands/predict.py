"""`tl predict`: predict images with model files and write one row per image."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tl.commands.batch_warnings import LackingCount, OodCount, warn_if_dark
from tl.commands.box_flags import BoxFlags, check_needed, count_rows, in_archives, open_boxes, say_absent
from tl.commands.console import EXIT_INTERRUPTED, EXIT_SOME_FAILED, console_progress, warn
from tl.commands.decoding import decode_processes
from tl.commands.drawings import Drawings
from tl.commands.engine_flags import EngineFlags, check_engine, local_models, on_engine, sources_for
from tl.commands.options import (
    ClassFlags,
    ModelFlags,
    check_outputs,
    open_landmark_predictor,
    open_models,
    open_multilabel_predictor,
    open_predictor,
    open_regression_predictor,
    task_of,
)
from tl.commands.predict_flags import ForClasses, ForLandmarks, ImageFlags, OutputFlags
from tl.commands.requests import from_flags, refuse_given
from tl.commands.sequence_flags import FileFlags, SequenceFlags, build_notes, check_choices, find_images, plan_sequences
from tl.commands.shard_flags import ShardFlags, check_shard, file_of_shard, joined, of_shard, shard_run
from tl.commands.task_flags import TaskFlags, plan_tasks
from tl.errors import ConfigError

if TYPE_CHECKING:
    from tl.runtime.output.job import Tally
    from tl.runtime.output.sequence_rows import SequencePlan
    from tl.runtime.predictor import Predictor
    from tl.runtime.results import Classification, Landmarks, Multilabel, Regression, Result
    from tl.runtime.sources.boxed_images import BoxList
    from tl.runtime.sources.inputs import Inputs
    from tl.runtime.sources.shards import Shard

    AnyPredictor = Predictor[Classification] | Predictor[Landmarks] | Predictor[Multilabel] | Predictor[Regression]


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """Everything that `tl predict` was asked for."""

    images: ImageFlags
    models: ModelFlags
    output: OutputFlags
    classes: ForClasses
    sequences: SequenceFlags
    files: FileFlags
    landmarks: ForLandmarks
    boxes: BoxFlags
    engine: EngineFlags
    shards: ShardFlags
    tasks: TaskFlags


@from_flags
def command(request: PredictRequest) -> None:
    """Classify images, predict numbers, or find landmarks on them, with one model file or an ensemble.

    Examples:
    - `tl predict images/ --ensemble a.onnx b.onnx c.onnx --vote hard --vote-weights 2,1,1 -o out.jsonl`

    - `tl predict photos/ --model mammals.onnx --boxes detections.json --sequence exif:30s -o out.csv`: boxes and bursts

    - `tl predict photos/ --model wing.onnx --locator coarse.onnx --draw drawn/ -o points.csv` finds landmarks

    On several machines, --shard 3/64 --out parts/ predicts a part, and --join parts/ --out all.csv joins all parts.

    Columns: path, label, confidence, p:CLASS for each class, error; with the options for them, set, ood_score and the
    reason for a label "?". With --boxes, one row per box, with box_x, box_y, box_w, box_h (box_rel_x ... for boxes in
    fractions of the image), box_confidence and box_category after path; an image without a box gets a row with the
    reason and no label. Ensembles add agreement, entropy, mutual_information, margin and vote:MEMBER. --sequence and
    films add sequence, and OUT.sequences.csv with the columns sequence, label, confidence, p:CLASS, images, rejected,
    failed, agreement, error; with --boxes, boxes after images, and a vote for each box.

    Columns for landmarks: path, xPOINT, yPOINT in pixels of the upright photo, pPOINT (confidence), sPOINT (spread in
    pixels, ensembles only), centroid_size, shape_distance, is_odd, error.

    Columns for numbers: path, TARGET, error; with --coverage TARGET_low, TARGET_high; ensembles add TARGET_spread
    (standard deviation of the members) and TARGET:MEMBER.

    Columns for several labels: path, labels (joined by ;), p:LABEL, error; with --coverage set; ensembles add agreement
    and vote:MEMBER.

    Exit code 3 means that some images could not be read, as their rows tell, or not be drawn. A hidden folder beside
    the output records the finished images for --resume.
    """
    others: list[object] = [request.images, request.models, request.classes, request.landmarks, request.boxes]
    others += [request.sequences, request.files, request.engine]
    if joined(request.shards, request.output, request.tasks, others):
        return
    shard = check_shard(request.shards, request.output, request.sequences, request.files)
    if not _predict(replace(request, output=file_of_shard(request.output, shard)), shard):
        raise typer.Exit(EXIT_SOME_FAILED)


def _predict(request: PredictRequest, shard: Shard | None) -> bool:
    """Find the images, open the models and write the rows. Returns whether every image could be read."""
    _check_output(request)
    images, classes = request.images, request.classes
    check_engine(
        request.engine, explain=classes.explain, decode_processes=classes.decode_processes, every=request.files.every
    )
    inputs, listed = find_images(
        *(images.images or [], images.files_from, images.images_in, request.sequences, request.files),
        null=images.null,
        max_bytes=images.max_file_size << 20,
        batch_size=request.output.batch_size,
    )
    boxes = open_boxes(request.boxes, [*(images.images or []), images.images_in or "."])
    if boxes is not None:
        boxes = in_archives(boxes, inputs)
        say_absent(boxes, inputs.names())
    inputs, listing = of_shard(inputs, shard)
    local = replace(request, models=local_models(request.engine, request.models))
    predictor: AnyPredictor = on_engine(
        request.engine, request.models, _open(local, boxes, len(inputs)), max_bytes=images.max_file_size << 20
    )
    plan = plan_sequences(request.sequences, request.files, inputs, listed, predictor)
    warn_if_dark(predictor, inputs.local())
    run = shard_run(shard, request.output.output, build_notes(request.files, plan), inputs, listing, predictor)
    is_complete = _write_predictions(predictor, inputs, request, plan)
    if run is not None:
        run.finish()
    return is_complete


def _check_output(request: PredictRequest) -> None:
    """Raise `ConfigError` or `OutputError` for an output that options or inputs exclude."""
    out = request.output
    if out.output is None and (out.resume or out.retry_failed or out.excel):
        raise ConfigError("--resume, --retry-failed and --excel require an output file: give --out")
    read = [name for name in (request.images.files_from, request.boxes.boxes) if name is not None]
    if out.output is not None and read and out.overwrite:
        check_outputs(True, out.output, inputs=read)


def _open(request: PredictRequest, boxes: BoxList | None, count: int) -> AnyPredictor:
    """Open --model or --ensemble with the options that apply to its task, for `count` images."""
    from tl.runtime.results import ClassFields

    models, classes, landmarks = request.models, request.classes, request.landmarks
    sessions = open_models(models)
    task = task_of(sessions)
    check_choices(
        *(request.sequences, request.files, request.output.output, request.images.files_from),
        point_format=request.output.to,
        boxes=request.boxes.boxes,
        task=task,
    )
    if task in ("multilabel", "regression"):
        what = "but this model " + ("gives several labels" if task == "multilabel" else "predicts numbers")
        refuse_given(replace(classes, coverage=None, decode_processes=None), f"applies only to classifiers, {what}")
        refuse_given(replace(landmarks, merge=None), f"applies only to landmark models, {what}")
        if boxes is not None:
            raise ConfigError(f"--boxes does not apply to a model for {task}")
        if task == "multilabel":
            refuse_given(landmarks, f"applies only to landmark models, {what}")
            found: AnyPredictor = open_multilabel_predictor(sessions, models, classes.coverage)
        else:
            found = open_regression_predictor(sessions, models, landmarks, classes.coverage)
        found.decode_processes = decode_processes(found, classes.decode_processes, count)
        return found
    if task == "landmarks":
        refuse_given(classes, "applies only to classifiers, but this is a landmark model")
        single, scales = None if boxes is None else boxes.single(), _read_scales(landmarks.mm_per_px)
        return open_landmark_predictor(sessions, models, landmarks, boxes=single, mm_per_px=scales)
    refuse_given(landmarks, "applies only to landmark models, but this is a classifier")
    check_needed(sessions, boxes is not None)
    if boxes is not None and classes.explain is not None:
        raise ConfigError("--explain explains whole images, and cannot be combined with --boxes")
    if classes.explain is not None:
        refuse_given(ClassFlags(tta=classes.tta), "--explain explains images without augmentation")
    predictor = open_predictor(sessions, models, classes, boxes=boxes)
    if classes.tta is not None and isinstance(predictor.fields, ClassFields) and predictor.fields.with_ood_score:
        warn("ood_score is that of the whole image, without --tta: its limit was measured so")
    predictor.decode_processes = decode_processes(predictor, classes.decode_processes, count)
    return predictor


def _read_scales(given: str | None) -> float | dict[str, float] | None:
    if given is None:
        return None
    from tl.runtime.landmarks.scales import read_scales

    try:
        scale = float(given)
    except ValueError:
        if not Path(given).is_file():
            raise ConfigError(f"--mm-per-px: '{given}' is neither a number such as 0.0125 nor a file") from None
        return read_scales(given)
    if not 0 < scale < math.inf:
        raise ConfigError(f"--mm-per-px: expected a number above 0 or a file, found '{given}'")
    return scale


def _write_predictions(
    predictor: AnyPredictor, images: Inputs, request: PredictRequest, plan: SequencePlan | None
) -> bool:
    """Predict and write row by row. Returns whether every image could be read, and drawn if that was asked for."""
    from tl.runtime.output.job import Tally, run_job

    out, output = request.output, request.output.output
    models, names = [str(session.path) for session in predictor.ensemble.sessions], images.names()
    links = plan_tasks(request.tasks, output, out.to, predictor.fields, models, names, overwrite=out.overwrite)
    tally = Tally()
    drawings = Drawings(predictor, request.landmarks.draw, request.classes.explain)
    drawings.check(images, replaces=out.overwrite or out.resume or out.retry_failed)
    unlike, lacking = OodCount(predictor), LackingCount(predictor)

    def see(result: Result) -> None:
        lacking.see(result)
        unlike.see(result)
        drawings.see(result)

    started = time.monotonic()
    total, what = count_rows(predictor.boxes, images)
    sources = sources_for(request.engine, images, reads_here=request.files.exif or predictor.boxes is not None)
    try:
        with predictor, console_progress() as progress:
            progress.start("predicting", total, what)
            run_job(
                *(predictor, sources, output, tally),
                point_format=out.to,
                links=links,
                batch_size=out.batch_size,
                resume=out.resume or out.retry_failed,
                retry_failed=out.retry_failed,
                fail_fast=out.fail_fast,
                overwrite=out.overwrite,
                for_excel=out.excel,
                notes=build_notes(request.files, plan),
                sequences=plan,
                advance=lambda tally: progress.advance(),
                see=see,
            )
    except KeyboardInterrupt:
        cure = "; add --resume to continue" if output else ""
        warn(f"interrupted after {tally.done} of {total} {what}{cure}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    has_drawn = drawings.report()
    unlike.warn_if_many()
    lacking.warn()
    seconds = time.monotonic() - started
    _say_done(tally, what, tally.done - tally.failed - len(lacking.boxes), seconds, out, has_sequences=plan is not None)
    return not tally.failed and has_drawn


def _say_done(
    tally: Tally, what: str, predicted: int, seconds: float, flags: OutputFlags, *, has_sequences: bool
) -> None:
    """Say how many images were predicted, how fast, and where the rows are."""
    from tl.runtime.output.sequence_rows import sequence_path
    from tl.runtime.output.writers import lists_failures

    output = flags.output
    speed = (tally.done - tally.kept) / max(seconds, 1e-9)
    kept = f"{tally.kept} rows kept from the earlier run, " if tally.kept else ""
    where = f"; {output}" if output else ""
    if has_sequences and output is not None:
        where += f"; {tally.sequences} sequences: {sequence_path(output)}"
    listed = Path(f"{output}.failed.csv")
    if tally.failed and output is not None and lists_failures(output, flags.to):
        where += f", listed in {listed}"
    warn(f"{kept}{predicted} {what} predicted, {tally.failed} could not be read, {speed:.0f}/s{where}")
