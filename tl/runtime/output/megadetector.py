"""Write classifications into MegaDetector's JSON, for Timelapse and other readers of that format.

The detector's file is kept as it is, with `classifications` added to the boxes that were classified.
Source: https://lila.science/megadetector-output-format, format version 1.6.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from tl.errors import OutputError
from tl.runtime.output.files import atomic_path, write_text
from tl.runtime.sources.box_files import format_version, load_json
from tl.runtime.sources.boxed_images import BoxList
from tl.runtime.sources.tables import csv_text

# Classes written for each box, as the format's tools do, and the digits of their confidences.
_MOST_CLASSES, _DIGITS = 5, 4
# From this version on, the format has an unambiguous `failure` and `classification_categories`.
_VERSION = 1.3


def check_megadetector(final: Path, boxes: BoxList | None) -> None:
    """Raise `OutputError` unless the boxes are from a file in this format."""
    if boxes is None or boxes.format != "megadetector":
        raise OutputError(
            f"{final}: format megadetector adds the classes to a file of MegaDetector: give that file as boxes",
            options=["boxes=detections.json"],
        )
    if os.path.abspath(final) == os.path.abspath(boxes.file):
        raise OutputError(f"{final}: is the file of boxes itself: give another name")


def write_megadetector(
    lines: Path, final: Path, boxes: BoxList, class_names: Sequence[str], member_names: Sequence[str]
) -> None:
    """Write the rows of `lines` into a copy of the detector's file; failed rows go to `NAME.failed.csv` beside it.

    Each classified box gets its most probable classes, most probable first; a rejected box gets none. `class_names`
    become categories "1", "2" ... in their order. Raises `OutputError`, `DataError`.
    """
    file = load_json(Path(boxes.file))
    version = format_version(Path(boxes.file), file)
    found, failed = _read_rows(lines, class_names)
    paths = {name: path for path, name in boxes.names.items()}
    for image in file["images"]:
        for number, detection in enumerate(image.get("detections") or ()):
            detection.pop("classifications", None)  # of another classifier, whose categories are replaced
            place = paths.get(image["file"], ""), number
            if place in found:
                detection["classifications"] = found[place]
    info = file["info"] if isinstance(file.get("info"), dict) else {}
    file["info"] = info
    if version < _VERSION:
        info["format_version"] = str(_VERSION)
        for image in file["images"]:  # older files leave one of the two out
            if image.get("failure") or image.get("detections") is None:
                image["detections"] = None
                image["failure"] = str(image.get("failure") or "no detections")
            else:
                image.pop("failure", None)
    info["classifier"] = ", ".join(member_names)
    info["classification_completion_time"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    file["classification_categories"] = {str(n): name for n, name in enumerate(class_names, start=1)}
    file.pop("classification_category_descriptions", None)
    with atomic_path(final) as temporary:
        temporary.write_bytes(orjson.dumps(file, option=orjson.OPT_INDENT_2) + b"\n")
    if failed:
        write_text(f"{final}.failed.csv", csv_text([("path", "error"), *failed]))


def _read_rows(
    lines: Path, class_names: Sequence[str]
) -> tuple[dict[tuple[str, int], list[list[Any]]], list[tuple[str, str]]]:
    """Return (absolute path, number of the box) -> classes, and the failed rows."""
    found: dict[tuple[str, int], list[list[Any]]] = {}
    failed: list[tuple[str, str]] = []
    with lines.open(encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            row = json.loads(line)
            if "error" in row:
                failed.append((row["path"], row["error"]))
            elif "box_number" in row:
                is_rejected = bool(row.get("reason"))
                place = os.path.abspath(row["path"]), int(row["box_number"])
                found[place] = [] if is_rejected else _ranked(row["probabilities"], class_names)
    return found, failed


def _ranked(probabilities: dict[str, float], class_names: Sequence[str]) -> list[list[Any]]:
    order = sorted(range(len(class_names)), key=lambda n: -probabilities[class_names[n]])
    return [[str(n + 1), round(probabilities[class_names[n]], _DIGITS)] for n in order[:_MOST_CLASSES]]
