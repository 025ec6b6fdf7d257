"""Flags of `tl predict` as groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from tl.commands.options import FOR_LANDMARKS, FOR_SPEED, ClassFlags, PointFlags

_INPUT_AND_OUTPUT = "Input and output"


@dataclass(frozen=True, kw_only=True)
class ImageFlags:
    """The images to predict."""

    images: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, patterns such as 'photos/**/*.jpg', or zip and tar archives."),
    ] = None
    files_from: Annotated[
        str | None,
        typer.Option(
            help="Also predict the files listed in this file, one per line; - for stdin.",
            metavar="FILE",
            rich_help_panel=_INPUT_AND_OUTPUT,
        ),
    ] = None
    images_in: Annotated[
        Path | None,
        typer.Option(
            "--images",
            help="Folder that the names in --files-from are relative to; file names alone are enough.",
            metavar="FOLDER",
            rich_help_panel=_INPUT_AND_OUTPUT,
        ),
    ] = None
    null: Annotated[
        bool,
        typer.Option(
            "--null",
            "-0",
            help="Names in --files-from are separated by NUL, as written by find -print0.",
            rich_help_panel=_INPUT_AND_OUTPUT,
        ),
    ] = False
    max_file_size: Annotated[
        int,
        typer.Option(min=1, help="Largest image read from an archive, in MiB.", rich_help_panel=_INPUT_AND_OUTPUT),
    ] = 128


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """The file of results, and how it is written."""

    output: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Output: .csv, .xlsx, .jsonl, .parquet; for landmarks also .tps, .json (COCO). Default: CSV, stdout.",
        ),
    ] = None
    to: Annotated[
        Literal["csv", "long", "tps", "coco", "deeplabcut", "megadetector", "labelstudio", "cvat"] | None,
        typer.Option(
            help="Output format. Default: from the file extension. Landmarks: csv has one row per image. Classes: "
            "megadetector adds them to the file of --boxes. labelstudio: tasks with predictions, .json.",
            rich_help_panel=_INPUT_AND_OUTPUT,
        ),
    ] = None
    excel: Annotated[
        bool,
        typer.Option(
            "--excel",
            help="Write a .csv for spreadsheet programs: no text is run as a formula.",
            rich_help_panel=_INPUT_AND_OUTPUT,
        ),
    ] = False
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Keep the rows of an earlier call with the same images and models.",
            rich_help_panel=_INPUT_AND_OUTPUT,
        ),
    ] = False
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Like --resume, and retry images that could not be read.",
            rich_help_panel=_INPUT_AND_OUTPUT,
        ),
    ] = False
    fail_fast: Annotated[
        bool,
        typer.Option(
            "--fail-fast", help="Stop at the first image that cannot be read.", rich_help_panel=_INPUT_AND_OUTPUT
        ),
    ] = False
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace an existing output file. Otherwise only an unchanged output of the same models is replaced.",
            rich_help_panel=_INPUT_AND_OUTPUT,
        ),
    ] = False
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images per batch. Default: depends on the device.", rich_help_panel=FOR_SPEED),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ForClasses(ClassFlags):
    """What applies to classifiers alone."""

    explain: Annotated[
        Path | None,
        typer.Option(
            help="Classes: write each photo, with the regions that explain its label, to this folder. Fast for files "
            "from tl export --cam; 50 times as slow as prediction for others."
        ),
    ] = None
    decode_processes: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Classes: number of image decoding processes; 0 decodes in threads. Default: all cores but one for "
            "many images on CUDA, else 0.",
            rich_help_panel=FOR_SPEED,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ForLandmarks(PointFlags):
    """What applies to landmark models alone."""

    mm_per_px: Annotated[
        str | None,
        typer.Option(
            help="Scale of the photos, or a file that contains it: CSV with path,mm_per_px, TPS, COCO.",
            rich_help_panel=FOR_LANDMARKS,
        ),
    ] = None
    draw: Annotated[
        Path | None,
        typer.Option(
            help="Write each photo, with the points and their names drawn on it, to this folder.",
            rich_help_panel=FOR_LANDMARKS,
        ),
    ] = None
