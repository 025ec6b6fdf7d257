"""Detect image files that are read, but maybe not as meant: cameras of fewer bits, alpha that is data, no checksums.

Reads the first bytes of every file, and the pixels of a few. Findings are warnings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tl.data.audit import Finding
from tl.data.channel_audit import find_channel_faults
from tl.data.manifests import LabeledImage
from tl.runtime.imaging.inspection import (
    MIN_IMAGES,
    StoredValues,
    camera_maximum,
    describe_dark,
    has_hidden_values,
    low_limit,
    read_values,
)
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.imaging.signatures import HEAD_BYTES, unchecked_format

# Number of images whose pixels are inspected, evenly spaced among those that may have 16 bits or alpha.
_INSPECTED = 32
_NEARLY_ALL = 0.9

Inspected = list[tuple[LabeledImage, StoredValues]]


def find_file_faults(images: Sequence[LabeledImage], preprocessing: Preprocessing) -> list[Finding]:
    """Find what the image files of a data set suggest. `preprocessing`: that of the run."""
    heads = [_head(image.path) for image in images]
    candidates = [image for image, head in zip(images, heads, strict=True) if has_hidden_values(head)]
    step = max(1, -(-len(candidates) // _INSPECTED))
    inspected = [
        (image, values)
        for image in candidates[::step]
        if (values := read_values(image.path, preprocessing)) is not None
    ]
    return [
        *_find_dark(inspected, preprocessing.bit_depth_max),
        *find_channel_faults(images, preprocessing),
        *_find_alpha(inspected),
        *_find_unchecked(images, heads),
    ]


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(HEAD_BYTES)
    except OSError:  # moved since it was read, which training reports if it needs the file again
        return b""


def _find_dark(inspected: Inspected, bit_depth_max: int) -> list[Finding]:
    """Find 12-bit data in 16-bit files, by the brightest values of nearly all inspected images."""
    deep = [(image, values, values.brightest) for image, values in inspected if values.brightest is not None]
    limit = low_limit(bit_depth_max)
    low = [(image, values, value) for image, values, value in deep if value <= limit]
    if len(deep) < MIN_IMAGES or len(low) < _NEARLY_ALL * len(deep):
        return []
    found = [value for _, _, value in low]
    if len(low) < len(deep):
        above = f"{len(deep) - len(low)} of {len(deep)} inspected images exceed it"
        cure = f"{above}: rescale all images to the full range of 16 bits"
    elif not all(values.is_gray for _, values, _ in low):
        cure = "rescale the images to the full range of 16 bits"
    else:
        cure = f"if the camera has fewer bits, set bit_depth_max={camera_maximum(found)}"
    return [Finding("bit depth", low[0][0].name, "", f"{describe_dark(found, bit_depth_max)}; {cure}")]


def _find_alpha(inspected: Inspected) -> list[Finding]:
    """Find fourth channels that look like measurements, and entirely transparent images."""
    findings = []
    several = [image for image, values in inspected if values.alpha == "varies"]
    if len(several) >= max(MIN_IMAGES, len(inspected) / 2):
        detail = (
            f"{len(several)} of {len(inspected)} inspected images have a half-transparent alpha channel, drawn over "
            "white: if it is data and not transparency, save the images without it"
        )
        findings.append(Finding("transparency", several[0].name, "", detail))
    for image, values in inspected:
        if values.alpha == "invisible":
            detail = "all pixels are transparent, so the image is white: save it without alpha"
            findings.append(Finding("transparency", image.name, "", detail))
    return findings


def _find_unchecked(images: Sequence[LabeledImage], heads: Sequence[bytes]) -> list[Finding]:
    """Count the training images in formats whose decoders accept damage."""
    formats = [
        unchecked_format(head) if image.split == "train" else None for image, head in zip(images, heads, strict=True)
    ]
    counts = Counter(name for name in formats if name is not None)
    if not counts:
        return []
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    detail = f"training images in formats whose decoders do not detect all damage to a file: {listed}"
    return [Finding("no checksum", "", "", detail)]
