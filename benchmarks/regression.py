"""Regression against the mean predictor and a linear model on the photo's size: sizes of wings and shells.

    TL_SHARED=... python benchmarks/regression.py > table.md

Targets are computed from annotated landmarks: centroid size in pixels of the photo, and length by width of the box
around the points. Each of ten seeds divides the images anew: 70% to train, 30% to test. Intervals of the model file's
runtime are made for a coverage of 90% from out-of-fold errors of the training images; their coverage is that of all
test images of all seeds.
"""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.linear_model import LinearRegression

from tl.errors import EnsembleError
from tl.exporter.export import export_run
from tl.progress import Silent
from tl.runtime import load_regression
from tl.runtime.imaging.decode import read_size
from tl.runtime.landmarks.files import image_finder, read_landmarks
from tl.runtime.landmarks.shapes import centroid_size
from tl.trainer.config import TrainConfig
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
    export_run(found.run, folder / "m.onnx", Silent())
    sizes = np.array([read_size(path) for path in paths], np.float64)
    is_test, y = np.array(splits) == "test", np.array(numbers)
    linear = LinearRegression().fit(sizes[~is_test], y[~is_test]).predict(sizes[is_test])
    inside = 0.0
    try:
        with load_regression(folder / "m.onnx", device="cpu", coverage=COVERAGE) as predictor:
            for i in sorted(test):
                result = predictor.predict(paths[i])
                inside += bool(result.low[0] <= numbers[i] <= result.high[0])
    except EnsembleError:  # too few validation images
        inside = float("nan")
    scores = found.metrics["test"]
    return {
        "mae": scores["mae"],
        "r2": scores["r2"],
        "mean": scores["baseline_mae"],
        "linear": float(np.abs(linear - y[is_test]).mean()),
        "inside": inside / len(test),
    }


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
