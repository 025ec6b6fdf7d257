"""`tl predict`: predict images with model files and write one row per image."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tl.commands.console import EXIT_INTERRUPTED, EXIT_SOME_FAILED, console_progress, warn
from tl.commands.options import (
    Boxes,
    Classes,
    Coverage,
    CropMargin,
    DecodeProcesses,
    Device,
    EnsembleFiles,
    Locator,
    Merge,
    MinConfidence,
    MmPerPx,
    ModelFile,
    RejectUnknown,
    Threads,
    Tta,
    Vote,
    VoteWeights,
    finds_landmarks,
    open_landmark_predictor,
    open_models,
    open_predictor,
    refuse_given,
)
from tl.errors import ConfigError, DataError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tl.runtime.imaging.geometry import Region
    from tl.runtime.predictor import Predictor
    from tl.runtime.results import Result
    from tl.runtime.sources.inputs import Inputs

# With fewer cores, processes gain little over threads; fewer images are decoded before the processes have started.
_CORES_FOR_PROCESSES, _IMAGES_FOR_PROCESSES = 4, 256

Images = Annotated[
    list[str] | None,
    typer.Argument(help="Files, folders, patterns such as 'photos/**/*.jpg', or zip and tar archives."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="Output file: .csv, .jsonl or .parquet; for landmarks also .tps or .json (COCO). Default: CSV on stdout.",
    ),
]
FilesFrom = Annotated[
    str | None,
    typer.Option(help="Also predict the files listed in this file, one per line; - for stdin.", metavar="FILE"),
]
Null = Annotated[
    bool, typer.Option("--null", "-0", help="Names in --files-from are separated by NUL, as written by find -print0.")
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images per batch. Default: depends on the device.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Keep the rows of an earlier call with the same images and models.")
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Like --resume, and retry images that could not be read.")
]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first image that cannot be read.")]


PointFormat = Annotated[
    Literal["csv", "long", "tps", "coco", "deeplabcut"] | None,
    typer.Option(help="Landmarks: output format. Default: from the file extension; csv has one row per image."),
]
Draw = Annotated[
    Path | None,
    typer.Option(help="Landmarks: write each photo, with the points and their names drawn on it, to this folder."),
]
Explain = Annotated[
    Path | None,
    typer.Option(
        help="Classes: write each photo, with the regions that explain its label, to this folder. Fast for files from "
        "tl export --cam; 50 times as slow as prediction for others."
    ),
]


def command(
    images: Images = None,
    model: ModelFile = None,
    ensemble: EnsembleFiles = None,
    output: Output = None,
    files_from: FilesFrom = None,
    null: Null = False,
    vote: Vote = None,
    vote_weights: VoteWeights = None,
    classes: Classes = None,
    coverage: Coverage = None,
    min_confidence: MinConfidence = None,
    reject_unknown: RejectUnknown = False,
    tta: Tta = None,
    merge: Merge = None,
    locator: Locator = None,
    boxes: Boxes = None,
    crop_margin: CropMargin = None,
    mm_per_px: MmPerPx = None,
    to: PointFormat = None,
    draw: Draw = None,
    explain: Explain = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    threads: Threads = None,
    decode_processes: DecodeProcesses = None,
    resume: Resume = False,
    retry_failed: RetryFailed = False,
    fail_fast: FailFast = False,
) -> None:
    """Classify images, or find landmarks on them, with one model file or an ensemble.

    Examples:
    - `tl predict images/ --ensemble a.onnx b.onnx c.onnx --vote hard --vote-weights 2,1,1 -o out.jsonl`

    - `tl predict images/ --model beetles.onnx --coverage 0.95 --reject-unknown --explain why/ -o out.csv`

    - `find photos -newer last.txt -print0 | tl predict --files-from - --null --model beetles.onnx -o new.csv`

    - `tl predict photos.zip 'more/**/*.jpg' --model beetles.onnx -o out.csv --resume` resumes after an interruption

    - `tl predict photos/ --model wing.onnx --locator coarse.onnx --draw drawn/ -o points.csv` finds landmarks

    Columns: path, label, confidence, p:CLASS for each class, error; with the options for them, set, ood_score and the
    reason for a label "?". Ensembles add agreement, entropy, mutual_information, margin and vote:MEMBER.

    Columns for landmarks: path, xPOINT, yPOINT in pixels of the upright photo, pPOINT (confidence), sPOINT (spread in
    pixels, ensembles only), centroid_size, shape_distance, is_odd, error.

    Exit code 3 means that some images could not be read; their rows give the reason. OUT.ledger records the finished
    images for --resume.
    """
    of_points = {"merge": merge, "locator": locator, "crop_margin": crop_margin, "boxes": boxes, "mm_per_px": mm_per_px}
    of_points |= {"draw": draw, "to": to}
    of_classes: dict[str, Any] = {"vote": vote, "classes": classes, "coverage": coverage, "tta": tta}
    of_classes |= {"min_confidence": min_confidence, "reject_unknown": reject_unknown or None, "explain": explain}
    of_classes["decode_processes"] = decode_processes
    of_both = {"vote_weights": vote_weights, "device": device, "threads": threads}
    options = {"batch_size": batch_size, "retry_failed": retry_failed, "fail_fast": fail_fast, "point_format": to}
    options["resume"] = _resumes(output, resume or retry_failed)
    inputs = _find_images(images or [], files_from, null)
    predictor = _open(model, ensemble, of_points, of_classes, of_both, len(inputs))
    if _write_predictions(predictor, inputs, output, (draw, explain), options):
        raise typer.Exit(EXIT_SOME_FAILED)


def _resumes(output: Path | None, wanted: bool) -> bool:
    if output is None and wanted:
        raise ConfigError("--resume and --retry-failed need a file: give --out")
    return wanted


def _open(
    model: Path | None,
    ensemble: list[Path] | None,
    of_points: dict[str, Any],
    of_classes: dict[str, Any],
    of_both: dict[str, Any],
    count: int,
) -> Predictor[Any]:
    """Open --model or --ensemble with the options that apply to its task, for `count` images."""
    models = open_models(model, ensemble, of_both["device"], of_both["threads"])
    if finds_landmarks(models):
        refuse_given(of_classes, "for models of classes, and this one finds landmarks")
        opened = {name: of_points[name] for name in ("merge", "locator", "crop_margin")}
        opened |= {"boxes": _read_boxes(of_points["boxes"]), "mm_per_px": _read_scales(of_points["mm_per_px"])}
        return open_landmark_predictor(models, **opened, **of_both)
    refuse_given(of_points, "for landmark models, and this one gives classes")
    if of_classes.pop("explain") is not None:
        refuse_given({"tta": of_classes["tta"]}, "--explain is of images as they are")
    predictor = open_predictor(models, **of_classes, **of_both)
    if of_classes["decode_processes"] is None:
        predictor.decode_processes = _suited_processes(predictor, count)
    return predictor


def _suited_processes(predictor: Predictor[Any], count: int) -> int:
    """Return how many processes decode `count` images: on CUDA all cores but one, if starting them pays off, else 0."""
    from tl.runtime.decode_pool import check_can_start
    from tl.runtime.devices import usable_cores

    cores = usable_cores()
    is_cpu = predictor.provider == "CPUExecutionProvider"  # its threads decode while others run inference
    if is_cpu or cores < _CORES_FOR_PROCESSES or count < _IMAGES_FOR_PROCESSES:
        return 0
    try:
        check_can_start()
    except WorkerError:
        return 0
    return cores - 1


def _read_boxes(boxes: Path | None) -> dict[str, Region] | None:
    if boxes is None:
        return None
    from tl.runtime.landmarks.boxes import read_boxes

    return read_boxes(boxes)


def _read_scales(given: str | None) -> float | dict[str, float] | None:
    if given is None:
        return None
    from tl.runtime.landmarks.boxes import read_scales

    try:
        scale = float(given)
    except ValueError:
        if not Path(given).is_file():
            raise ConfigError(f"--mm-per-px: '{given}' is neither a number such as 0.0125 nor a file") from None
        return read_scales(given)
    if not 0 < scale < math.inf:
        raise ConfigError(f"--mm-per-px: expected a number above 0 or a file, found '{given}'")
    return scale


def _drawer(
    predictor: Predictor[Any], points: Path | None, reasons: Path | None, undrawn: list[str]
) -> Callable[[Result], None]:
    """Return a function that draws each result, or does nothing. Adds images that it cannot open to `undrawn`.

    `points`: output folder for photos with landmarks. `reasons`: output folder for explanations of class labels.
    """
    if points is None and reasons is None:
        return lambda result: None
    from tl.runtime.ensembles.selective import REJECTED
    from tl.runtime.explain.drawing import draw_explanation, draw_landmarks, is_drawable, save_drawing
    from tl.runtime.explain.explanation import explain
    from tl.runtime.results import Classification, Landmarks

    contract = predictor.ensemble.sessions[0].contract
    skeleton = contract.landmarks.skeleton if contract is not None and contract.landmarks is not None else ()

    def draw(result: Result) -> None:
        if not isinstance(result, Landmarks | Classification) or contract is None:
            return
        if not is_drawable(result.path):
            undrawn.append(result.path)
            return
        _check_apart(result.path, [folder for folder in (points, reasons) if folder is not None])
        if isinstance(result, Landmarks) and points is not None:
            drawing = draw_landmarks(result.path, result, contract.preprocessing, skeleton)
            save_drawing(drawing, points, result.path, "points")
        elif isinstance(result, Classification) and reasons is not None:
            found = explain(predictor, result.path, None if result.label == REJECTED else result.label)
            save_drawing(draw_explanation(result.path, found, contract.preprocessing), reasons, result.path, "why")

    return draw


def _check_apart(image: str, folders: list[Path]) -> None:
    """Raise `ConfigError` if drawings would be saved among the images: a later call would read them as input."""
    for folder in folders:
        if Path(image).resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{folder}: holds {image}, and drawings would count as images: give another folder")


def _watcher(draw: Callable[[Result], None], unscaled: list[str]) -> Callable[[Result], None]:
    """Return a function that draws each result and adds images without a scale to `unscaled`."""
    from tl.runtime.results import Landmarks

    def see(result: Result) -> None:
        if isinstance(result, Landmarks) and result.mm_per_px is None:
            unscaled.append(result.path)
        draw(result)

    return see


def _find_images(images: list[str], files_from: str | None, null: bool) -> Inputs:
    from tl.runtime.sources.inputs import find_inputs
    from tl.runtime.sources.paths import read_path_list

    if not images and files_from is None:
        raise ConfigError("nothing to predict: name images or folders, or give --files-from")
    listed = read_path_list(files_from, null=null) if files_from is not None else []
    found = find_inputs(images, listed=listed)
    if found.passed_over:
        warn(f"passed over: {found.passed_over}")
    if not found:
        raise DataError(f"no images found in {', '.join([*images, *([files_from] if files_from else [])])}")
    return found


def _write_predictions(
    predictor: Predictor[Any],
    images: Inputs,
    output: Path | None,
    drawn_to: tuple[Path | None, Path | None],
    options: dict[str, Any],
) -> int:
    """Predict and write row by row. Returns the number of images that could not be read."""
    from tl.runtime.output.job import Tally, run_job
    from tl.runtime.results import PointFields

    tally = Tally()
    undrawn: list[str] = []
    unscaled: list[str] = []
    options["see"] = _drawer(predictor, *drawn_to, undrawn)
    if isinstance(predictor.fields, PointFields) and predictor.fields.with_scale:
        options["see"] = _watcher(options["see"], unscaled)
    started = time.monotonic()
    try:
        with predictor, console_progress() as progress:
            progress.start("predicting", len(images), "images")
            run_job(predictor, images, output, tally, advance=lambda tally: progress.advance(), **options)
    except KeyboardInterrupt:
        cure = "; add --resume to continue" if output else ""
        warn(f"interrupted after {tally.done} of {len(images)} images{cure}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if undrawn:
        warn(f"{len(undrawn)} images in archives are not drawn, first {undrawn[0]}: unpack them")
    if unscaled:
        warn(f"{len(unscaled)} images have no scale, first {unscaled[0]}: paths in the file are relative to its folder")
    new = tally.done - tally.kept
    speed = new / max(time.monotonic() - started, 1e-9)
    kept = f"{tally.kept} rows kept from before, " if tally.kept else ""
    where = f"; {output}" if output else ""
    listed = Path(f"{output}.failed.csv")
    if tally.failed and output is not None and listed.is_file():
        where += f", and the others in {listed}"
    warn(f"{kept}{tally.done - tally.failed} images predicted, {tally.failed} could not be read, {speed:.0f}/s{where}")
    return tally.failed
