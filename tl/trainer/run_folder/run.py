"""The run folder: atomic writing and reading of every file of a run.

Defines file names and formats. Never imports torch.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize_tensors

from tl.data.images import ImageStore
from tl.data.manifests import TARGET_SEPARATOR, LabeledImage, hash_data
from tl.errors import DataError, RunError
from tl.evaluation.metrics import Metrics
from tl.runtime.imaging.regions import Box
from tl.runtime.landmarks import wide_csv
from tl.runtime.landmarks.files import Size, read_landmarks, write_landmarks
from tl.runtime.landmarks.sets import LandmarkSet
from tl.runtime.model_file.strict_json import dump_json, from_plain, parse_json
from tl.runtime.output.files import atomic_path, output_errors, write_text
from tl.runtime.sources.box_files import BOX
from tl.runtime.sources.tables import csv_text
from tl.trainer.config import TrainConfig
from tl.trainer.config_files import config_from_mapping, dump_config, load_config
from tl.trainer.run_folder.manifest_regions import REGION, ImageKey, content_of, read_region, sides
from tl.trainer.run_folder.network_card import RUN_VERSION, NetworkCard, upgraded_card

UNFINISHED = "not a finished run; an interrupted one can be resumed"
_MANIFEST = ("path", "label", "split", "group", "sha256")


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path

    @property
    def config_path(self) -> Path:
        """Path of the resolved options."""
        return self.folder / "config.yaml"

    @property
    def best_path(self) -> Path:
        """Path of the best network's tensors."""
        return self.folder / "best.safetensors"

    @property
    def last_path(self) -> Path:
        """Path of the resume state."""
        return self.folder / "last.pt"

    def save_config(self, config: TrainConfig) -> None:
        """Write `config.yaml`."""
        write_text(self.config_path, dump_config(config))

    @property
    def environment_path(self) -> Path:
        """Path of the environment file: libraries and processors of the process that started the run."""
        return self.folder / "environment.json"

    def save_environment(self, facts: Mapping[str, Any]) -> None:
        """Write `environment.json`."""
        write_text(self.environment_path, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")

    def save_manifest(self, store: ImageStore) -> None:
        """Write `manifest.csv`: every image with label, split, group and SHA-256; also its region and box, if any.

        Paths are relative to the run folder, so that `tl evaluate RUN/manifest.csv --split val` works.
        Raises `RunError` if the run already has a different manifest: it cannot continue with other images.
        """
        has_regions = any(image.region is not None for image in store.images)
        has_boxes = any(image.box is not None for image in store.images)
        further = [name for name in ("site", "sequence") if any(getattr(image, name) for image in store.images)]
        rows = [
            (
                *(self.relative(p.path), p.label, p.split, p.group, digest),
                *(sides(p.region) if has_regions else ()),
                *(sides(None if p.box is None else p.box.xywh) if has_boxes else ()),
                *(getattr(p, name) for name in further),
            )
            for p, digest in zip(store.images, store.hashes, strict=True)
        ]
        regions = (*(REGION if has_regions else ()), *(BOX if has_boxes else ()))
        text = csv_text([(*_MANIFEST, *regions, *further), *rows])
        path = self.folder / "manifest.csv"
        if path.exists() and path.read_bytes() != text.encode(errors="surrogateescape"):
            raise RunError(
                f"{self.folder}: images, labels or splits have changed since this run began; train a new run instead"
            )
        write_text(path, text)

    def image_paths(self, split: str) -> list[str]:
        """Images of a split that still exist at their path, in manifest order. Raises `RunError`."""
        return [image.path for image in self.images(split)]

    def images(self, split: str) -> list[LabeledImage]:
        """Like `image_paths`, with label, group, region and box."""
        return [image for image in self.labeled(split) if os.path.isfile(image.path)]

    def labeled(self, split: str) -> list[LabeledImage]:
        """Like `images`, also those that no longer exist."""
        found = []
        for row in self._manifest():
            path = os.path.normpath(os.path.join(self.folder, row["path"]))
            if row["split"] == split:
                region, xywh = read_region(row, REGION), read_region(row, BOX)
                box = None if xywh is None else Box(xywh)
                found.append(LabeledImage(path, row["path"], row["label"], split, row["group"], region, box=box))
        return found

    @property
    def has_boxes(self) -> bool:
        """Whether the run was trained on boxes, also if its images no longer exist. Raises `RunError`."""
        return any(row.get(BOX[0]) for row in self._manifest())

    def relative(self, path: str) -> str:
        """A path relative to the run folder, with '/'."""
        return Path(os.path.relpath(path, self.folder)).as_posix()

    def val_predictions(self, class_names: Sequence[str]) -> dict[ImageKey, list[float]]:
        """The network's probabilities for the validation images, in the order of `class_names`, by `LabeledImage.key`
        as of `images`: from `predictions_fitted.csv`, else `predictions_val.csv`. Raises `RunError`.
        """
        path = self.folder / "predictions_fitted.csv"  # only if predictions_val.csv is out of fold
        if not path.is_file():
            path = self.folder / "predictions_val.csv"
        return self._probabilities(path, class_names)

    def held_out_predictions(self, class_names: Sequence[str]) -> dict[ImageKey, list[float]]:
        """Like `val_predictions`, but from networks that have not seen the images: `predictions_val.csv`."""
        return self._probabilities(self.folder / "predictions_val.csv", class_names)

    def val_numbers(self, target_names: Sequence[str]) -> dict[ImageKey, list[float]]:
        """Like `val_predictions`, but the numbers that the network predicts."""
        path = self.folder / "predictions_fitted.csv"
        return self._numbers(path if path.is_file() else self.folder / "predictions_val.csv", target_names)

    def _probabilities(self, path: Path, class_names: Sequence[str]) -> dict[ImageKey, list[float]]:
        return self._numbers(path, [f"p:{name}" for name in class_names])

    def _numbers(self, path: Path, columns: Sequence[str]) -> dict[ImageKey, list[float]]:
        """The numbers in some columns of a predictions file, by image."""
        try:
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
                reader = csv.reader(stream)
                header = next(reader, [])
                rows = [dict(zip(header, row, strict=True)) for row in reader]
            numbers = [[float(row[name]) for name in columns] for row in rows]
        except KeyError as error:
            raise RunError(f"{path}: has no column {error}") from error
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot be read ({error}); did this run's training finish?") from error
        return dict(zip(self._predicted(len(rows)), numbers, strict=True))

    def val_points(self) -> dict[str, NDArray[np.float64]]:
        """Points (K, 2) from `predictions_val.csv` in pixels of the photos, by image path. Raises `RunError`."""
        found = self.load_landmarks("predictions_val.csv").images
        keys = self._predicted(len(found))
        return {path: image.keypoints_xy for (path, _), image in zip(keys, found, strict=True)}

    def _predicted(self, count: int) -> list[ImageKey]:
        """Keys of the images of a predictions file: the validation images, or the training images too."""
        splits = self._splits_of(count)
        shown = [row for row in self._manifest() if row["split"] in splits]
        return [(os.path.normpath(os.path.join(self.folder, row["path"])), read_region(row, REGION)) for row in shown]

    @property
    def scored_splits(self) -> tuple[str, ...]:
        """The splits whose images the validation scores come from: training images too if these are out of fold.

        Raises `RunError`.
        """
        return self._splits_of(len(self.rows("predictions_val.csv")))

    def _splits_of(self, count: int) -> tuple[str, ...]:
        """The splits that a predictions file of `count` rows is of."""
        sizes = Counter(row["split"] for row in self._manifest())
        if count == sizes["val"]:
            return ("val",)
        if count == sizes["train"] + sizes["val"]:
            return ("train", "val")
        path = self.folder / "predictions_val.csv"
        raise RunError(f"{path}: has {count} rows for {sizes['val']} validation images of the manifest")

    def digests(self, split: str) -> list[str]:
        """SHA-256 of each image of a split, including images that no longer exist. Raises `RunError`."""
        return [row["sha256"] for row in self._manifest() if row["split"] == split]

    def data_hash(self) -> str:
        """SHA-256 over the images' hashes, labels and splits. Raises `RunError`."""
        return hash_data((content_of(row), row["label"], row["split"]) for row in self._manifest())

    def _manifest(self) -> list[dict[str, str]]:
        path = self.folder / "manifest.csv"
        try:
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
                rows = list(csv.DictReader(stream))
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror}); did this run's training begin?") from error
        if rows and not {"path", "label", "split", "sha256"} <= rows[0].keys():
            raise RunError(f"{path}: made by another version of tl")
        return rows

    def save_skipped(self, bad: Sequence[tuple[LabeledImage, str]]) -> None:
        """Write `skipped.csv`: unreadable images and the reasons."""
        rows = [(image.name, image.split, reason) for image, reason in bad]
        write_csv(self.folder / "skipped.csv", ("path", "split", "error"), rows)

    def save_rows(self, name: str, kind: type, rows: Sequence[Any]) -> None:
        """Write dataclass instances of one type to `name`, a CSV file with one column per field."""
        columns = tuple(field.name for field in dataclasses.fields(kind))
        write_csv(self.folder / name, columns, [_shown(dataclasses.astuple(row)) for row in rows])

    def save_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `name`, a CSV file of rows that all have the columns of the first row."""
        write_csv(self.folder / name, tuple(rows[0]), [_shown(row.values()) for row in rows])

    def rows(self, name: str) -> list[dict[str, str]]:
        """The rows of a CSV file in the folder; empty if it does not exist."""
        path = self.folder / name
        if not path.is_file():
            return []
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            return list(csv.DictReader(stream))

    def rename(self, old: str, new: str) -> None:
        """Rename a file of the run, replacing one of that name."""
        with output_errors(self.folder):
            (self.folder / old).replace(self.folder / new)

    def discard(self, name: str) -> None:
        """Delete a file of the run, if it exists."""
        with output_errors(self.folder):
            (self.folder / name).unlink(missing_ok=True)

    def save_metrics(self, metrics: Metrics) -> None:
        """Write `metrics.json`."""
        write_text(self.folder / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")

    def save_predictions(
        self, split: str, images: Sequence[LabeledImage], probabilities: NDArray[np.float32], class_names: Sequence[str]
    ) -> None:
        """Write `predictions_SPLIT.csv`: `path[,box_x,box_y,box_w,box_h],true_label,label,confidence,p:<class>...`."""
        rows, has_boxes = [], any(image.box is not None for image in images)
        for image, row in zip(images, probabilities, strict=True):
            decided = int(row.argmax())
            shown = [f"{value:.6g}" for value in row.tolist()]
            box = sides(None if image.box is None else image.box.xywh) if has_boxes else ()
            rows.append([image.name, *box, image.label, class_names[decided], shown[decided], *shown])
        boxes = BOX if has_boxes else ()
        columns = ("path", *boxes, "true_label", "label", "confidence", *(f"p:{name}" for name in class_names))
        write_csv(self.folder / f"predictions_{split}.csv", columns, rows)

    def save_numbers(
        self, split: str, images: Sequence[LabeledImage], found: NDArray[np.floating], target_names: Sequence[str]
    ) -> None:
        """Write `predictions_SPLIT.csv`: `path,true:<target>...,<target>...`; unknown true numbers are empty."""
        columns = ("path", *(f"true:{name}" for name in target_names), *target_names)
        rows = [
            (image.name, *image.label.split(TARGET_SEPARATOR), *(f"{value:.9g}" for value in row.tolist()))
            for image, row in zip(images, found, strict=True)
        ]
        write_csv(self.folder / f"predictions_{split}.csv", columns, rows)

    def save_points(self, split: str, landmarks: LandmarkSet) -> None:
        """Write `predictions_SPLIT.csv` in this toolkit's landmark CSV format."""
        write_text(self.folder / f"predictions_{split}.csv", wide_csv.write(landmarks))

    def save_annotations(self, landmarks: LandmarkSet, size: Size) -> None:
        """Write `annotations.json`, COCO keypoints with all known fields. Image names are relative to the run folder.

        `size`: name -> (height, width) of the upright image.
        """
        write_landmarks(landmarks, self.folder / "annotations.json", "coco", size)

    def load_landmarks(self, name: str) -> LandmarkSet:
        """Read one of the two landmark files. Raises `RunError`."""
        try:
            return read_landmarks(self.folder / name)
        except DataError as error:
            raise RunError(f"{error}; did this run's training finish?") from error

    def save_best(self, tensors: Mapping[str, NDArray[Any]], card: NetworkCard) -> None:
        """Write `best.safetensors`: the whole network and its card."""
        plain = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
        with atomic_path(self.best_path) as temporary:
            temporary.write_bytes(serialize_tensors(plain, metadata={"tl.network": dump_json(card)}))

    def load_card(self) -> NetworkCard:
        """The card stored in `best.safetensors`. Raises `RunError`."""
        if not self.best_path.is_file():
            raise RunError(f"{self.folder}: contains no best.safetensors: {UNFINISHED}")
        try:
            with safe_open(self.best_path, framework="numpy") as opened:
                text = (opened.metadata() or {}).get("tl.network", "{}")
            card = from_plain(NetworkCard, upgraded_card(parse_json(text)), "tl.network")
            if card.run_version != RUN_VERSION:
                raise ValueError(f"run_version is {card.run_version}, expected {RUN_VERSION}")
            return card
        except (SafetensorError, ValueError, OSError) as error:
            raise RunError(f"{self.best_path}: damaged, or made by another version of tl ({error})") from error

    def load_config(self) -> TrainConfig:
        """Read `config.yaml`. Raises `RunError` or `ConfigError`."""
        if not self.config_path.is_file():
            raise RunError(f"{self.folder}: not a run folder, because it contains no config.yaml")
        return config_from_mapping(load_config(self.config_path), str(self.config_path))

    def load_val_metrics(self) -> dict[str, float]:
        """The numbers of the validation split in `metrics.json`."""
        try:
            metrics = json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))["val"]
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{self.folder}: no readable metrics.json: {UNFINISHED} ({error})") from error
        return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}


def check_free(out: str | Path) -> None:
    """Raise `RunError` if a folder is in use."""
    folder = Path(out)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise RunError(
            f"{folder}: already exists; use another folder, or resume the run",
            options=["out=FOLDER", f"resume={folder}"],
        )


def create_run(out: str | Path, *, numbered: bool) -> Run:
    """Create a run folder that no other run uses. With `numbered`, use NAME-2, NAME-3 ... if NAME is taken.

    Raises `RunError` if the folder is in use, `OutputError` if it cannot be created.
    """
    folder = Path(out)
    number = 1
    while True:
        with output_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()  # of two concurrent runs, the one that creates the folder owns it
                return Run(folder)
            except FileExistsError:
                if not numbered:
                    check_free(folder)
                    return Run(folder)
        number += 1
        folder = Path(f"{out}-{number}")


def _shown(values: Iterable[Any]) -> list[Any]:
    return [f"{value:.6g}" if isinstance(value, int | float) else value for value in values]


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file atomically."""
    write_text(path, csv_text([columns, *rows]))
