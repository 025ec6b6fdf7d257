"""Flags for boxes around objects, shared by commands, and the messages about the files they name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl.commands.console import warn
from tl.commands.requests import refuse_given
from tl.errors import ConfigError

if TYPE_CHECKING:
    from tl.runtime.session import Session
    from tl.runtime.sources.boxed_images import BoxList
    from tl.runtime.sources.inputs import Inputs

FOR_BOXES = "Boxes"


@dataclass(frozen=True, kw_only=True)
class BoxFlags:
    """The file of boxes, and which of them are used."""

    boxes: Annotated[
        Path | None,
        typer.Option(
            help="Boxes around the objects: MegaDetector's JSON, COCO JSON, or CSV with path,box_x,box_y,box_w,box_h. "
            "Classifiers give one row per box.",
            rich_help_panel=FOR_BOXES,
        ),
    ] = None
    min_box_confidence: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Leave out boxes whose detector confidence is lower. Default: 0.2.",
            rich_help_panel=FOR_BOXES,
        ),
    ] = None
    box_categories: Annotated[
        str | None,
        typer.Option(
            help="Categories of boxes to use, as in animal,person. Default: animal if the file has it, else all.",
            rich_help_panel=FOR_BOXES,
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class LabeledBoxFlags(BoxFlags):
    """Also where the labels of boxes come from."""

    box_labels: Annotated[
        Literal["auto", "image", "box"],
        typer.Option(
            help="Label of a box: that of its image, or its own; auto uses its own if the file has labels.",
            rich_help_panel=FOR_BOXES,
        ),
    ] = "auto"


def open_boxes(
    flags: BoxFlags, folders: Iterable[str | os.PathLike[str]] = (), label_column: str | None = None
) -> BoxList | None:
    """Read --boxes and say what is left out. `folders`: where its images may be, besides beside it."""
    if flags.boxes is None:
        refuse_given(flags, "requires --boxes")
        return None
    from tl.runtime.sources.box_files import read_boxes

    asked = flags.box_categories
    found = read_boxes(
        flags.boxes,
        folders=[folder for folder in folders if os.path.isdir(folder)],
        min_confidence=flags.min_box_confidence,
        categories=None if asked is None else [name.strip() for name in asked.split(",") if name.strip()],
        label_column=label_column,
    )
    for remark in found.remarks:
        warn(f"{flags.boxes}: {remark}")
    return found


def in_archives(boxes: BoxList, inputs: Inputs) -> BoxList:
    """Return the list with the paths of members of archives, which it may name as they are inside."""
    from tl.runtime.sources.inputs import Archive

    folder = os.path.dirname(boxes.file)
    paths: dict[str, str] = {}
    for part in inputs.parts:
        if not isinstance(part, Archive):
            continue
        for name in part.names():
            listed = os.path.abspath(os.path.join(folder, os.path.relpath(name, part.path)))
            if listed in boxes.names and os.path.abspath(name) not in boxes.names:
                paths[listed] = name
    return boxes.renamed(paths) if paths else boxes


def count_rows(boxes: BoxList | None, inputs: Inputs) -> tuple[int, str]:
    """Return how many rows a prediction has, and what they are of."""
    return (len(inputs), "images") if boxes is None else (boxes.count(inputs.names()), "boxes")


def check_needed(sessions: Iterable[Session], has_boxes: bool) -> None:
    """Raise `ConfigError` for classifiers of boxes without boxes, and the other way round."""
    for session in sessions:
        crop = None if session.contract is None else session.contract.boxes
        if crop is not None and not has_boxes:
            raise ConfigError(
                f"{session.path}: this model was trained on boxes around objects: give those of these images",
                options=["boxes=boxes.json"],
            )
        if crop is None and has_boxes:
            raise ConfigError(
                f"{session.path}: this model was trained on whole images: leave out boxes, or train a model on boxes"
            )


def say_absent(boxes: BoxList, names: Iterable[str]) -> None:
    """Say which listed images are not among those given."""
    if absent := boxes.absent_from(names):
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        warn(f"{boxes.file}: lists images that are not among those given: {absent[0]}{more}")
