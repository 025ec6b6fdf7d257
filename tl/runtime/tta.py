"""Test-time augmentation: the views of one picture whose probabilities are averaged.

Knows parts of pictures and mirror images. Does not know files, recipes or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tl.runtime.geometry import Part

TtaKind = Literal["hflip", "vflip", "crops"]
TTA_KINDS: tuple[TtaKind, ...] = get_args(TtaKind)
# Of each side. Source: 224 of 256 pixels, as published ImageNet weights are validated.
CROP_SHARE = 0.875
_REST = 1 - CROP_SHARE


@dataclass(frozen=True)
class View:
    """One look at a picture: a part of it, None for all, perhaps mirrored."""

    part: Part | None = None
    hflip: bool = False
    vflip: bool = False

    def turn(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The input of its part, uint8 (H, W, 3), as this view has it."""
        return image[:: -1 if self.vflip else 1, :: -1 if self.hflip else 1]


WHOLE = View()


def build_views(kinds: Sequence[TtaKind]) -> tuple[View, ...]:
    """The picture as it is, first, and every combination of what is asked for.

    `hflip`, `vflip`: also mirrored left to right, upside down. `crops`: also its middle and four corners, each
    `CROP_SHARE` of its sides. Raises ValueError for another kind, or one given twice.
    """
    if isinstance(kinds, str):
        raise ValueError(f"tta takes a list of {', '.join(TTA_KINDS)}, got the text {kinds!r}")
    for kind in kinds:
        if kind not in TTA_KINDS or kinds.count(kind) > 1:
            raise ValueError(f"tta takes each of {', '.join(TTA_KINDS)} once, got {', '.join(map(repr, kinds))}")
    corners = [(_REST / 2, _REST / 2), (0.0, 0.0), (_REST, 0.0), (0.0, _REST), (_REST, _REST)]
    crops = [Part(left, top, CROP_SHARE, CROP_SHARE) for left, top in corners]
    parts = [None, *(crops if "crops" in kinds else [])]
    hflips, vflips = ((False, True) if kind in kinds else (False,) for kind in ("hflip", "vflip"))
    return tuple(View(part, hflip, vflip) for part in parts for vflip in vflips for hflip in hflips)
