"""Photos with EXIF data for tests, written by Pillow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

EXIF_IFD, GPS_IFD = 0x8769, 0x8825


def make_exif(
    taken: str = "",
    *,
    fraction: str = "",
    offset: str = "",
    make: str = "",
    model: str = "",
    serial: str = "",
    gps: dict[int, Any] | None = None,
) -> Image.Exif:
    """EXIF data with the fields that are given."""
    exif = Image.Exif()
    texts = {0x010F: make, 0x0110: model}
    for tag, text in texts.items():
        if text:
            exif[tag] = text
    inner = exif.get_ifd(EXIF_IFD)
    for tag, text in {0x9003: taken, 0x9291: fraction, 0x9011: offset, 0xA431: serial}.items():
        if text:
            inner[tag] = text
    if gps:
        exif.get_ifd(GPS_IFD).update(gps)
    return exif


def save_photo(path: Path, taken: str = "", color: tuple[int, int, int] = (200, 10, 10), **more: Any) -> Path:
    """A photo of one color, taken at a time such as `2026:05:01 12:00:00`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.full((16, 16, 3), color, np.uint8))
    exif = make_exif(taken, **more)
    if path.suffix == ".tif":  # Pillow's TIFF writer takes inner directories only as plain dictionaries
        plain = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, value in exif.items():
            plain[tag] = value
        for tag in (EXIF_IFD, GPS_IFD):
            plain[tag] = dict(exif.get_ifd(tag))
        image.save(path, tiffinfo=plain)
    else:
        image.save(path, exif=exif.tobytes())  # Pillow takes an Exif with nothing but inner directories for empty
    return path
