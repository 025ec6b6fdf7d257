"""Convert image sources to network inputs, with the same preprocessing in training and deployment; define TTA views.

Defines the order of the steps: decode, resize, crop. `decode` and `geometry` implement them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tl.errors import ImageReadError
from tl.runtime.imaging.decode import Decoded, ImageSource, decode_scaled, source_name
from tl.runtime.imaging.geometry import Placement, crop_to_input, eighths, place_given, working_image
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.imaging.regions import Box, BoxCrop, CroppedBox, Located, Part, Region

TtaKind = Literal["hflip", "vflip", "crops"]
TTA_KINDS: tuple[TtaKind, ...] = get_args(TtaKind)
# Share of each side. Source: 224 of 256 pixels, as in the validation of published ImageNet weights.
CROP_SHARE = 0.875
_REST = 1 - CROP_SHARE


@dataclass(frozen=True)
class View:
    """One view of an image: the whole image (`part` None) or a part of it, optionally mirrored."""

    part: Part | None = None
    hflip: bool = False
    vflip: bool = False

    def turn(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Mirror the input of this view's part, uint8 (H, W, 3), as this view requires."""
        return image[:: -1 if self.vflip else 1, :: -1 if self.hflip else 1]


WHOLE = View()


def check_tta(kinds: Sequence[str]) -> list[TtaKind]:
    """Return the kinds of test-time augmentation, checked. Raises ValueError for another kind, or one given twice."""
    if isinstance(kinds, str):
        raise ValueError(f"tta must be a list of {', '.join(TTA_KINDS)}, got the string {kinds!r}")
    known = [kind for word in kinds for kind in TTA_KINDS if kind == word]
    if len(known) != len(kinds) or len(set(known)) != len(known):
        raise ValueError(
            f"tta must contain each of {', '.join(TTA_KINDS)} at most once, got {', '.join(map(repr, kinds))}"
        )
    return known


def build_views(kinds: Sequence[TtaKind]) -> tuple[View, ...]:
    """Return the unmodified image first, then every combination of the requested augmentations.

    `hflip`, `vflip`: also mirrored horizontally, vertically. `crops`: also the center and the four corners, each with
    `CROP_SHARE` of the image's sides. Raises ValueError for an unknown or repeated kind.
    """
    check_tta(kinds)
    corners = [(_REST / 2, _REST / 2), (0.0, 0.0), (_REST, 0.0), (0.0, _REST), (_REST, _REST)]
    crops = [Part(left, top, CROP_SHARE, CROP_SHARE) for left, top in corners]
    parts = [None, *(crops if "crops" in kinds else [])]
    hflips, vflips = ((False, True) if kind in kinds else (False,) for kind in ("hflip", "vflip"))
    return tuple(View(part, hflip, vflip) for part in parts for vflip in vflips for hflip in hflips)


# The inputs of one image for each preprocessing, uint8 (V, H, W, 3): one per view.
Inputs = dict[Preprocessing, NDArray[np.uint8]]


def load_working(source: ImageSource, preprocessing: Preprocessing, region: Region | None = None) -> NDArray[np.uint8]:
    """Return the working image of an image or region, uint8 (h, w, 3). Raises `ImageReadError`."""
    return _resize(source, _decode(source, preprocessing, region), preprocessing, region)


def load_input(source: ImageSource, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return the network's input, uint8 (input_h, input_w, 3). Raises `ImageReadError`."""
    return crop_to_input(load_working(source, preprocessing), preprocessing)


@dataclass(frozen=True)
class Preparer:
    """Convert images to the inputs of several networks. Picklable, for use in other processes."""

    preprocessings: tuple[Preprocessing, ...]
    views: tuple[View, ...] = (WHOLE,)
    crop: BoxCrop | None = None

    def __call__(self, source: ImageSource, box: Box | None = None) -> Inputs:
        """Call `load_inputs`. Raises `ImageReadError`, also for a box where networks use whole images, or no box."""
        if self.crop is not None and box is None:
            raise ImageReadError("", "this model was trained on boxes, and none is given for this image")
        if self.crop is None and box is not None:
            raise ImageReadError("", "this model was trained on whole images, but a box is given for this image")
        return load_inputs(source, self.preprocessings, self.views, box, self.crop)


@dataclass(frozen=True)
class PlacedInput:
    """What a graph takes, uint8 (H, W, 3), and the placement of the image of `image_hw` pixels in it.

    H, W are `input_hw`, or `image_hw` if the graph takes any size.
    """

    image: NDArray[np.uint8]
    placement: Placement
    image_hw: tuple[int, int]


def load_inputs(
    source: ImageSource,
    preprocessings: Sequence[Preprocessing],
    views: Sequence[View] = (WHOLE,),
    box: Box | None = None,
    crop: BoxCrop | None = None,
) -> Inputs:
    """Return the inputs of several networks, sharing the decoded image where possible. Raises `ImageReadError`.

    `box`, `crop`: use the region around a box instead of the whole image.
    """
    parts = list(dict.fromkeys(view.part for view in views))
    wanted = [(preprocessing, part) for preprocessing in preprocessings for part in parts]
    looks: list[tuple[Preprocessing, Region | Located | None]] = [
        (preprocessing, part if box is None or crop is None else CroppedBox(box, crop, part))
        for preprocessing, part in wanted
    ]
    images = {key: placed.image for key, placed in zip(wanted, load_views(source, looks), strict=True)}
    return {
        preprocessing: np.stack([view.turn(images[preprocessing, view.part]) for view in views])
        for preprocessing in preprocessings
    }


def load_views(
    source: ImageSource, views: Sequence[tuple[Preprocessing, Region | Located | None]]
) -> list[PlacedInput]:
    """Return inputs of whole images, regions, parts or boxes, sharing the decoded image where possible.

    Raises `ImageReadError`, also for a region outside the image.
    """
    placed: list[PlacedInput] = []
    decoded: list[tuple[Preprocessing, Decoded]] = []
    for preprocessing, looked_at in views:
        shared = next((other for by, other in decoded if _suits(other, by, preprocessing, looked_at)), None)
        if shared is None:
            shared = _decode(source, preprocessing, looked_at)
            decoded.append((preprocessing, shared))
        region = _region(looked_at, shared.full_hw)
        image = crop_to_input(_resize(source, shared, preprocessing, region), preprocessing)
        placed.append(PlacedInput(image, place_given(shared.full_hw, preprocessing, region), shared.full_hw))
    return placed


def _region(looked_at: Region | Located | None, image_hw: tuple[int, int]) -> Region | None:
    return looked_at if looked_at is None or isinstance(looked_at, tuple) else looked_at.region(image_hw)


def _decode(source: ImageSource, preprocessing: Preprocessing, looked_at: Region | Located | None = None) -> Decoded:
    return decode_scaled(
        source, preprocessing, lambda image_hw: eighths(image_hw, preprocessing, _region(looked_at, image_hw))
    )


def _suits(image: Decoded, by: Preprocessing, preprocessing: Preprocessing, looked_at: Region | Located | None) -> bool:
    """Return whether `preprocessing` would decode the same pixels as `by` did."""
    is_scaled_alike = image.eighths in (None, eighths(image.full_hw, preprocessing, _region(looked_at, image.full_hw)))
    return by.decode_key == preprocessing.decode_key and is_scaled_alike


def _resize(
    source: ImageSource, image: Decoded, preprocessing: Preprocessing, region: Region | None = None
) -> NDArray[np.uint8]:
    try:
        return working_image(image, preprocessing, region)
    except ImageReadError as error:
        raise ImageReadError(source_name(source), error.reason) from error
