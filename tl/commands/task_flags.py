"""The options of tasks for Label Studio, and the labeling interface that is written beside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl.commands.console import warn
from tl.commands.options import check_outputs
from tl.errors import ConfigError

if TYPE_CHECKING:
    from tl.runtime.labeling.label_studio_tasks import TaskLinks
    from tl.runtime.results import Fields

_PANEL = "For Label Studio"
ImageRoot = Annotated[
    Path | None,
    typer.Option(
        "--image-root",
        help="--to labelstudio: folder that the tasks' image paths are relative to, Label Studio's "
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT. Default: the current folder.",
        metavar="FOLDER",
        rich_help_panel=_PANEL,
    ),
]
ImagePrefix = Annotated[
    str | None,
    typer.Option(
        "--image-prefix",
        help="--to labelstudio: what precedes these paths in the tasks, such as s3://bucket/photos/. Default: "
        "/data/local-files/?d=, which is Label Studio's local storage. Addresses of images remain as they are.",
        metavar="TEXT",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True, kw_only=True)
class TaskFlags:
    """How tasks for Label Studio refer to images."""

    image_root: ImageRoot = None
    image_prefix: ImagePrefix = None


def links_of(
    flags: TaskFlags, model_version: str, find: Callable[[str], str] = str, *, is_asked: bool
) -> TaskLinks | None:
    """Return how tasks refer to images, None if the output has no tasks. Raises `ConfigError` for ignored options."""
    from tl.runtime.labeling.label_studio_tasks import LOCAL_FILES, TaskLinks

    if not is_asked:
        if flags != TaskFlags():
            raise ConfigError("--image-root and --image-prefix require --to labelstudio")
        return None
    root = flags.image_root or Path()
    if not root.is_dir():
        raise ConfigError(f"--image-root: no such folder: {root}")
    prefix = LOCAL_FILES if flags.image_prefix is None else flags.image_prefix
    return TaskLinks(str(root), prefix, model_version, find)


def plan_tasks(
    flags: TaskFlags,
    output: Path | None,
    to: str | None,
    fields: Fields,
    models: Iterable[str],
    names: Iterable[str],
    *,
    overwrite: bool,
) -> TaskLinks | None:
    """Return how the tasks of predictions refer to images, and write their labeling interface; None without tasks.

    `models`: the model files. `names`: the images as rows name them, which are read only for tasks. Raises
    `ConfigError`, `DataError` and `OutputError`, before any prediction.
    """
    from tl.runtime.results import MultilabelFields, PointFields
    from tl.runtime.sources.remote import is_remote

    version = ", ".join(Path(model).stem for model in models)
    links = links_of(flags, version, is_asked=to == "labelstudio")
    if links is None:
        return None
    if output is None:
        raise ConfigError("--to labelstudio requires an output file: give --out tasks.json")
    kinds = set()
    for name in names:
        links.link(name)
        kinds.add(is_remote(name))
        if not os.path.lexists(name) and any(parent.is_file() for parent in Path(name).parents):
            raise ConfigError(f"{name}: is in an archive or a film, and Label Studio needs files: extract it first")
    if kinds == {True} and flags != TaskFlags():
        raise ConfigError("--image-root and --image-prefix: all images are addresses, which tasks contain as they are")
    points = fields.keypoint_names if isinstance(fields, PointFields) else ()
    classes = () if isinstance(fields, PointFields) else getattr(fields, "class_names", ())
    write_interface(output, overwrite, classes, points, several=isinstance(fields, MultilabelFields))
    return links


def write_interface(
    output: Path, overwrite: bool, class_names: Sequence[str], point_names: Sequence[str], *, several: bool = False
) -> None:
    """Write the labeling interface beside `output`, unless it is there. Raises `OutputError` if another one is."""
    from tl.runtime.labeling.label_studio_tasks import interface_of
    from tl.runtime.output.files import write_text

    path = output.with_suffix(".xml")
    text = interface_of(class_names, point_names, several=several)
    if not (path.is_file() and path.read_bytes() == text.encode()):
        check_outputs(overwrite, path)
        write_text(path, text)
    warn(f"labeling interface for the project's settings: {path}")
