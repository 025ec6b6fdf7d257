"""`tl convert`: convert landmarks from one file format to another, and files of labeling tools to CSV."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from tl.commands.console import warn
from tl.commands.options import Overwrite, check_outputs
from tl.commands.task_flags import ImagePrefix, ImageRoot, TaskFlags, links_of, write_interface
from tl.errors import ConfigError, DataError

Formats = Literal["csv", "long", "tps", "coco", "deeplabcut", "labelstudio"]
Tasks = Literal["landmarks", "classification", "multilabel"]
Annotators = Literal["latest", "majority"]
FromStored = Annotated[
    bool,
    typer.Option(
        "--from-stored", help="Points are in the coordinates of the stored photos, before EXIF orientation is applied."
    ),
]


def command(
    source: Annotated[
        Path,
        typer.Argument(
            help="Landmarks: .csv, .tps, .json (COCO). Labeling tools: .json, .xml, .csv, or a folder.",
            show_default=False,
        ),
    ],
    target: Annotated[Path | None, typer.Argument(help="Output file.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Output file, if not given as argument.")] = None,
    overwrite: Overwrite = False,
    to: Annotated[
        Formats | None, typer.Option(help="Output format. Default: from the file extension; csv has one row per image.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder that image names are relative to. Default: the folder of the file.")
    ] = None,
    from_stored: FromStored = False,
    names: Annotated[
        str | None, typer.Option(help="Point names in order, such as tip,left,right, for TPS, which has none.")
    ] = None,
    task: Annotated[
        Tasks | None,
        typer.Option(help="Labeling tools: what to convert. Default: landmarks if the file has points, else classes."),
    ] = None,
    annotators: Annotated[
        Annotators,
        typer.Option(
            help="Label Studio: of several annotations of an image, use the latest, or the majority: the class given "
            "most often, the median of points that more than half have placed."
        ),
    ] = "latest",
    label_column: Annotated[
        str | None,
        typer.Option(help="Labeling tools: name of the choice or attribute to use, if there are several."),
    ] = None,
    image_root: ImageRoot = None,
    image_prefix: ImagePrefix = None,
) -> None:
    """Convert landmarks between formats, and files of Label Studio, CVAT, VIA, labelme and Roboflow to CSV.

    Examples:
    - `tl convert wings.tps wings.csv --images photos/ --names base,tip,hinge`

    - `tl convert export.json -o labels.csv --images photos/`: classes or points from a labeling tool

    - `tl convert phone.csv upright.csv --from-stored` for points from a program that ignores a photo's EXIF orientation

    Coordinates are relative to the center of the top-left pixel of the upright photo. In TPS, y is measured from the
    bottom, so the photos must be available. Fields that the output format cannot store are reported.
    """
    from tl.runtime.labeling.tools import find_tool, has_several_labels
    from tl.runtime.landmarks.files import SUFFIXES, is_landmark_file

    if (target is None) == (out is None):
        raise ConfigError("name one output file, as the second argument or with --out")
    output = target or out or Path()
    check_outputs(overwrite, output)
    if output.exists() and source.exists() and output.samefile(source):
        raise DataError(f"{output}: output and input are the same file; choose another output name")
    if to is not None and output.suffix.lower() != SUFFIXES[to]:
        raise DataError(f"{output}: expected the extension {SUFFIXES[to]} for format {to}")
    is_tool_file = find_tool(source) is not None
    if not is_tool_file and (task not in (None, "landmarks") or annotators != "latest" or label_column is not None):
        raise ConfigError(
            f"--task, --annotators and --label-column are for files of labeling tools, which {source} is not"
        )
    if task is None and is_tool_file and not is_landmark_file(source):
        task = "multilabel" if has_several_labels(source) else "classification"
    tasks = TaskFlags(image_root=image_root, image_prefix=image_prefix)
    if task in ("classification", "multilabel"):
        if to not in (None, "csv") or names is not None or from_stored or tasks != TaskFlags():
            raise ConfigError("classes are written as CSV: leave out the options for landmarks")
        _write_labels(source, output, images, label_column, annotators, several=task == "multilabel")
    else:
        _write_points(source, output, to, images, from_stored, names, label_column, annotators, tasks, overwrite)


def _write_labels(
    source: Path, output: Path, images: Path | None, column: str | None, annotators: Annotators, *, several: bool
) -> None:
    """Write a CSV of labels, with paths relative to its folder."""
    from tl.data.label_sets import read_label_sets
    from tl.data.manifests import ManifestColumns, read_images
    from tl.runtime.output.files import write_text
    from tl.runtime.sources.tables import csv_text

    if output.suffix.lower() != ".csv":
        raise DataError(f"{output}: expected the extension .csv for classes")
    columns = ManifestColumns(label=column, images=None if images is None else str(images), annotators=annotators)
    found = read_label_sets(str(source), columns, warn)[1] if several else read_images(source, columns, warn)
    has_splits = any(image.split for image in found)
    rows = [["path", "labels" if several else "label", *(["split"] if has_splits else [])]]
    for image in found:
        path = Path(os.path.relpath(image.path, output.parent)).as_posix()
        rows.append([path, image.label, *([image.split] if has_splits else [])])
    write_text(output, csv_text(rows))
    names = {name for image in found for name in (image.label.split(";") if several else [image.label]) if name}
    warn(f"{len(found)} images with {len(names)} {'labels' if several else 'classes'}; {output}")


def _write_points(
    source: Path,
    output: Path,
    to: Formats | None,
    images: Path | None,
    from_stored: bool,
    names: str | None,
    label_column: str | None,
    annotators: Annotators,
    tasks: TaskFlags,
    overwrite: bool,
) -> None:
    import dataclasses

    from tl.runtime.landmarks.files import image_finder, image_sizes, lost_in, read_landmarks, write_landmarks

    find = image_finder(source, images)
    links = links_of(tasks, source.stem, find, is_asked=to == "labelstudio")
    landmarks = read_landmarks(source, images, from_stored=from_stored, label=label_column, annotators=annotators)
    if names is not None:
        chosen = tuple(name.strip() for name in names.split(","))
        if len(chosen) != len(landmarks.keypoint_names) or len(set(chosen)) != len(chosen) or "" in chosen:
            count = len(landmarks.keypoint_names)
            raise DataError(f"--names: expected {count} different names separated by commas, found {names}")
        landmarks = dataclasses.replace(landmarks, keypoint_names=chosen)
    write_landmarks(landmarks, output, to, image_sizes(find), links)
    if links is not None:
        write_interface(output, overwrite, (), landmarks.keypoint_names)
    for remark in (*landmarks.remarks, *lost_in(landmarks, output, to)):
        warn(remark)
    warn(f"{len(landmarks.images)} images with {len(landmarks.keypoint_names)} points; {output}")
