"""Draw predicted landmarks and explanations on photos. The only file that draws.

Depends on results and images; independent of models.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from tl.runtime.explain.explanation import Explanation, Method
from tl.runtime.imaging.colors import shown_rgb
from tl.runtime.imaging.decode import ImageSource, decode_image
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.output.files import atomic_path
from tl.runtime.results import Landmarks

# Colors that most readers can distinguish. Source: Okabe & Ito 2008.
_COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_RIM = "#000000"
_FOR, _AGAINST = (np.array(ImageColor.getrgb(color), np.float32) for color in ("#D55E00", "#0072B2"))
_OPACITY = 0.75
_PAPER, _KEY_GRAY = "#FFFFFF", 160
# Method -> its description, and the unit of its values.
_METHODS: dict[Method, tuple[str, str]] = {
    "cam": ("Class activation map: what each place adds", "logits"),
    "occlusion": ("Occlusion: what the class loses where it is covered", "probability"),
}
# Longest side in pixels of each of the two images in an explanation.
_PANEL = 800
# Approximate sides of a filter and of a feature map, in pixels.
_FILTER, _MAP = 42, 112


def draw_landmarks(
    source: ImageSource,
    found: Landmarks,
    preprocessing: Preprocessing,
    skeleton: Sequence[tuple[str, str]] = (),
) -> Image.Image:
    """Draw each point and its name on the upright photo. Raises `ImageReadError`."""
    image = Image.fromarray(shown_rgb(decode_image(source, preprocessing)))
    pen = ImageDraw.Draw(image)
    size = max(3.0, max(image.size) / 250)
    places = dict(zip(found.keypoint_names, found.keypoints_xy, strict=True))
    for first, second in skeleton:
        pen.line([_edge(places[first]), _edge(places[second])], fill="#FFFFFF", width=max(1, round(size / 3)))
    for k, (name, place) in enumerate(places.items()):
        color = _COLORS[k % len(_COLORS)]
        x, y = _edge(place)
        pen.ellipse([x - size, y - size, x + size, y + size], fill=color, outline=_RIM)
        pen.text((x + 1.5 * size, y - 3 * size), name, fill=color, font_size=4 * size, stroke_width=1, stroke_fill=_RIM)
    return image


def draw_explanation(source: ImageSource, found: Explanation, preprocessing: Preprocessing) -> Image.Image:
    """Draw the upright photo, and beside it in gray with the evidence for the label (orange) and against it (blue).

    Colors are strongest where the absolute value of `heat` is largest in this image. Text below gives the class, its
    probability, the method and a key of the colors. Raises `ImageReadError`.
    """
    photo = _small_photo(source, preprocessing)
    mixed = _mixed(photo, found)
    caption = _caption(found, float(np.abs(found.heat).max()), 2 * photo.width)
    sheet = Image.new("RGB", (max(2 * photo.width, caption.width), photo.height + caption.height), _PAPER)
    sheet.paste(photo, (0, 0))
    sheet.paste(mixed, (photo.width, 0))
    sheet.paste(caption, (0, photo.height))
    return sheet


def draw_evidence(source: ImageSource, found: Explanation, preprocessing: Preprocessing) -> Image.Image:
    """Draw the upright photo in gray with the evidence for and against the label, as in `draw_explanation`, alone.

    Raises `ImageReadError`.
    """
    return _mixed(_small_photo(source, preprocessing), found)


def _small_photo(source: ImageSource, preprocessing: Preprocessing) -> Image.Image:
    photo = Image.fromarray(shown_rgb(decode_image(source, preprocessing)))
    photo.thumbnail((_PANEL, _PANEL))
    return photo


def _mixed(photo: Image.Image, found: Explanation) -> Image.Image:
    (resized_h, resized_w), (left, top) = found.placement.resized_hw, found.placement.offset_xy
    input_h, input_w = found.placement.input_hw
    # Resize to the whole input, then map to the photo; parts that the network did not receive stay 0.
    heat = Image.fromarray(found.heat).resize((input_w, input_h), Image.Resampling.BILINEAR)
    onto_input = (resized_w / photo.width, 0, left, 0, resized_h / photo.height, top)
    spread = np.asarray(heat.transform(photo.size, Image.Transform.AFFINE, onto_input, Image.Resampling.BILINEAR))
    largest = float(np.abs(found.heat).max())
    return _colored(np.asarray(photo.convert("L"), np.float32), spread / max(largest, 1e-12))


def _colored(gray: NDArray[np.floating], share: NDArray[np.floating]) -> Image.Image:
    """Color a gray image (H, W) by evidence (H, W) of -1 to 1."""
    color = np.where(share[:, :, None] > 0, _FOR, _AGAINST)
    opacity = _OPACITY * np.abs(np.clip(share, -1, 1))[:, :, None]
    return Image.fromarray((gray[:, :, None] * (1 - opacity) + color * opacity).round().astype(np.uint8))


def _caption(found: Explanation, largest: float, width: int) -> Image.Image:
    """The text below an explanation, at least `width` pixels wide: class and probability, method, key of the colors."""
    size = max(11, width / 55)
    font, line = ImageFont.load_default(size), round(1.5 * size)
    what, unit = _METHODS[found.method]
    left, right = f"against it (-{largest:.2g})", f"for it (+{largest:.2g} {unit})"
    bar = 6 * line
    starts = np.cumsum([line / 2, font.getlength(left) + line / 2, bar + line / 2]).tolist()
    texts = {
        (line / 2, line / 4): f"{found.label}: probability {found.probability:.1%}",
        (line / 2, 1.25 * line): what,
        (starts[0], 2.25 * line): left,
        (starts[2], 2.25 * line): right,
    }
    needed = max(x + font.getlength(text) for (x, _), text in texts.items())
    caption = Image.new("RGB", (max(width, math.ceil(needed + line / 2)), round(3.5 * line)), _PAPER)
    pen = ImageDraw.Draw(caption)
    for place, text in texts.items():
        pen.text(place, text, fill=_RIM, font=font)
    ramp = np.tile(np.linspace(-1, 1, bar, dtype=np.float32), (round(size), 1))
    caption.paste(_colored(np.full_like(ramp, _KEY_GRAY), ramp), (round(starts[1]), round(2.3 * line)))
    return caption


def draw_filters(weights: NDArray[np.float32]) -> Image.Image:
    """Draw filters (O, I, kh, kw) side by side, scaled by their largest weights; gray is 0. RGB filters in color."""
    largest = np.maximum(np.abs(weights).max(axis=(1, 2, 3), keepdims=True), 1e-12)
    shown = 0.5 + weights / largest / 2
    if weights.shape[1] != 3:
        shown = shown.mean(axis=1, keepdims=True).repeat(3, axis=1)
    pixels = (255 * shown).round().astype(np.uint8).transpose(0, 2, 3, 1)
    return _side_by_side([_enlarge(Image.fromarray(tile), _FILTER) for tile in pixels])


def draw_maps(before: NDArray[np.float32], after: NDArray[np.float32], count: int = 16) -> Image.Image:
    """Draw the first channels (C, h, w) before (left) and after (right) a non-linearity, each pair on one gray scale.

    Middle gray is 0, so that values cut off by the non-linearity are visible.
    """
    blocks = []
    largest = np.maximum(np.abs(before[:count]).max(axis=(1, 2)), np.abs(after[:count]).max(axis=(1, 2)))
    for maps in (before[:count], after[:count]):
        shown = 127.5 + 127.5 * maps / np.maximum(largest, 1e-12)[:, None, None]
        tiles = shown.round().astype(np.uint8)
        blocks.append(_side_by_side([_enlarge(Image.fromarray(tile).convert("RGB"), _MAP) for tile in tiles]))
    return _side_by_side(blocks, gap=24)


def _enlarge(tile: Image.Image, side: int) -> Image.Image:
    """Enlarge a tile by an integer factor, so that its pixels stay square; large tiles are unchanged."""
    times = max(1, round(side / max(tile.size)))
    return tile.resize((times * tile.width, times * tile.height), Image.Resampling.NEAREST)


def _side_by_side(tiles: Sequence[Image.Image], gap: int = 3) -> Image.Image:
    """Arrange tiles of equal size in a grid with about as many rows as columns; two tiles go side by side."""
    columns = 2 if len(tiles) == 2 else math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    width, height = tiles[0].size
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "#FFFFFF")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * (width + gap), i // columns * (height + gap)))
    return sheet


def save_drawing(image: Image.Image, folder: Path, name: str, kind: str) -> Path:
    """Write a drawing to `drawing_path`. Raises `OutputError`."""
    path = drawing_path(folder, name, kind)
    with atomic_path(path) as temporary:
        image.save(temporary, "JPEG", quality=90)
    return path


def drawing_path(folder: Path, name: str, kind: str) -> Path:
    """Return NAME.KIND.jpg under `folder`, keeping the folders in `name`."""
    kept = PurePath(name)
    # Rename parent folders, so that ../a/1.jpg and a/1.jpg give two drawings.
    parts = ["__" if part == ".." else part for part in kept.parts if part != kept.anchor]
    path = folder.joinpath(*parts)
    return path.with_name(f"{path.name}.{kind}.jpg")


def _edge(place: NDArray[np.floating]) -> tuple[float, float]:
    """Convert a point to Pillow's coordinates, measured from the first pixel's corner instead of its center."""
    return float(place[0]) + 0.5, float(place[1]) + 0.5


def is_drawable(name: str) -> bool:
    """Return whether a row's name is a file that can be reopened, unlike a member of an archive."""
    return os.path.isfile(name)
