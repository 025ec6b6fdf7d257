"""Regression against the mean predictor and a linear model on the photo's size: sizes of wings and shells.

    TL_SHARED=... python benchmarks/regression.py > table.md

Targets are computed from annotated landmarks: centroid size in pixels of the photo, and length by width of the box
around the points. Each of ten seeds divides the images anew: 70% to train, 30% to test. Intervals for a coverage of 90%
are those of the model file: from the errors of images out of fold, or of the validation images; too few images give
none.
"""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.linear_model import LinearRegression

from tl.evaluation.calibration import held_out_scores
from tl.progress import Silent
from tl.runtime.ensembles.regression import interval_width
from tl.runtime.imaging.decode import read_size
from tl.runtime.landmarks.files import image_finder, read_landmarks
from tl.runtime.landmarks.shapes import centroid_size
from tl.trainer.config import TrainConfig
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train

SEEDS, COVERAGE = 10, 0.9
SETS = {"wings": "flywing-landmarks", "shells": "mollusk-landmarks"}
METHODS = {"ridge": {}, "ridge, letterbox": {"resize_mode": "letterbox"}, "mlp": {"head": "mlp"}}


def read_targets(folder: Path) -> tuple[list[str], dict[str, list[float]]]:
    """Paths of the images, and the targets by name."""
    landmarks = read_landmarks(folder / "landmarks.csv")
    find = image_finder(folder / "landmarks.csv")
    points = [image.keypoints_xy for image in landmarks.images]
    extents = [np.nanmax(xy, axis=0) - np.nanmin(xy, axis=0) for xy in points]
    sizes = [centroid_size(xy) for xy in points]
    ratios = [float(max(extent) / min(extent)) for extent in extents]
    return [find(image.name) for image in landmarks.images], {"size": sizes, "ratio": ratios}


def measure(
    paths: list[str], numbers: list[float], options: dict[str, str], seed: int, folder: Path
) -> dict[str, float]:
    """Errors of one seed on its test images."""
    order = np.random.default_rng(seed).permutation(len(paths))
    test = set(order[: round(0.3 * len(paths))].tolist())
    splits = ["test" if i in test else "train" for i in range(len(paths))]
    rows = zip(paths, splits, numbers, strict=True)
    with (folder / "data.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "split", "number"), *rows])
    config = TrainConfig(
        data=str(folder / "data.csv"),
        target=("number",),
        test=True,
        seed=seed,
        audit=False,
        out=str(folder / "run"),
        **options,
    )
    found = train(config, Silent())
    sizes = np.array([read_size(path) for path in paths], np.float64)
    is_test, y = np.array(splits) == "test", np.array(numbers)
    linear = LinearRegression().fit(sizes[~is_test], y[~is_test]).predict(sizes[is_test])
    held_out, tested = (errors_of(found.run, split) for split in ("val", "test"))
    width = interval_width(held_out_scores(held_out), COVERAGE)
    scores = found.metrics["test"]
    return {
        "mae": scores["mae"],
        "r2": scores["r2"],
        "mean": scores["baseline_mae"],
        "linear": float(np.abs(linear - y[is_test]).mean()),
        "inside": float((tested <= width).mean()) if np.isfinite(width) else float("nan"),
    }


def errors_of(run: Run, split: str) -> np.ndarray:
    """Absolute errors of a split's images."""
    rows = run.rows(f"predictions_{split}.csv")
    return np.abs(np.array([float(row["number"]) - float(row["true:number"]) for row in rows]))


def table() -> Iterator[str]:
    """Rows of the table."""
    yield "| target | images | method | error | of the mean | of photo size | R2 | coverage of 90% |"
    yield "|---|---|---|---|---|---|---|---|"
    shared = Path(os.environ["TL_SHARED"]) / "data"
    for name, place in SETS.items():
        paths, targets = read_targets(shared / place)
        for target, numbers in targets.items():
            for method, options in METHODS.items():
                rows = []
                for seed in range(SEEDS):
                    with tempfile.TemporaryDirectory() as folder:
                        rows.append(measure(paths, numbers, options, seed, Path(folder)))
                mean = {key: np.mean([row[key] for row in rows]) for key in rows[0]}
                spread = np.std([row["mae"] for row in rows], ddof=1)
                cells = (
                    f"{mean['mae']:.3g} ± {spread:.2g} | {mean['mean']:.3g} | {mean['linear']:.3g} | {mean['r2']:.2f}"
                )
                yield f"| {name}, {target} | {len(paths)} | {method} | {cells} | {mean['inside']:.2f} |"


if __name__ == "__main__":
    for row in table():
        print(row, flush=True)
