"""Images with small colored shapes on unrelated backgrounds, whose boxes are known, and files that list these boxes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLORS = {"fox": (230, 60, 20), "hare": (40, 60, 220)}
SIZE_WH = (160, 120)


def _noise(seed: int, rgb: tuple[int, int, int] = (128, 128, 128), hw: tuple[int, int] = (20, 20)) -> NDArray[Any]:
    """A color with noise of +-40, uint8 (H, W, 3). As `tests.trainer.make.make_noise`, which needs torch."""
    noise = np.random.default_rng(seed).integers(-40, 41, (*hw, 3))
    return np.clip(np.array(rgb) + noise, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Placed:
    """A shape: its class and its box in pixels."""

    label: str
    xywh: tuple[int, int, int, int]


def make_composite(path: Path, labels: Sequence[str], seed: int) -> list[Placed]:
    """Write an image with a shape of each class in `labels`, side by side, and return their boxes."""
    random = np.random.default_rng(seed)
    width, height = SIZE_WH
    image = _noise(seed, tuple(int(value) for value in random.integers(40, 216, 3)), (height, width))
    placed = []
    for n, label in enumerate(labels):
        side = int(random.integers(14, 22))
        strip = width // len(labels)
        x, y = n * strip + int(random.integers(0, strip - side)), int(random.integers(0, height - side))
        image[y : y + side, x : x + side] = COLORS[label]
        placed.append(Placed(label, (x, y, side, side)))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)
    return placed


def make_composites(folder: Path, count: int, seed: int = 0) -> dict[str, list[Placed]]:
    """Write `count` images of each class into class folders, every third with two shapes: name -> shapes."""
    made = {}
    for c, label in enumerate(COLORS):
        for i in range(count):
            name = f"{label}/{i:02d}.jpg"
            made[name] = make_composite(folder / name, [label] * (2 if i % 3 == 0 else 1), seed + 100 * c + i)
    return made


def detection(xywh: Sequence[float], confidence: float = 0.9, category: str = "1") -> dict[str, Any]:
    """A detection of MegaDetector for a box in pixels of an image of `SIZE_WH`."""
    width, height = SIZE_WH
    x, y, w, h = xywh
    box = [round(value, 4) for value in (x / width, y / height, w / width, h / height)]
    return {"category": category, "conf": confidence, "bbox": box}


def megadetector(images: Sequence[dict[str, Any]], version: str = "1.6") -> dict[str, Any]:
    """The contents of a file of MegaDetector."""
    return {
        "info": {
            "format_version": version,
            "detector": "md_v5a.0.0",
            "detection_completion_time": "2026-01-01 00:00:00",
        },
        "detection_categories": {"1": "animal", "2": "person", "3": "vehicle"},
        "images": list(images),
    }


def save_megadetector(path: Path, made: dict[str, list[Placed]]) -> Path:
    """Write the boxes of images as MegaDetector's JSON."""
    images = [{"file": name, "detections": [detection(p.xywh) for p in placed]} for name, placed in made.items()]
    path.write_text(json.dumps(megadetector(images)), encoding="utf-8")
    return path


def check_megadetector(file: dict[str, Any]) -> None:
    """Check the rules of the published format, version 1.6.

    Source: https://lila.science/megadetector-output-format, and its validator, megadetector 10.0.28
    `postprocessing.validate_batch_results`.
    """
    version = file["info"]["format_version"]
    assert isinstance(version, str)
    assert float(version) >= 1.3
    for kind in ("detection_categories", "classification_categories"):
        for number, name in file[kind].items():
            assert str(int(number)) == number
            assert isinstance(name, str)
            assert name.strip()
    for image in file["images"]:
        assert isinstance(image["file"], str)
        if image.get("failure") is not None:
            assert isinstance(image["failure"], str)
            assert image["detections"] is None
            continue
        for found in image["detections"]:
            assert found["category"] in file["detection_categories"]
            assert isinstance(found["conf"], float)
            assert len(found["bbox"]) == 4
            ranked = found.get("classifications", [])
            assert all(number in file["classification_categories"] for number, _ in ranked)
            confidences = [confidence for _, confidence in ranked]
            assert confidences == sorted(confidences, reverse=True)
            assert all(0 <= confidence <= 1 for confidence in confidences)
