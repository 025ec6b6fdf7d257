"""Detect TIFF stacks of a data set whose channels may not mean the same: other numbers or other names.

Reads the tags of a few files, never pixels. Findings are warnings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tl.data.audit import Finding
from tl.data.manifests import LabeledImage
from tl.runtime.imaging.preprocessing import Preprocessing, is_number
from tl.runtime.imaging.stacks import read_channels

# Number of files that are inspected, evenly spaced.
_INSPECTED = 64


def find_channel_faults(images: Sequence[LabeledImage], preprocessing: Preprocessing) -> list[Finding]:
    """Find files with other channels than most, if channels are chosen: number 2 may be another stain in them."""
    if not any(map(is_number, preprocessing.channels or ())):  # names mean the same everywhere
        return []
    chosen = ", ".join(preprocessing.channels or ())
    step = max(1, -(-len(images) // _INSPECTED))
    inspected = [(image, found) for image in images[::step] if (found := read_channels(image.path)) is not None]
    if not inspected:
        return []
    (usual, count), *_ = Counter(found for _, found in inspected).most_common()
    example = next(image for image, found in inspected if found == usual)
    return [
        Finding(
            "channels",
            image.name,
            example.name,
            f"{found}, but {count} of {len(inspected)} inspected files have {usual}: check that channels {chosen} "
            "mean the same in all files",
        )
        for image, found in inspected
        if found != usual
    ]
