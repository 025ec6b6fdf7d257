"""From a picture source to the network's input: the one preprocessing of training and deployment.

Knows the order of things: decode, resize, crop. Does not know how each is done (`decode`, `geometry`), nor models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tl.errors import ImageReadError
from tl.runtime.decode import Decoded, ImageSource, decode_scaled, source_name
from tl.runtime.geometry import Part, Placement, Region, crop_to_input, eighths, place, working_image
from tl.runtime.recipe import Recipe
from tl.runtime.tta import WHOLE, View

# What each recipe's network is given of one picture, uint8 (V, H, W, 3): one entry a view.
Inputs = dict[Recipe, NDArray[np.uint8]]


def load_working(source: ImageSource, recipe: Recipe, region: Region | None = None) -> NDArray[np.uint8]:
    """The resized, not yet cropped picture or region of it, uint8 (h, w, 3). Raises `ImageReadError`."""
    return _resize(source, _decode(source, recipe, region), recipe, region)


def load_input(source: ImageSource, recipe: Recipe) -> NDArray[np.uint8]:
    """The network's input, uint8 (input_h, input_w, 3). Raises `ImageReadError`."""
    return crop_to_input(load_working(source, recipe), recipe)


@dataclass(frozen=True)
class PlacedInput:
    """A network's input, uint8 (input_h, input_w, 3), and where the picture of `image_hw` pixels lies in it."""

    image: NDArray[np.uint8]
    placement: Placement
    image_hw: tuple[int, int]


def load_inputs(source: ImageSource, recipes: Sequence[Recipe], views: Sequence[View] = (WHOLE,)) -> Inputs:
    """The inputs of several networks, the picture decoded once for all that want it alike. Raises `ImageReadError`."""
    parts = list(dict.fromkeys(view.part for view in views))
    wanted = [(recipe, part) for recipe in recipes for part in parts]
    images = {key: placed.image for key, placed in zip(wanted, load_views(source, wanted), strict=True)}
    return {recipe: np.stack([view.turn(images[recipe, view.part]) for view in views]) for recipe in recipes}


def load_views(source: ImageSource, views: Sequence[tuple[Recipe, Region | Part | None]]) -> list[PlacedInput]:
    """Inputs of whole pictures, regions or parts, the picture decoded once for all that want it alike.

    Raises `ImageReadError`, also for a region outside the picture.
    """
    placed: list[PlacedInput] = []
    decoded: list[tuple[Recipe, Decoded]] = []
    for recipe, looked_at in views:
        picture = next((other for by, other in decoded if _suits(other, by, recipe, looked_at)), None)
        if picture is None:
            picture = _decode(source, recipe, looked_at)
            decoded.append((recipe, picture))
        region = _region(looked_at, picture.full_hw)
        image = crop_to_input(_resize(source, picture, recipe, region), recipe)
        placed.append(PlacedInput(image, place(picture.full_hw, recipe, region), picture.full_hw))
    return placed


def _region(looked_at: Region | Part | None, image_hw: tuple[int, int]) -> Region | None:
    return looked_at.region(image_hw) if isinstance(looked_at, Part) else looked_at


def _decode(source: ImageSource, recipe: Recipe, looked_at: Region | Part | None = None) -> Decoded:
    return decode_scaled(source, recipe, lambda image_hw: eighths(image_hw, recipe, _region(looked_at, image_hw)))


def _suits(picture: Decoded, by: Recipe, recipe: Recipe, looked_at: Region | Part | None) -> bool:
    """Whether `recipe` would decode the same pixels as `by` did."""
    is_scaled_alike = picture.eighths in (None, eighths(picture.full_hw, recipe, _region(looked_at, picture.full_hw)))
    return by.decode_key == recipe.decode_key and is_scaled_alike


def _resize(source: ImageSource, picture: Decoded, recipe: Recipe, region: Region | None = None) -> NDArray[np.uint8]:
    try:
        return working_image(picture, recipe, region)
    except ImageReadError as error:
        raise ImageReadError(source_name(source), error.reason) from error
