"""Flags shared by several commands, functions that open the models they name, and vote-weight files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl.commands.console import warn
from tl.commands.device_notes import say_device
from tl.commands.model_files import check_model_files, warn_of_equal_files
from tl.commands.requests import refuse_given
from tl.errors import ConfigError

if TYPE_CHECKING:
    from tl.evaluation.evaluate import Evaluation, Row
    from tl.runtime.imaging.pipeline import TtaKind
    from tl.runtime.imaging.regions import Box, Region
    from tl.runtime.model_file.contract import Task
    from tl.runtime.predictor import Predictor
    from tl.runtime.results import Classification, Landmarks, Multilabel, Regression
    from tl.runtime.session import Session
    from tl.runtime.sources.boxed_images import BoxList

FOR_ENSEMBLES, FOR_CLASSES, FOR_LANDMARKS, FOR_SPEED = "Ensembles", "Classes", "Landmarks", "Speed"

VoteWeights = Annotated[
    str | None, typer.Option(help="One weight per member, as in 2,1,1, or a file from tl evaluate --fit-vote-weights.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output files.")]
SplitColumn = Annotated[str, typer.Option(help="CSV column that holds the split.", rich_help_panel="Data")]
PathColumn = Annotated[
    str | None,
    typer.Option(help="CSV column that holds the images' paths, if not called path.", rich_help_panel="Data"),
]
ImageFolder = Annotated[
    Path | None,
    typer.Option(
        "--images",
        help="CSV and landmark files: folder that the images' paths are relative to, if not the file's own.",
        rich_help_panel="Data",
    ),
]
LabelColumn = Annotated[
    str | None, typer.Option(help="CSV column that holds the labels, if not called label.", rich_help_panel="Data")
]
Device = Annotated[
    str, typer.Option(help="auto (CUDA or the CPU), cpu, cuda, cuda:N, openvino or another that tl doctor lists.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all cores.", rich_help_panel=FOR_SPEED)]
Tta = Annotated[
    str | None,
    typer.Option(
        help="Test-time augmentation: average over views of each image; hflip, vflip and crops, as in hflip,crops. "
        "Time grows with the number of views.",
        show_default=False,
        rich_help_panel=FOR_CLASSES,
    ),
]


def check_outputs(overwrite: bool, *paths: Path | None, inputs: Iterable[Path | str | None] = ()) -> None:
    """Raise `OutputError`, before any work, for output files that cannot be written, exist already, or are the same.

    `inputs`: files that the command reads, which are never its outputs. Raises `ConfigError` for one that is.
    """
    from tl.runtime.output.files import check_output

    outputs = [path for path in paths if path is not None]
    read = [Path(path) for path in inputs if path is not None and Path(path).is_file()]
    for number, path in enumerate(outputs):
        if any(path.absolute() == other.absolute() for other in outputs[:number]):
            raise ConfigError(f"{path}: is the name of two outputs: give each a name of its own")
        check_output(path, overwrite=overwrite)
        if path.is_file() and any(path.samefile(each) for each in read):
            raise ConfigError(f"{path}: is read by this command: give the output another name")


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """The model files and where they run."""

    model: Annotated[Path | None, typer.Option("--model", "-m", help="Model file.")] = None
    ensemble: Annotated[list[Path] | None, typer.Option(help="Model files that vote together, all after one flag.")] = (
        None
    )
    vote_weights: VoteWeights = None
    device: Device = "auto"
    threads: Threads = None

    def paths(self) -> list[Path]:
        """Return the paths of --model or --ensemble. Raises `ConfigError` unless exactly one is given."""
        models = self.ensemble or ([self.model] if self.model else [])
        if not models or (self.ensemble and self.model):
            raise ConfigError("give either --model a.onnx or --ensemble a.onnx b.onnx c.onnx")
        return models


@dataclass(frozen=True, kw_only=True)
class ClassFlags:
    """How classifiers vote, reject and augment."""

    vote: Annotated[
        Literal["soft", "hard", "max"] | None, typer.Option(help="Voting rule of an ensemble. Default: soft.")
    ] = None
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Also output a set of classes that contains the true one with this probability, such as 0.95; for "
            "numbers, an interval; for several labels, a set that holds this share of them on average.",
            show_default=False,
        ),
    ] = None
    min_confidence: Annotated[
        float | None, typer.Option(help='Label images with a lower confidence "?".', show_default=False)
    ] = None
    reject_unknown: Annotated[
        bool, typer.Option("--reject-unknown", help='Label images that are unlike the training images "?".')
    ] = False
    only: Annotated[
        str | None,
        typer.Option(
            help="Classes that can occur, such as a region's species: names separated by commas, or a file with one "
            "per line. Probabilities of the others are left out.",
            rich_help_panel=FOR_CLASSES,
        ),
    ] = None
    tta: Tta = None
    classes: Annotated[
        Literal["same", "union"] | None,
        typer.Option(help="union allows members with different classes. Default: same.", rich_help_panel=FOR_ENSEMBLES),
    ] = None


@dataclass(frozen=True, kw_only=True)
class PointFlags:
    """How landmark models are merged, and which region of an image they use."""

    merge: Annotated[
        Literal["mean", "median", "confidence"] | None,
        typer.Option(
            help="How to combine the points or numbers of an ensemble's members. Default: mean.",
            rich_help_panel=FOR_LANDMARKS,
        ),
    ] = None
    locator: Annotated[
        Path | None,
        typer.Option(
            help="Coarse landmark model that locates the region of each photo for --model.",
            rich_help_panel=FOR_LANDMARKS,
        ),
    ] = None
    crop_margin: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Margin added on every side of the region, as a fraction of its size. Default: as in training.",
            rich_help_panel=FOR_LANDMARKS,
        ),
    ] = None


def open_models(flags: ModelFlags) -> list[Session]:
    """Open the files of --model or --ensemble, once per command."""
    from tl.runtime.session import Session

    paths = flags.paths()
    check_model_files(*paths)
    warn_of_equal_files(paths)
    return [Session(path, device=flags.device, threads=1) for path in paths]


def open_predictor(
    sessions: list[Session],
    models: ModelFlags,
    flags: ClassFlags,
    *,
    decode_processes: int = 0,
    boxes: BoxList | None = None,
) -> Predictor[Classification]:
    """Build a predictor for classifiers and print where it runs, if that was not asked for."""
    from tl.runtime.ensembles.selective import SelectivePrediction
    from tl.runtime.predictor import load

    try:
        selective = SelectivePrediction(flags.coverage, flags.min_confidence, flags.reject_unknown)
    except ValueError as error:
        raise ConfigError(f"--{str(error).replace('_', '-', 1)}") from error
    alone = sessions[0]
    if models.ensemble is None and alone.contract is not None and alone.contract.ensemble is not None:
        votes_itself = f"the voting rule of {alone.path} is fixed; tl merge creates files with other rules"
        refuse_given(ClassFlags(vote=flags.vote), votes_itself)
        refuse_given(ModelFlags(vote_weights=models.vote_weights), votes_itself)
    predictor = load(
        sessions if models.ensemble else alone,
        device=models.device,
        threads=models.threads,
        vote=flags.vote or "soft",
        weights=parse_vote_weights(models.vote_weights, models.paths()),
        classes=flags.classes or "same",
        selective=selective,
        tta=parse_tta(flags.tta),
        only=_parse_only(flags.only),
        decode_processes=decode_processes,
        boxes=boxes,
    )
    say_device(predictor, models.device)
    if flags.only is not None:
        _say_left_out(predictor, flags.only)
    return predictor


def open_landmark_predictor(
    sessions: list[Session],
    models: ModelFlags,
    flags: PointFlags,
    *,
    boxes: Mapping[str, Region | Box] | None = None,
    mm_per_px: float | Mapping[str, float] | None = None,
) -> Predictor[Landmarks]:
    """Build a predictor for landmark models and print where it runs, if that was not asked for."""
    from tl.runtime.predictor import load_landmarks

    check_model_files(flags.locator)
    predictor = load_landmarks(
        sessions if models.ensemble else sessions[0],
        device=models.device,
        threads=models.threads,
        merge=flags.merge or "mean",
        weights=parse_vote_weights(models.vote_weights, models.paths()),
        locator=flags.locator,
        boxes=boxes,
        crop_margin=flags.crop_margin,
        mm_per_px=mm_per_px,
    )
    say_device(predictor, models.device)
    return predictor


def open_regression_predictor(
    sessions: list[Session],
    models: ModelFlags,
    points: PointFlags,
    coverage: float | None = None,
    *,
    decode_processes: int = 0,
) -> Predictor[Regression]:
    """Build a predictor for models of numbers and print where it runs, if that was not asked for."""
    from tl.runtime.predictor import load_regression

    if points.merge == "confidence":
        raise ConfigError("--merge confidence is only for landmarks: use mean or median")
    predictor = load_regression(
        sessions if models.ensemble else sessions[0],
        device=models.device,
        threads=models.threads,
        merge=points.merge or "mean",
        weights=parse_vote_weights(models.vote_weights, models.paths()),
        coverage=coverage,
        decode_processes=decode_processes,
    )
    say_device(predictor, models.device)
    return predictor


def open_multilabel_predictor(
    sessions: list[Session], models: ModelFlags, coverage: float | None = None
) -> Predictor[Multilabel]:
    """Build a predictor for models of several labels and print where it runs, if that was not asked for."""
    from tl.runtime.predictor import load_multilabel

    predictor = load_multilabel(
        sessions if models.ensemble else sessions[0],
        device=models.device,
        threads=models.threads,
        weights=parse_vote_weights(models.vote_weights, models.paths()),
        coverage=coverage,
    )
    say_device(predictor, models.device)
    return predictor


def task_of(sessions: list[Session]) -> Task:
    """Return the task of the first model."""
    contract = sessions[0].contract
    return "classification" if contract is None else contract.task


def _parse_only(text: str | None) -> list[str] | None:
    """Parse `"a,b"`, or the file of that name, to class names. Raises `DataError` for a file that cannot be read."""
    from tl.runtime.sources.paths import read_path_list

    if text is None:
        return None
    names = read_path_list(text) if Path(text).is_file() else text.split(",")
    return [name.strip() for name in names if name.strip()]


def _say_left_out(predictor: Predictor[Classification], only: str) -> None:
    from tl.runtime.sources.names import composed

    kept = set(map(composed, _parse_only(only) or []))
    left_out = [name for name in predictor.class_names if name not in kept]
    shown = ", ".join(left_out[:5]) + (" ..." if len(left_out) > 5 else "")
    warn(f"--only leaves out {len(left_out)} of {len(predictor.class_names)} classes: {shown}")


def parse_tta(text: str | None) -> list[TtaKind]:
    """Parse `"hflip,crops"` to a list of TTA kinds. Raises `ConfigError`."""
    from tl.runtime.imaging.pipeline import check_tta

    try:
        return check_tta([] if text is None else [kind.strip() for kind in text.split(",")])
    except ValueError as error:
        raise ConfigError(f"--{error}") from error


def parse_vote_weights(text: str | None, models: list[Path]) -> list[float] | None:
    """Parse `2,1,1` or a file from `tl evaluate --fit-vote-weights` to one weight per model. Raises `ConfigError`."""
    if text is None:
        return None
    if Path(text).is_file():
        return _read_vote_weights(Path(text), models)
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--vote-weights: expected numbers such as 2,1,1, or a file, found '{text}'") from error


def _read_vote_weights(path: Path, models: list[Path]) -> list[float]:
    from tl.runtime.ensembles.ensemble import member_names
    from tl.runtime.model_file.strict_json import parse_json

    try:
        plain = parse_json(path.read_text(encoding="utf-8"))
        weights = plain["vote_weights"] if isinstance(plain, dict) else None
        if not isinstance(weights, dict) or not all(isinstance(value, int | float) for value in weights.values()):
            raise ValueError("expected vote_weights with one number per member")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"--vote-weights {path}: not a file of tl evaluate --fit-vote-weights ({error})") from error
    names = member_names([str(model) for model in models])
    if lacking := [name for name in weights if name not in names]:
        raise ConfigError(
            f"--vote-weights {path}: contains weights for {', '.join(lacking)}, not among the members of --ensemble"
        )
    if surplus := [name for name in names if name not in weights]:
        raise ConfigError(
            f"--vote-weights {path}: contains no weight for {', '.join(surplus)}; remove it from --ensemble"
        )
    return [float(weights[name]) for name in names]


def fit_vote_file(result: Evaluation, path: Path, *, select: bool) -> Row:
    """Fit vote weights on the images of an evaluation and write them to `path`. Returns their row of scores.

    Raises `DataError`, `OutputError`.
    """
    from tl.evaluation.evaluate import fit_votes
    from tl.runtime.output.files import write_text

    fitted = fit_votes(result, select=select)
    kept = {name: round(weight, 6) for name, weight in fitted.weights.items() if weight > 0}
    write_text(path, json.dumps({"vote_weights": kept}, indent=2, ensure_ascii=False) + "\n")
    warn(f"{path}: {', '.join(f'{name} {weight:.3g}' for name, weight in kept.items())}")
    if left_out := [name for name, weight in fitted.weights.items() if weight == 0]:
        warn(f"left out: {', '.join(left_out)}")
    losses = f"{fitted.log_loss:.4f} on images held out from fitting, {fitted.equal_log_loss:.4f} with equal weights"
    is_better = fitted.log_loss < fitted.equal_log_loss
    warn(f"log loss {losses}" + ("" if is_better else ": equal weights are at least as good"))
    return fitted.row
