"""Create thumbnails to embed in a page, optionally with points drawn on them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tl.errors import ImageReadError
from tl.runtime.imaging.colors import shown_rgb
from tl.runtime.imaging.geometry import Placement
from tl.runtime.imaging.pipeline import load_views
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.imaging.regions import Region

# Colors of truth and prediction, distinguishable by most readers; shapes differ too. Source: Okabe & Ito 2008.
TRUE_COLOR, FOUND_COLOR = "#009E73", "#D55E00"


@dataclass(frozen=True)
class Thumbnail:
    """An embedded image: `uri` contains its data. `size_wh` in pixels."""

    uri: str
    size_wh: tuple[int, int]


@dataclass(frozen=True)
class Marks:
    """True and predicted points (K, 2) in pixels of the upright photo, NaN where missing."""

    true_xy: NDArray[np.float64]
    found_xy: NDArray[np.float64]


def thumbnail(
    path: str, preprocessing: Preprocessing, side: int, marks: Marks | None = None, *, region: Region | None = None
) -> Thumbnail | None:
    """Return the whole image, or its `region`, in at most `side` x `side` pixels, or None if it cannot be read."""
    try:
        (view,) = load_views(path, [(_small(preprocessing, side), region)])
    except ImageReadError:
        return None
    height, width = view.placement.resized_hw
    left, top = view.placement.offset_xy
    image = Image.fromarray(shown_rgb(view.image[top : top + height, left : left + width]))
    if marks is not None:
        _draw(image, view.placement, marks)
    return encode(image)


def encode(image: Image.Image) -> Thumbnail:
    """Encode an image at its own size."""
    data = io.BytesIO()
    image.save(data, "WEBP", quality=72, method=4)
    return Thumbnail(f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}", image.size)


def _small(preprocessing: Preprocessing, side: int) -> Preprocessing:
    """Return the preprocessing with the same decoding, resized to show the whole image."""
    return replace(preprocessing, input_hw=(side, side), resize_mode="letterbox", short_side=None, jpeg_scale="2x")


def _draw(image: Image.Image, placement: Placement, marks: Marks) -> None:
    pen = ImageDraw.Draw(image)
    radius = max(2.0, max(image.size) / 110)
    true, found = (_shown(placement, points) for points in (marks.true_xy, marks.found_xy))
    for (tx, ty), (fx, fy) in zip(true, found, strict=True):
        if not np.isnan(tx + fx):
            pen.line([(tx, ty), (fx, fy)], fill="#FFFFFF", width=1)
        if not np.isnan(tx):
            pen.ellipse([tx - radius, ty - radius, tx + radius, ty + radius], outline=TRUE_COLOR, width=2)
        if not np.isnan(fx):
            pen.line([(fx - radius, fy - radius), (fx + radius, fy + radius)], fill=FOUND_COLOR, width=2)
            pen.line([(fx - radius, fy + radius), (fx + radius, fy - radius)], fill=FOUND_COLOR, width=2)


def _shown(placement: Placement, points_xy: NDArray[np.float64]) -> Sequence[tuple[float, float]]:
    """Convert photo pixels to pixels of the thumbnail, whose padding is removed."""
    moved = placement.to_input(points_xy) - placement.offset_xy + 0.5
    return [(float(x), float(y)) for x, y in moved]
