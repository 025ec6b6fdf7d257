"""`tl demo`: run the whole workflow on scikit-learn's handwritten digits, offline.

Each step is a separate `tl` process with the command that a user would type.
"""

from __future__ import annotations

import csv
import io
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tl.commands.console import warn
from tl.errors import MissingExtraError, OutputError, TrainingError

# Few training images, as in a lab: this is where a pretrained backbone helps.
_TRAIN_PER_CLASS, _VAL_PER_CLASS = 8, 30
_COMMON = ("--backbone", "smallcnn", "--image-size", 32, "--augment", "light", "--batch-size", 16)


def command(
    folder: Annotated[Path, typer.Argument(help="Output folder; must not exist yet.")] = Path("tl-demo"),
) -> None:
    """Run the whole workflow on handwritten digits: pretrain, transfer in three ways, export, predict, evaluate.

    Examples:
    - `tl demo`

    - `tl demo /tmp/try-it`

    Needs no network access and no GPU. Takes about a minute on two cores.
    """
    if folder.exists():
        raise OutputError(f"{folder}: already exists; remove it or choose another folder: tl demo OTHER")
    started = time.monotonic()
    warn(f"Writing handwritten digits 0-4 (to pretrain on) and 5-9 (to transfer to) into {folder}/")
    write_digits(folder)
    runs, digits = folder / "runs", folder / "digits-5-9"
    pretrained = ("--weights", runs / "pretrained")
    _run("train", folder / "digits-0-4", "--method", "scratch", "--epochs", 12, *_COMMON, "--out", runs / "pretrained")
    models = []
    stepped = ("--epochs", 30)
    for method, options in (("scratch", stepped), ("features", pretrained), ("finetune", (*pretrained, *stepped))):
        _run("train", digits, "--method", method, *options, *_COMMON, "--out", runs / method)
        models.append(folder / f"{method}.onnx")
        _run("export", runs / method, "-o", models[-1])
    _run("predict", digits / "test", "--ensemble", *models, "-o", folder / "predictions.csv")
    table = _run("evaluate", digits, "--ensemble", *models)
    _print_table(list(csv.reader(io.StringIO(table))))
    warn(f"\nCreated in {time.monotonic() - started:.0f} s:")
    for made in (*models, f"{folder}/predictions.csv", f"{folder}/runs/"):
        warn(f"  {made}")


def write_digits(folder: Path) -> None:
    """Write scikit-learn's digits as class folders of PNG files: digits-0-4, and digits-5-9 with train, val, test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "the demo trains models, which requires additional packages: pip install 'tl-toolkit[train]'"
        ) from error
    import numpy as np
    from PIL import Image

    digits = load_digits()
    counts: dict[int, int] = {}
    for image, label in zip(digits.images, digits.target.tolist(), strict=True):
        number = counts[label] = counts.get(label, -1) + 1
        home = folder / "digits-0-4" if label < 5 else folder / "digits-5-9" / _split(number)
        path = home / str(label) / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        gray = np.round(image * (255 / 16)).astype(np.uint8)  # 8x8 pixels of 0..16
        Image.fromarray(gray).resize((32, 32), Image.Resampling.BICUBIC).save(path)


def _split(number: int) -> str:
    if number < _TRAIN_PER_CLASS:
        return "train"
    return "val" if number < _TRAIN_PER_CLASS + _VAL_PER_CLASS else "test"


def _run(*words: object) -> str:
    """Print a command on stderr, run it, and return its stdout."""
    line = shlex.join(["tl", *map(str, words)])
    warn(f"\n$ {line}")
    command_line = [sys.executable, "-m", "tl", *map(str, words)]
    done = subprocess.run(command_line, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise TrainingError(f"this step failed with exit code {done.returncode}: {line}")
    return done.stdout


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    typer.echo("")
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
