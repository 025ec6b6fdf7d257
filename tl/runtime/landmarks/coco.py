"""COCO keypoints: one JSON file with `images`, `annotations` and one category that names the points.

Rejects files with two specimens in one image. Besides COCO's own fields, an image may have `mm_per_px`, `split` and
`group`, an annotation `keypoint_confidence` and `bbox_of` ("keypoints" for a box around the points), and the category
`flip_pairs`.
Source: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from tl.errors import DataError
from tl.runtime.landmarks.sets import MISSING, ImageLandmarks, LandmarkSet, image_landmarks

Size = Callable[[str], tuple[int, int]]


def read(text: str, where: str) -> LandmarkSet:
    """Return the landmarks of all annotated images; the others are counted in `remarks`. Raises `DataError`."""
    try:
        file = json.loads(text)
        if not isinstance(file, dict):
            raise DataError(f"{where}: not a COCO keypoint file, and not recognized as one of a labeling tool")
        categories = [category for category in file["categories"] if category.get("keypoints")]
        images = {image["id"]: image for image in file["images"]}
        annotations = [annotation for annotation in file["annotations"] if "keypoints" in annotation]
        if len(categories) != 1:
            raise DataError(f"{where}: {len(categories)} categories with keypoints, expected one")
        names = tuple(map(str, categories[0]["keypoints"]))
        annotated = tuple(_landmarks_of(annotation, images, len(names), where) for annotation in annotations)
        skeleton = tuple((names[a - 1], names[b - 1]) for a, b in categories[0].get("skeleton", ()))
        pairs = tuple((str(a), str(b)) for a, b in categories[0].get("flip_pairs", ()))
        bare = len(images) - len(annotated)
        remarks = (f"{bare} images without points were skipped",) if bare > 0 else ()
        landmarks = LandmarkSet(names, annotated, pairs, skeleton, remarks)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise DataError(f"{where}: not a COCO keypoint file ({type(error).__name__}: {error})") from error
    counts = Counter(each.name for each in annotated)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise DataError(f"{where}: {twice[0]} has several specimens; expected one per image")
    return landmarks


def write(landmarks: LandmarkSet, size: Size) -> str:
    """Return JSON text. `size`: image name -> (height, width) of the upright image, which COCO files include."""
    names = landmarks.keypoint_names
    category: dict[str, Any] = {"id": 1, "name": "specimen", "supercategory": "", "keypoints": list(names)}
    category["skeleton"] = [[names.index(a) + 1, names.index(b) + 1] for a, b in landmarks.skeleton]
    if landmarks.flip_pairs:
        category["flip_pairs"] = [list(pair) for pair in landmarks.flip_pairs]
    file = {
        "images": [_image(i, image, size) for i, image in enumerate(landmarks.images, start=1)],
        "annotations": [_annotation(i, image) for i, image in enumerate(landmarks.images, start=1)],
        "categories": [category],
    }
    return json.dumps(file, ensure_ascii=False, indent=1) + "\n"


def _landmarks_of(annotation: dict[str, Any], images: dict[Any, Any], count: int, where: str) -> ImageLandmarks:
    image = images[annotation["image_id"]]
    points = np.array(annotation["keypoints"], np.float64).reshape(-1, 3)
    if len(points) != count:
        raise DataError(f"{where}: {image['file_name']} has {len(points)} points, expected {count}")
    confidence = annotation.get("keypoint_confidence")
    box = None if annotation.get("bbox_of") == "keypoints" else annotation.get("bbox")
    scale = image.get("mm_per_px")
    return image_landmarks(
        str(image["file_name"]),
        np.where(points[:, 2:] == MISSING, np.nan, points[:, :2]),
        [int(v) for v in points[:, 2]],
        confidence=None if confidence is None else np.array(confidence, np.float64),
        box_xywh=None if not box else tuple(map(float, box)),
        mm_per_px=None if scale is None else float(scale),
        split=str(image.get("split", "")),
        group=str(image.get("group", "")),
        stated_hw=_stated_hw(image.get("height"), image.get("width"), f"{where}: {image['file_name']}"),
    )


def _stated_hw(height: Any, width: Any, where: str) -> tuple[int, int] | None:
    """Return the size that a file states; None without one, or for the 0 that some programs write."""
    stated = [side for side in (height, width) if side not in (None, "", 0)]
    try:
        sides = [int(float(side)) for side in stated]
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: width and height must be numbers, found {stated}") from None
    if len(sides) == 1 or min(sides, default=1) < 1:
        raise DataError(f"{where}: expected a width and a height of at least 1, found {stated}")
    return (sides[0], sides[1]) if sides else None


def _image(number: int, annotated: ImageLandmarks, size: Size) -> dict[str, Any]:
    height, width = size(annotated.name)
    image: dict[str, Any] = {"id": number, "file_name": annotated.name, "width": width, "height": height}
    facts = {"mm_per_px": annotated.mm_per_px, "split": annotated.split, "group": annotated.group}
    return image | {name: value for name, value in facts.items() if value not in (None, "")}


def _annotation(number: int, image: ImageLandmarks) -> dict[str, Any]:
    seen = image.visibility != MISSING
    xy = np.where(seen[:, None], image.keypoints_xy, 0.0)
    points = [[x, y, int(v)] for (x, y), v in zip(xy.tolist(), image.visibility, strict=True)]
    annotation: dict[str, Any] = {
        "id": number,
        "image_id": number,
        "category_id": 1,
        "keypoints": [value for point in points for value in point],
        "num_keypoints": int(seen.sum()),
        "iscrowd": 0,
    }
    if image.box_xywh is None:
        annotation["bbox_of"] = "keypoints"
    box = image.box_xywh or _around(image)
    annotation |= {"bbox": list(box), "area": box[2] * box[3]}
    if image.confidence is not None:
        annotation["keypoint_confidence"] = image.confidence.tolist()
    return annotation


def _around(image: ImageLandmarks) -> tuple[float, float, float, float]:
    """Return the box around the points, which COCO requires even if no box was drawn."""
    points = image.keypoints_xy[image.visibility != MISSING]
    if not len(points):
        return 0.0, 0.0, 0.0, 0.0
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right - left, bottom - top
