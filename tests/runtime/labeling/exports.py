"""Files as labeling tools write them, of photos of 20 x 10 pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WH = (20, 10)


def save_photos(folder: Path, names: Sequence[str], wh: tuple[int, int] = WH) -> None:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((wh[1], wh[0], 3), 40 * i % 256, np.uint8)).save(path)


def save_json(path: Path, parsed: Any) -> Path:
    path.write_text(json.dumps(parsed), encoding="utf-8")
    return path


def choice(*labels: str, control: str = "species") -> dict[str, Any]:
    return {"from_name": control, "to_name": "image", "type": "choices", "value": {"choices": list(labels)}}


def key_point(name: str, x: float, y: float, **facts: Any) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": 0.5, "keypointlabels": [name]}
    size = {"original_width": WH[0], "original_height": WH[1], "image_rotation": 0}
    return {"from_name": "parts", "to_name": "image", "type": "keypointlabels", "value": value, **size, **facts}


def task(number: int, image: str, *results: Any, **facts: Any) -> dict[str, Any]:
    """A task of Label Studio with one annotation for each of `results`."""
    annotations = [
        {"id": 10 * number + i, "result": r, "was_cancelled": False, "updated_at": f"2026-01-0{i + 1}T00:00:00Z"}
        for i, r in enumerate(results)
    ]
    return {"id": number, "data": {"image": image}, "annotations": annotations, "predictions": [], **facts}


def cvat(*images: str, labels: Sequence[str] = ("cat", "dog", "tip", "base"), before: str = "") -> str:
    declared = "".join(f"<label><name>{label}</name></label>" for label in labels)
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n{before}<annotations>\n  <version>1.1</version>\n  <meta><task>'
        f"<labels>{declared}</labels></task></meta>\n  {''.join(images)}\n</annotations>\n"
    )


def cvat_image(name: str, *shapes: str, subset: str = "default") -> str:
    return f'<image id="0" name="{name}" subset="{subset}" width="{WH[0]}" height="{WH[1]}">{"".join(shapes)}</image>'


def via_image(name: str, attributes: dict[str, Any], *points: tuple[str, float, float]) -> dict[str, Any]:
    regions = [
        {"shape_attributes": {"name": "point", "cx": x, "cy": y}, "region_attributes": {"part": part}}
        for part, x, y in points
    ]
    return {"filename": name, "size": 700, "regions": regions, "file_attributes": attributes}


def via_project(*images: dict[str, Any]) -> dict[str, Any]:
    return {
        "_via_settings": {"core": {"default_filepath": ""}, "project": {"name": "p"}},
        "_via_img_metadata": {f"{image['filename']}700": image for image in images},
        "_via_attributes": {"region": {}, "file": {}},
        "_via_data_format_version": "2.0.10",
    }


def labelme(image: str, flags: dict[str, bool], *points: tuple[str, float, float]) -> dict[str, Any]:
    shapes = [
        {"label": name, "points": [[x, y]], "group_id": None, "shape_type": "point", "flags": {}}
        for name, x, y in points
    ]
    size = {"imageHeight": WH[1], "imageWidth": WH[0]}
    return {"version": "5.5.0", "flags": flags, "shapes": shapes, "imagePath": image, "imageData": None, **size}
