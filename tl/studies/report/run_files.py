"""Read the files of a finished run for a report: history, predictions with their images, findings, environment."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tl.errors import DataError, RunError
from tl.evaluation.calibration import class_ids_of
from tl.runtime.landmarks.sets import ImageLandmarks
from tl.studies.report.class_sections import Judged
from tl.trainer.config import TrainConfig
from tl.trainer.run_folder.manifest_regions import REGION, ImageKey, read_region
from tl.trainer.run_folder.network_card import NetworkCard
from tl.trainer.run_folder.run import UNFINISHED, Run

# The split that was not used for selection comes first.
_REPORTED = ("test", "val")


@dataclass(frozen=True)
class FinishedRun:
    """A finished run. `split`: the reported split, which is test if it was evaluated, else val."""

    run: Run
    config: TrainConfig
    card: NetworkCard
    metrics: dict[str, Any]
    split: str

    @property
    def scores(self) -> dict[str, Any]:
        """Metrics of the reported split."""
        found: dict[str, Any] = self.metrics[self.split]
        return found

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.run.folder.resolve().name

    def rows(self, name: str) -> list[dict[str, str]]:
        """Return the rows of a CSV file in the folder, or an empty list if it does not exist."""
        return self.run.rows(name)

    def environment(self) -> dict[str, Any]:
        """Return the environment of the run; empty for runs of older versions."""
        path = self.run.folder / "environment.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found

    def history(self) -> dict[str, NDArray[np.float64]]:
        """Return each column's values by epoch, NaN for empty cells; empty for heads that are solved without epochs."""
        rows = self.rows("history.csv")
        return {name: np.array([_number(row[name]) for row in rows]) for name in (rows[0] if rows else ())}

    def paths(self, split: str) -> list[str]:
        """Return the image paths that a split's scores come from, in manifest order, even if images no longer exist."""
        return [path for path, _ in self.keys(split)]

    def keys(self, split: str) -> list[ImageKey]:
        """Like `paths`, with the region of each that was used."""
        splits = self.run.scored_splits if split == "val" else (split,)
        rows = [row for row in self.rows("manifest.csv") if row["split"] in splits]
        paths = (os.path.normpath(os.path.join(self.run.folder, row["path"])) for row in rows)
        return [(path, read_region(row, REGION)) for path, row in zip(paths, rows, strict=True)]


def open_finished(run: Run) -> FinishedRun:
    """Read a finished run. Raises `RunError` if the run is unfinished or from another version."""
    try:
        metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{run.folder}: no readable metrics.json: {UNFINISHED} ({error})") from error
    split = next((name for name in _REPORTED if isinstance(metrics, dict) and name in metrics), None)
    if split is None:
        raise RunError(f"{run.folder}: its metrics.json was changed after training: it has no scores of a split")
    return FinishedRun(run, run.load_config(), run.load_card(), metrics, split)


def read_judged(finished: FinishedRun) -> list[Judged]:
    """Read the images of the reported split, in manifest order. Raises `RunError`."""
    rows, keys = _predictions(finished)
    names = finished.card.class_names
    try:
        true_ids, label_ids = (class_ids_of([row[key] for row in rows], names) for key in ("true_label", "label"))
        probabilities = np.array([[float(row[f"p:{name}"]) for name in names] for row in rows])
    except (DataError, KeyError, ValueError) as error:
        reason = f"has no column {error}" if isinstance(error, KeyError) else error
        raise RunError(f"{finished.run.folder}: its predictions were changed after training ({reason})") from error
    return [
        Judged(path, row["path"], int(true_id), int(label_id), values, region)
        for (path, region), row, true_id, label_id, values in zip(
            keys, rows, true_ids, label_ids, probabilities, strict=True
        )
    ]


@dataclass(frozen=True)
class Found:
    """An image with true and predicted points (K, 2) in pixels of the photo, NaN where missing."""

    path: str
    name: str
    true_xy: NDArray[np.float64]
    found_xy: NDArray[np.float64]

    @property
    def errors(self) -> NDArray[np.float64]:
        """Distances (K,) in pixels, NaN for points without annotation."""
        return np.asarray(np.linalg.norm(self.found_xy - self.true_xy, axis=1))


def read_found(finished: FinishedRun) -> list[Found]:
    """Read the images of the reported split, in manifest order. Raises `RunError`."""
    run, split = finished.run, finished.split
    true: Mapping[str, ImageLandmarks] = {
        os.path.normpath(run.folder / image.name): image for image in run.load_landmarks("annotations.json").images
    }
    found = run.load_landmarks(f"predictions_{split}.csv").images
    paths = finished.paths(split)
    if len(paths) != len(found):
        raise RunError(f"{run.folder}: predictions_{split}.csv has {len(found)} rows for {len(paths)} images")
    return [
        Found(path, image.name, true[path].keypoints_xy, image.keypoints_xy)
        for path, image in zip(paths, found, strict=True)
    ]


def _predictions(finished: FinishedRun) -> tuple[list[dict[str, str]], list[ImageKey]]:
    rows, keys = finished.rows(f"predictions_{finished.split}.csv"), finished.keys(finished.split)
    if len(rows) != len(keys):
        name = Path(finished.run.folder) / f"predictions_{finished.split}.csv"
        raise RunError(f"{name}: has {len(rows)} rows for {len(keys)} images of the manifest")
    return rows, keys


def _number(text: str) -> float:
    return float(text) if text else math.nan
