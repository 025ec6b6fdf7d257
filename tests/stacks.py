"""Microscopy stacks as other programs write them, drawn by tifffile: classes that only one channel or plane tells."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

CHANNELS = ("DAPI", "GFP", "RFP", "Cy5")


def make_stack(random: np.random.Generator, shape: tuple[int, ...], bits: int = 16) -> NDArray[Any]:
    """Return noise of any shape, uint8 or uint16."""
    return random.integers(0, 1 << bits, shape, np.uint16 if bits == 16 else np.uint8)


def write_bytes(pixels: NDArray[Any], **options: Any) -> bytes:
    """Return a TIFF in memory."""
    stream = BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def ome(pixels: NDArray[Any], axes: str, names: tuple[str, ...] = (), **options: Any) -> bytes:
    """Return an OME-TIFF, with the names of its channels."""
    metadata: dict[str, Any] = {"axes": axes, **({"Channel": {"Name": list(names)}} if names else {})}
    return write_bytes(pixels, ome=True, metadata=metadata, photometric="minisblack", **options)


def imagej(pixels: NDArray[Any], axes: str) -> bytes:
    """Return an ImageJ hyperstack."""
    return write_bytes(pixels, imagej=True, metadata={"axes": axes})


def plain(pixels: NDArray[Any], **options: Any) -> bytes:
    """Return a TIFF of several pages without a description."""
    return write_bytes(pixels, metadata=None, photometric="minisblack", **options)


def make_cells(folder: Path, *, per_class: int = 12, channels: int = 4, planes: int = 3, telling: int = 2) -> Path:
    """Write 16-bit OME-TIFFs (Z, C, 32, 40) of two classes in a folder of class folders, which it returns.

    `round` and `striped` differ only in channel `telling`, and there only in the largest value over all planes: each
    plane has another part of the pattern.
    """
    random = np.random.default_rng(7)
    y, x = np.mgrid[0:32, 0:40]
    patterns = {"round": (y - 16) ** 2 + (x - 20) ** 2 < 100, "striped": x % 8 < 4}
    for name, pattern in patterns.items():
        for number in range(per_class):
            pixels = random.integers(0, 9000, (planes, channels, 32, 40)).astype(np.uint16)
            owner = random.integers(0, planes, (32, 40))
            for plane in range(planes):
                pixels[plane, telling][pattern & (owner == plane)] += 50000
            path = folder / name / f"{name}{number:02}.ome.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(ome(pixels, "ZCYX", CHANNELS[:channels]))
    return folder
