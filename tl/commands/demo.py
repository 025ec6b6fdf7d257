"""`tl demo`: run the whole workflow on patches of photographs and micrographs that scikit-image brings, offline.

Each step is a separate `tl` process with the command that a user would type.
"""

from __future__ import annotations

import csv
import io
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tl.commands.console import show, warn
from tl.errors import MissingExtraError, OutputError, TrainingError

# Class -> image of `skimage.data`, and the images of no class. All are gray patches: color would give the class away.
CLASSES = {
    "brick": "brick",
    "cell": "cell",
    "galaxies": "hubble_deep_field",
    "grass": "grass",
    "gravel": "gravel",
    "moon": "moon",
    "retina": "retina",
    "tissue": "immunohistochemistry",
}
UNKNOWN = ("astronaut", "chelsea", "coffee", "rocket")
_SIDE = 64
# Few training images, as in a lab: this is where a pretrained backbone helps.
_TRAIN, _TEST = 8, 32
# Training patches come from the left of each image and test patches from the right; no two patches overlap.
_LEFT = 0.45
# A file that marks the folder of a demo.
_MARK = ".tl-demo"

_SCRATCH = ("--method", "scratch", "--backbone", "smallcnn", "--image-size", _SIDE)
_WAYS = {
    "scratch": (*_SCRATCH, "--augment", "light", "--batch-size", 16),
    "features": ("--method", "features"),
    "finetune": ("--method", "finetune", "--image-size", 128),
}


def command(
    folder: Annotated[Path, typer.Argument(help="Output folder: a new one, or that of an earlier demo.")] = Path(
        "tl-demo"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write into a folder that exists and is not that of a demo.")
    ] = False,
) -> None:
    """Run the whole workflow on patches of photographs: train in several ways, export, evaluate, predict, reject.

    Examples:
    - `tl demo`

    - `tl demo /tmp/try-it`

    Needs no network access and no GPU. Takes about two minutes on two cores.
    """
    photos, unknown, runs = folder / "photos", folder / "unknown", folder / "runs"
    _check_folder(folder, overwrite)
    started = time.monotonic()
    warn(f"Writing {_TRAIN} training and {_TEST} test images of {len(CLASSES)} classes into {photos}/")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).write_text("made by tl demo\n", encoding="utf-8")
    write_patches(folder)
    models = {}
    for name, options in {**_WAYS, "default": ()}.items():
        _run("train", photos / "train", *options, "--out", runs / name)
        models[name] = folder / f"{name}.onnx"
        _run("export", runs / name, "-o", models[name], "--overwrite")
    tables = [
        _run("evaluate", photos / "test", "--model", models["default"]),
        _run("evaluate", photos / "test", "--ensemble", *(models[name] for name in _WAYS)),
    ]
    rows = [row for table in tables for row in csv.DictReader(io.StringIO(table))]
    table = _run("predict", unknown, "--model", models["default"], "--reject-unknown")
    predictions = folder / "unknown.csv"
    predictions.write_text(table, encoding="utf-8")
    for line in (*summarize(rows, list(csv.DictReader(io.StringIO(table)))), ""):
        show(line)
    warn(f"Created in {time.monotonic() - started:.0f} s:")
    for made in (*models.values(), predictions, *(runs / name / "report.html" for name in models)):
        warn(f"  {made}")


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Raise `OutputError` unless the folder is new, or an earlier demo's, whose runs are removed to be made again."""
    from tl.runtime.output.files import check_output_folder

    check_output_folder(folder)
    is_own = (folder / _MARK).is_file()
    if folder.exists() and not is_own and not overwrite:
        raise OutputError(
            f"{folder}: already exists and was not made by tl demo: remove it, name another folder, or write into it",
            options=["overwrite"],
        )
    for run in (folder / "runs" / name for name in (*_WAYS, "default")):
        if run.exists() and not is_own:
            raise OutputError(f"{run}: exists and was not made by tl demo: name another folder")
        if run.exists():
            shutil.rmtree(run)


def write_patches(folder: Path) -> None:
    """Write `photos/train` and `photos/test`, class folders of PNG files, and `unknown`, images of no class."""
    try:
        from skimage import data
    except ImportError as error:
        raise MissingExtraError(
            "the demo trains, which requires additional packages: pip install 'tl-toolkit[train]'"
        ) from error
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)

    def save_patches(name: str, home: Path, count: int, left: float, right: float) -> None:
        image = Image.fromarray(getattr(data, name)()).convert("L")
        side = min(image.size)
        # The middle of an image: the retina is a disk on black.
        image = image.crop(_middle(image.size, 0.7 * side if name == "retina" else side))
        home.mkdir(parents=True, exist_ok=True)
        columns = range(round(left * image.width), round(right * image.width) - _SIDE + 1, _SIDE)
        cells = [(x, y) for x in columns for y in range(0, image.height - _SIDE + 1, _SIDE)]  # none overlap
        for number, place in enumerate(rng.permutation(len(cells))[:count]):
            x, y = cells[place]
            image.crop((x, y, x + _SIDE, y + _SIDE)).save(home / f"{name}-{number:02d}.png")

    for label, name in CLASSES.items():
        save_patches(name, folder / "photos" / "train" / label, _TRAIN, 0, _LEFT)
        save_patches(name, folder / "photos" / "test" / label, _TEST, _LEFT, 1)
    for name in UNKNOWN:
        save_patches(name, folder / "unknown", 5, 0, 1)


def summarize(rows: Sequence[dict[str, str]], unknown: Sequence[dict[str, str]]) -> list[str]:
    """Return the results in words, from the rows of `tl evaluate` and those of `tl predict`."""
    single = {row["model"]: float(row["top1_accuracy"]) for row in rows if row["model"] not in ("ensemble", "oracle")}
    members = {name: accuracy for name, accuracy in single.items() if name != "default"}
    soft = next(float(row["top1_accuracy"]) for row in rows if row["model"] == "ensemble" and row["voting"] == "soft")
    best = max(members, key=members.__getitem__)
    helps = "more than" if soft > members[best] else "no more than"
    rejected = sum(row["label"] == "?" for row in unknown)
    return [
        "",
        f"{'method':<10} test accuracy, {len(CLASSES) * _TEST} images",
        *(f"{name:<10} {accuracy:.3f}" for name, accuracy in {**members, "default": single["default"]}.items()),
        f"{'ensemble':<10} {soft:.3f}   of the first three; {helps} {best} alone",
        f"{rejected} of {len(unknown)} images of no class were rejected as unknown",
    ]


def _middle(size_wh: tuple[int, int], side: float) -> tuple[int, int, int, int]:
    """Return the box of the centered square with this side."""
    left, top = (round((length - side) / 2) for length in size_wh)
    return left, top, left + round(side), top + round(side)


def _run(*words: object) -> str:
    """Print a command on stderr, run it, and return its stdout."""
    line = shlex.join(["tl", *map(str, words)])
    warn(f"\n$ {line}")
    command_line = [sys.executable, "-m", "tl", *map(str, words)]
    done = subprocess.run(command_line, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise TrainingError(f"this step failed with exit code {done.returncode}: {line}")
    return done.stdout
