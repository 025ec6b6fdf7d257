"""Write tasks for Label Studio with predictions, which annotators correct: classes as choices, points as key points.

Sources: https://labelstud.io/guide/predictions, https://labelstud.io/guide/storage#Local-storage.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import orjson

from tl.errors import DataError
from tl.runtime.labeling.export import PIXEL_CENTER
from tl.runtime.landmarks.sets import ImageLandmarks, LandmarkSet
from tl.runtime.sources.remote import remote_name, shown_name

# Names of the parts of the labeling interface, which results refer to.
IMAGE, LABEL, KEYPOINTS = "image", "label", "keypoints"
# What Label Studio serves files from, below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.
LOCAL_FILES = "/data/local-files/?d="
# Storage whose paths are not URLs, so that nothing in them is escaped.
_BUCKETS = ("s3://", "gs://", "azure-blob://", "azure_spi://")
# Schemes of fsspec -> those of Label Studio, where these differ.
_STORAGE_SCHEMES = {"gcs": "gs", "az": "azure-blob"}
# Diameter of a point, in percent of the image's width.
_POINT_WIDTH = 0.5

Task = dict[str, Any]


@dataclass(frozen=True)
class TaskLinks:
    """How tasks refer to images: by `prefix` and the path of the image below the folder `root`, or by its address.

    `model_version`: name of the predictions in Label Studio. `find`: name of an image -> its path.
    """

    root: str = "."
    prefix: str = LOCAL_FILES
    model_version: str = ""
    find: Callable[[str], str] = str

    def link(self, name: str) -> str:
        """Return the URL of an image, which for an address is itself without credentials.

        Raises `DataError` for a file that is not below `root`.
        """
        if address := remote_name(name):
            return _storage_url(shown_name(address))
        path = os.path.abspath(self.find(name))
        relative = os.path.relpath(path, os.path.abspath(self.root))
        if relative.split(os.sep)[0] == "..":
            raise DataError(
                f"{name}: is not in {self.root}, which the tasks' paths are relative to: name a folder that contains "
                "all images, LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT for local files",
                options=["image_root=FOLDER"],
            )
        path = Path(relative).as_posix()
        return self.prefix + (path if self.prefix.startswith(_BUCKETS) else quote(os.fsencode(path)))


def _storage_url(address: str) -> str:
    """Return an address with the scheme that Label Studio has for its store."""
    scheme, _, rest = address.partition("://")
    return f"{_STORAGE_SCHEMES.get(scheme, scheme)}://{rest}"


def class_task(row: dict[str, Any], links: TaskLinks) -> Task:
    """Return the task of a classified image, from the plain form of its result; without a prediction if rejected."""
    if "labels" in row:
        labels = list(row["labels"])
        score = min((row["probabilities"][name] for name in labels), default=1 - max(row["probabilities"].values()))
    else:
        labels = [] if row.get("reason") else [row["label"]]
        score = row["confidence"]
    results = [_result(LABEL, "choices", {"choices": labels}, score)] if labels else []
    return _task(row["path"], results, score, links)


def point_tasks(landmarks: LandmarkSet, size: Callable[[str], tuple[int, int]], links: TaskLinks) -> str:
    """Return the tasks of images with points as JSON. `size`: name -> (height, width) of the upright image.

    Raises `DataError`.
    """
    tasks = [_point_task(image, landmarks.keypoint_names, size(image.name), links) for image in landmarks.images]
    return json.dumps(tasks, ensure_ascii=False, indent=1) + "\n"


def dump_tasks(tasks: Sequence[Task]) -> bytes:
    """Return tasks as JSON."""
    return orjson.dumps(tasks, option=orjson.OPT_INDENT_2) + b"\n"


def interface_of(class_names: Sequence[str] = (), point_names: Sequence[str] = (), *, several: bool = False) -> str:
    """Return the labeling interface that fits the tasks: XML for the project's settings."""
    lines = ["<View>", f'  <Image name="{IMAGE}" value="${IMAGE}" zoom="true" zoomControl="true"/>']
    if class_names:
        choice = "multiple" if several else "single"
        lines.append(f'  <Choices name="{LABEL}" toName="{IMAGE}" choice="{choice}" showInline="true">')
        lines += [f"    <Choice value={quoteattr(name)}/>" for name in class_names]
        lines.append("  </Choices>")
    if point_names:
        lines.append(f'  <KeyPointLabels name="{KEYPOINTS}" toName="{IMAGE}">')
        lines += [f"    <Label value={quoteattr(name)}/>" for name in point_names]
        lines.append("  </KeyPointLabels>")
    return "\n".join([*lines, "</View>"]) + "\n"


def _point_task(image: ImageLandmarks, names: Sequence[str], size_hw: tuple[int, int], links: TaskLinks) -> Task:
    height, width = size_hw
    results = []
    sure = [None] * len(names) if image.confidence is None else image.confidence.tolist()
    for name, (x, y), score in zip(names, image.keypoints_xy.tolist(), sure, strict=True):
        if math.isnan(x):
            continue
        value = {
            "x": (x + PIXEL_CENTER) / width * 100,
            "y": (y + PIXEL_CENTER) / height * 100,
            "width": _POINT_WIDTH,
            "keypointlabels": [name],
        }
        facts = {"original_width": width, "original_height": height, "image_rotation": 0}
        results.append(_result(KEYPOINTS, "keypointlabels", value, score) | facts)
    scores = [value for value in sure if value is not None]
    return _task(image.name, results, sum(scores) / len(scores) if scores else None, links)


def _result(control: str, kind: str, value: dict[str, Any], score: float | None) -> dict[str, Any]:
    result = {"from_name": control, "to_name": IMAGE, "type": kind, "value": value}
    return result if score is None else {**result, "score": score}


def _task(name: str, results: list[dict[str, Any]], score: float | None, links: TaskLinks) -> Task:
    """Return a task; without results it has no prediction."""
    prediction: dict[str, Any] = {"model_version": links.model_version, "result": results}
    if score is not None:
        prediction["score"] = score
    for count, result in enumerate(results, start=1):
        result["id"] = f"tl{count}"
    return {"data": {IMAGE: links.link(name)}, "predictions": [prediction] if results else []}
