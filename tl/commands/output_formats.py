"""Which format of --to fits which predictions: the same rule for a prediction and for the join of its shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tl.errors import ConfigError

if TYPE_CHECKING:
    from tl.runtime.model_file.contract import Task
    from tl.runtime.output.writers import GivenFormat

# Formats of results that are no landmarks, by task.
_FORMATS: dict[str, tuple[str, ...]] = {
    "classification": ("csv", "megadetector", "labelstudio"),
    "multilabel": ("csv", "labelstudio"),
    "regression": ("csv",),
}


def check_format(
    to: GivenFormat | None, output: Path | None, task: Task, *, boxes: bool, exif: bool, sequences: bool = False
) -> None:
    """Raise `ConfigError` for a format that cannot hold the results of a model for `task`.

    `boxes`: whether there is one row per box. `exif`, `sequences`: whether these are added.
    """
    from tl.runtime.output.writers import lists_failures

    if to == "labelstudio" and (sequences or exif or boxes):
        raise ConfigError("--to labelstudio writes one task per image, without --sequence, --exif and --boxes")
    if task == "landmarks":
        if exif and output is not None and lists_failures(output, to):
            raise ConfigError(f"--exif adds columns to tables, but {output} is a landmark file: give a name in .csv")
        if to == "megadetector":
            raise ConfigError("--to megadetector applies only to classifiers, but this is a landmark model")
        return
    if to is not None and to not in _FORMATS[task]:
        if task == "classification":
            raise ConfigError(f"--to {to} applies only to landmark models, but this is a classifier")
        raise ConfigError(f"--to {to} does not apply to a model for {task}")
    if to == "megadetector" and (sequences or exif):
        raise ConfigError("--sequence and --exif add to tables, and cannot be combined with --to megadetector")
