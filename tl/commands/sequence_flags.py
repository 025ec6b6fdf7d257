"""Flags of `tl predict` for sequences of images and films, and for facts of photos; the plan that they ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tl.commands.console import console_progress, warn
from tl.commands.options import PathColumn
from tl.commands.output_formats import check_format
from tl.commands.requests import refuse_given
from tl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tl.runtime.model_file.contract import Task
    from tl.runtime.output.notes import Notes
    from tl.runtime.output.sequence_rows import SequencePlan
    from tl.runtime.output.writers import GivenFormat
    from tl.runtime.predictor import Predictor
    from tl.runtime.sources.inputs import Inputs

    AnyPredictor = Predictor[Any]

_USUAL_BATCH = 64  # of CUDA
FOR_SEQUENCES = "Sequences and films"

Sequence = Annotated[
    str | None,
    typer.Option(
        help="Decide on sequences of images too, by a vote, in OUT.sequences.csv: a column of the CSV in --files-from, "
        "or exif:30s for photos of one camera taken at most 30 s apart.",
        metavar="COLUMN|exif:30s",
        rich_help_panel=FOR_SEQUENCES,
    ),
]
SequenceVote = Annotated[
    Literal["soft", "hard", "max"] | None,
    typer.Option(help="How the images of a sequence vote. Default: soft.", rich_help_panel=FOR_SEQUENCES),
]


@dataclass(frozen=True, kw_only=True)
class SequenceFlags:
    """Sequences of images, which only classifiers decide on."""

    sequence: Sequence = None
    sequence_vote: SequenceVote = None


@dataclass(frozen=True, kw_only=True)
class ScoredSequences:
    """Sequences of labeled images, for `tl evaluate`."""

    sequence: Annotated[
        str | None,
        typer.Option(
            help="Classes: also score one decision per sequence of images, by a vote: a column of the CSV, or exif:30s "
            "for photos of one camera taken at most 30 s apart.",
            metavar="COLUMN|exif:30s",
            rich_help_panel="Data",
        ),
    ] = None
    sequence_vote: Annotated[
        Literal["soft", "hard", "max"] | None,
        typer.Option(help="How the images of a sequence vote. Default: soft.", rich_help_panel="Data"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class FileFlags:
    """What is read from the files besides images."""

    every: Annotated[
        str | None,
        typer.Option(
            help="Also predict films (.mp4, .avi, .mov, .mkv ...): one frame for this time, such as 1s. Each film is a "
            "sequence. Requires the program ffmpeg.",
            metavar="TIME",
            rich_help_panel=FOR_SEQUENCES,
        ),
    ] = None
    exif: Annotated[
        bool,
        typer.Option(
            "--exif",
            help="Add columns from the photos' EXIF data: captured, camera_make, camera_model, latitude, longitude.",
            rich_help_panel=FOR_SEQUENCES,
        ),
    ] = False
    path_column: PathColumn = None


@dataclass(frozen=True)
class Listed:
    """What --files-from lists: names, and if it is a table, the sequence of each."""

    names: Iterable[str] = ()
    sequences: Mapping[str, str] = field(default_factory=dict)
    is_located: bool = False


def parse_every(text: str | None) -> float | None:
    """Parse --every. Raises `ConfigError`."""
    from tl.runtime.sources.durations import parse_seconds

    if text is None:
        return None
    seconds = parse_seconds(text)
    if seconds is None or seconds < 0.001:
        raise ConfigError(f"--every: expected a time such as 1s, 0.5s or 2m, found '{text}'")
    return seconds


def read_listed(
    files_from: str | None, images: Path | None, flags: SequenceFlags, files: FileFlags, *, null: bool
) -> Listed:
    """Read --files-from: lines, or a CSV if --sequence names one of its columns. Raises `ConfigError`, `DataError`."""
    from tl.runtime.sources.paths import iter_path_list
    from tl.runtime.sources.sequences import parse_rule, read_sequence_table

    rule = None if flags.sequence is None else parse_rule(flags.sequence)
    if rule is None or rule.uses_times:
        if files.path_column is not None:
            raise ConfigError("--path-column requires --sequence COLUMN: without it, --files-from has no columns")
        return Listed() if files_from is None else Listed(iter_path_list(files_from, null=null))
    if files_from is None:
        raise ConfigError(
            f"--sequence {rule.column} is a column of a CSV with path and {rule.column}: give it as --files-from, or "
            "give exif:30s for capture times"
        )
    if null:
        raise ConfigError("--null applies to a list of names, but --sequence COLUMN reads --files-from as a CSV")
    rows = read_sequence_table(files_from, rule.column, files.path_column, images)
    return Listed([name for name, _ in rows], dict(rows), is_located=True)


def find_images(
    images: list[str],
    files_from: str | None,
    images_in: Path | None,
    flags: SequenceFlags,
    files: FileFlags,
    *,
    null: bool,
    max_bytes: int,
    batch_size: int | None,
) -> tuple[Inputs, Mapping[str, str]]:
    """Return the images to predict, and the sequences of those in a table. Raises `ConfigError`, `DataError`."""
    from tl.runtime.sources.inputs import find_inputs

    every = parse_every(files.every)
    if not images and files_from is None:
        raise ConfigError("nothing to predict: give images, folders or --files-from")
    listed = read_listed(files_from, images_in, flags, files, null=null)
    found = find_inputs(
        images,
        listed=listed.names,
        images=None if listed.is_located else images_in,
        max_member_bytes=max_bytes,
        every=every,
        batch_size=max(_USUAL_BATCH, batch_size or 0),
    )
    if found.passed_over:
        warn(f"skipped: {found.passed_over}")
    say_films(found, files.every)
    if not found:
        raise DataError(f"no images found in {', '.join([*images, *([files_from] if files_from else [])])}")
    return found, listed.sequences


def check_choices(
    flags: SequenceFlags,
    files: FileFlags,
    output: Path | None,
    files_from: str | None,
    *,
    point_format: GivenFormat | None,
    task: Task,
    boxes: Path | None,
) -> None:
    """Raise `ConfigError` for options and a format that do not apply. `boxes`: the file of boxes."""
    from tl.runtime.output.sequence_rows import sequence_path

    with_boxes, with_sequences = boxes is not None, flags.sequence is not None
    check_format(point_format, output, task, boxes=with_boxes, exif=files.exif, sequences=with_sequences)
    if task != "classification":
        refuse_given(flags, f"applies only to classifiers, but this is a model for {task}")
        return
    if boxes is not None and files.every is not None:
        raise ConfigError("--every predicts whole frames of films, and cannot be combined with --boxes")
    if flags.sequence is not None or files.every is not None:
        if output is None:
            given = "--sequence" if flags.sequence is not None else "--every"
            raise ConfigError(f"{given} writes sequences beside the output: give --out")
        for name in (files_from, boxes):
            if name is not None and Path(name).absolute() == sequence_path(output).absolute():
                raise ConfigError(f"{name}: is read by this command: give the output another name")
    elif flags.sequence_vote is not None:
        raise ConfigError("--sequence-vote requires --sequence, or films and --every")


def plan_sequences(
    flags: SequenceFlags, files: FileFlags, inputs: Inputs, listed: Mapping[str, str], predictor: AnyPredictor
) -> SequencePlan | None:
    """Say which image belongs to which sequence; None if there are no sequences. Reads capture times if they count."""
    from tl.runtime.ensembles.ensemble import Ensemble
    from tl.runtime.output.sequence_rows import SequencePlan
    from tl.runtime.sources.sequences import parse_rule

    ensemble = predictor.ensemble
    if files.every is not None and not inputs.films:
        warn("--every applies to films, but none of the inputs is one")
    if not isinstance(ensemble, Ensemble) or (flags.sequence is None and files.every is None):
        return None
    rule = None if flags.sequence is None else parse_rule(flags.sequence)
    of = _group_by_time(inputs, rule.seconds) if rule is not None and rule.uses_times else listed
    return SequencePlan(of, flags.sequence_vote or "soft", ensemble.selective.min_confidence, ensemble.taxonomy)


def build_notes(files: FileFlags, plan: SequencePlan | None) -> Notes:
    """Return the columns that are added to the rows of images."""
    from tl.runtime.output.notes import Notes

    return Notes(plan, files.exif)


def say_films(inputs: Inputs, every: str | None) -> None:
    """Say that films are not read without --every."""
    from tl.runtime.sources.paths import FoundImages

    skipped = sum(part.films for part in inputs.parts if isinstance(part, FoundImages))
    if every is None and (skipped or inputs.films):
        warn("--every 1s predicts the frames of films")


def _group_by_time(inputs: Inputs, seconds: float) -> Mapping[str, str]:
    from tl.runtime.imaging.decode import source_name
    from tl.runtime.imaging.exif import read_facts
    from tl.runtime.prefetch import prefetch_map
    from tl.runtime.sources.sequences import check_times, group_by_time

    photos = []
    with console_progress() as progress:
        progress.start("reading capture times", len(inputs), "images")
        sources = inputs.without_films()
        for found in prefetch_map(lambda s: (source_name(s), read_facts(s)), sources, workers=8, ahead=32):
            photos.append(found)
            progress.advance()
    grouped = group_by_time(photos, seconds)
    check_times(grouped, len(photos))
    if grouped.timeless:
        count, first = len(grouped.timeless), grouped.timeless[0]
        warn(f"{count} images have no capture time, first {first}: each is a sequence of its own")
    if grouped.in_future:
        count, first = len(grouped.in_future), grouped.in_future[0]
        warn(f"{count} images were taken in the future by their EXIF data, first {first}: is the camera's clock right?")
    return grouped.of
