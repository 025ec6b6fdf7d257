"""`tl convert`: convert landmarks from one file format to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tl.commands.console import warn
from tl.commands.options import Overwrite, check_outputs

Formats = Literal["csv", "long", "tps", "coco", "deeplabcut"]
FromStored = Annotated[
    bool,
    typer.Option(
        "--from-stored", help="Points are in the coordinates of the stored photos, before EXIF orientation is applied."
    ),
]


def command(
    source: Annotated[Path, typer.Argument(help="Landmark file: .csv, .tps or .json (COCO).", show_default=False)],
    target: Annotated[Path, typer.Argument(help="Output file.", show_default=False)],
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
) -> None:
    """Convert landmarks between CSV, TPS, COCO keypoints and DeepLabCut.

    Examples:
    - `tl convert wings.tps wings.csv --images photos/ --names base,tip,hinge`

    - `tl convert wings.csv CollectedData_me.csv --to deeplabcut`

    - `tl convert phone.csv upright.csv --from-stored` for points from a program that ignores a photo's EXIF orientation

    Coordinates are relative to the center of the top-left pixel of the upright photo. In TPS, y is measured from the
    bottom, so the photos must be available. Fields that the output format cannot store are reported.
    """
    import dataclasses

    from tl.errors import DataError
    from tl.runtime.landmarks.files import (
        SUFFIXES,
        image_finder,
        image_sizes,
        lost_in,
        read_landmarks,
        write_landmarks,
    )

    check_outputs(overwrite, target)
    if target.exists() and source.exists() and target.samefile(source):
        raise DataError(f"{target}: output and input are the same file; choose another output name")
    if to is not None and target.suffix.lower() != SUFFIXES[to]:
        raise DataError(f"{target}: expected the extension {SUFFIXES[to]} for format {to}")
    landmarks = read_landmarks(source, images, from_stored=from_stored)
    if names is not None:
        chosen = tuple(name.strip() for name in names.split(","))
        if len(chosen) != len(landmarks.keypoint_names) or len(set(chosen)) != len(chosen) or "" in chosen:
            count = len(landmarks.keypoint_names)
            raise DataError(f"--names: expected {count} different names separated by commas, found {names}")
        landmarks = dataclasses.replace(landmarks, keypoint_names=chosen)
    write_landmarks(landmarks, target, to, image_sizes(image_finder(source, images)))
    for remark in (*landmarks.remarks, *lost_in(landmarks, target, to)):
        warn(remark)
    warn(f"{len(landmarks.images)} images with {len(landmarks.keypoint_names)} points; {target}")
