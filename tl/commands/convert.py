"""`tl convert`: convert landmarks from one file format to another, and files of labeling tools to CSV."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from tl.commands.console import warn
from tl.commands.convert_tools import TOOL_SUFFIXES, check_folder, write_classes_for, write_points_for
from tl.commands.options import Overwrite, check_outputs
from tl.commands.requests import from_flags, refuse_given
from tl.commands.task_flags import TaskFlags, links_of, write_interface
from tl.errors import ConfigError, DataError

Formats = Literal["csv", "long", "tps", "coco", "deeplabcut", "labelstudio", "cvat", "via", "labelme", "roboflow"]
Tasks = Literal["landmarks", "classification", "multilabel"]
Annotators = Literal["latest", "majority"]


@dataclass(frozen=True, kw_only=True)
class _PointFlags:
    """What applies to landmarks alone."""

    to: Annotated[
        Formats | None,
        typer.Option(
            help="Output format. Default: from the file extension; csv has one row per image. cvat, via and labelme "
            "hold classes too, roboflow classes alone; labelme is a folder."
        ),
    ] = None
    from_stored: Annotated[
        bool,
        typer.Option(
            "--from-stored",
            help="Points are in the coordinates of the stored photos, before EXIF orientation is applied.",
        ),
    ] = False
    names: Annotated[
        str | None, typer.Option(help="Point names in order, such as tip,left,right, for TPS, which has none.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class _ToolFlags:
    """What applies to files of labeling tools alone."""

    task: Annotated[
        Tasks | None,
        typer.Option(help="Labeling tools: what to convert. Default: landmarks if the file has points, else classes."),
    ] = None
    annotators: Annotated[
        Annotators,
        typer.Option(
            help="Label Studio: of several annotations of an image, use the latest, or the majority: the class given "
            "most often, the median of points that more than half have placed."
        ),
    ] = "latest"
    label_column: Annotated[
        str | None,
        typer.Option(help="Labeling tools: name of the choice or attribute to use, if there are several."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ConvertRequest:
    """Everything that `tl convert` was asked for."""

    source: Annotated[
        Path,
        typer.Argument(
            help="Landmarks: .csv, .tps, .json (COCO). Labeling tools: .json, .xml, .csv, or a folder.",
            show_default=False,
        ),
    ]
    target: Annotated[Path | None, typer.Argument(help="Output file.", show_default=False)] = None
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Output file, if not given as argument.")] = None
    overwrite: Overwrite = False
    images: Annotated[
        Path | None, typer.Option(help="Folder that image names are relative to. Default: the folder of the file.")
    ] = None
    points: _PointFlags
    tool: _ToolFlags
    tasks: TaskFlags


@from_flags
def command(request: ConvertRequest) -> None:
    """Convert landmarks between formats, and files of Label Studio, CVAT, VIA, labelme and Roboflow to CSV.

    Examples:
    - `tl convert wings.tps wings.csv --images photos/ --names base,tip,hinge`

    - `tl convert export.json -o labels.csv --images photos/`: classes or points from a labeling tool

    - `tl convert labels.csv -o tags.xml --to cvat`: classes or points for a labeling tool

    Coordinates are relative to the center of the top-left pixel of the upright photo; with --from-stored, they come
    from a program that ignores a photo's EXIF orientation. In TPS, y is measured from the bottom, so the photos must be
    available. Fields that the output format cannot store are reported.
    """
    from tl.runtime.labeling.tools import find_tool, has_several_labels
    from tl.runtime.landmarks.files import is_landmark_file

    source, to, task = request.source, request.points.to, request.tool.task
    if (request.target is None) == (request.out is None):
        raise ConfigError("name one output file, as the second argument or with --out")
    output = request.target or request.out or Path()
    _check_output(output, to, request.overwrite)
    if output.exists() and source.exists() and output.samefile(source):
        raise DataError(f"{output}: output and input are the same file; choose another output name")
    if find_tool(source) is None and to in TOOL_SUFFIXES and not is_landmark_file(source):
        task = task or "classification"
    elif find_tool(source) is None:
        refuse_given(
            replace(request.tool, task=None if task == "landmarks" else task), f"{source} is of no labeling tool"
        )
    elif task is None and not is_landmark_file(source):
        task = "multilabel" if has_several_labels(source) else "classification"
    if task in ("classification", "multilabel"):
        why = "does not apply to classes"
        is_written = to is None or to == "csv" or to in TOOL_SUFFIXES
        refuse_given(replace(request.points, to=None if is_written else to), f"{why}, which are written as CSV")
        refuse_given(request.tasks, why)
        _write_labels(request, output, several=task == "multilabel")
    else:
        _write_points(request, output)


def _check_output(output: Path, to: Formats | None, overwrite: bool) -> None:
    """Raise `DataError` for a name that does not fit the format, `OutputError`."""
    from tl.runtime.landmarks.files import SUFFIXES

    suffixes: dict[str, str] = dict([*TOOL_SUFFIXES.items(), *SUFFIXES.items()])
    if to is not None and output.suffix.lower() != suffixes[to]:
        expected = f"the extension {suffixes[to]}" if suffixes[to] else "the name of a folder, without an extension,"
        raise DataError(f"{output}: expected {expected} for format {to}")
    if to == "labelme":
        check_folder(output, overwrite=overwrite)
    else:
        check_outputs(overwrite, output)


def _write_labels(request: ConvertRequest, output: Path, *, several: bool) -> None:
    """Write a CSV of labels, with paths relative to its folder."""
    from tl.data.label_sets import read_label_sets
    from tl.data.manifests import ManifestColumns, read_images
    from tl.runtime.output.columns import LABEL_SEPARATOR
    from tl.runtime.output.files import write_text
    from tl.runtime.sources.tables import csv_text

    to = request.points.to
    if to not in TOOL_SUFFIXES and output.suffix.lower() != ".csv":
        raise DataError(f"{output}: expected the extension .csv for classes")
    source, folder, tool = request.source, request.images, request.tool
    columns = ManifestColumns(
        label=tool.label_column, images=None if folder is None else str(folder), annotators=tool.annotators
    )
    found = read_label_sets(str(source), columns, warn)[1] if several else read_images(source, columns, warn)
    given = [image.label.split(LABEL_SEPARATOR) if several else [image.label] for image in found]
    names = {name for labels in given for name in labels if name}
    say_done = f"{len(found)} images with {len(names)} {'labels' if several else 'classes'}; {output}"
    if to == "via" or to == "labelme" or to == "roboflow" or to == "cvat":
        write_classes_for(to, output, found, [[name for name in labels if name] for labels in given])
        warn(say_done)
        return
    has_splits = any(image.split for image in found)
    rows = [["path", "labels" if several else "label", *(["split"] if has_splits else [])]]
    for image in found:
        path = Path(os.path.relpath(image.path, output.parent)).as_posix()
        rows.append([path, image.label, *([image.split] if has_splits else [])])
    write_text(output, csv_text(rows))
    warn(say_done)


def _write_points(request: ConvertRequest, output: Path) -> None:
    from tl.runtime.landmarks.files import image_finder, image_sizes, lost_in, read_landmarks, write_landmarks

    source, images, names, to = request.source, request.images, request.points.names, request.points.to
    find = image_finder(source, images)
    links = links_of(request.tasks, source.stem, find, is_asked=to == "labelstudio")
    landmarks = read_landmarks(
        source,
        images,
        from_stored=request.points.from_stored,
        label=request.tool.label_column,
        annotators=request.tool.annotators,
    )
    if names is not None:
        chosen = tuple(name.strip() for name in names.split(","))
        if len(chosen) != len(landmarks.keypoint_names) or len(set(chosen)) != len(chosen) or "" in chosen:
            count = len(landmarks.keypoint_names)
            raise DataError(f"--names: expected {count} different names separated by commas, found {names}")
        landmarks = replace(landmarks, keypoint_names=chosen)
    if to == "via" or to == "labelme" or to == "roboflow":
        write_points_for(to, output, landmarks, find)
    else:
        write_landmarks(landmarks, output, to, image_sizes(find), links)
        for remark in lost_in(landmarks, output, to):
            warn(remark)
    if links is not None:
        write_interface(output, request.overwrite, (), landmarks.keypoint_names)
    for remark in landmarks.remarks:
        warn(remark)
    warn(f"{len(landmarks.images)} images with {len(landmarks.keypoint_names)} points; {output}")
