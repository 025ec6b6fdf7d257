"""Write small images in the encodings that differ between decoders, each with the RGB pixels that a model file expects.

    python make_vectors.py [FOLDER]

Needs numpy and Pillow. The expected pixels are computed here by the written rules (docs/how-to/any-language.md), not by
a decoder. `vectors.csv` lists, for each image, its expected pixels, the largest difference of a value (0..255) that a
decoder may have, and the rule.
"""

from __future__ import annotations

import csv
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 16, 24
_EXIF_ORIENTATION = 0x0112
Expect = Callable[[str, np.ndarray, int, str], None]
# Orientation -> how the upright image is stored. Source: EXIF 2.3, tag 0x0112.
_STORED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, 1),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: np.rot90(image, -1),
}


def colors() -> np.ndarray:
    """A smooth image without symmetry, uint8 (H, W, 3)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([40 + 8 * x, 30 + 9 * y, 200 - 4 * x - 3 * y], axis=-1).astype(np.uint8)


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Pixels over a white background: uint8 (H, W, 3) and (H, W) -> (H, W, 3)."""
    share = alpha[:, :, None] / 255
    return np.rint(share * rgb + (1 - share) * 255).astype(np.uint8)


def png(values: np.ndarray, color_type: int) -> bytes:
    """Encode uint16 (H, W, channels) as a 16-bit PNG, which Pillow does not write in color."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write_vectors(folder: Path) -> None:
    """Write all images, their expected pixels and `vectors.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, int, str]] = []

    def expect(name: str, pixels: np.ndarray, difference: int, rule: str) -> None:
        expected = f"{Path(name).stem}.expected.png"
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / expected, optimize=True)
        rows.append((name, expected, difference, rule))

    rgb = colors()
    gray = rgb[:, :, 0]
    alpha = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    for orientation, stored in _STORED.items():
        exif = Image.Exif()
        exif[_EXIF_ORIENTATION] = orientation
        name = f"orientation-{orientation}.jpg"
        image = Image.fromarray(np.ascontiguousarray(stored(rgb)))
        image.save(folder / name, quality=100, subsampling=0, exif=exif)
        expect(name, rgb, 3, "EXIF orientation: turn upright")
    Image.fromarray(rgb).save(folder / "rgb.png")
    expect("rgb.png", rgb, 0, "8-bit RGB as it is")
    Image.fromarray(gray).save(folder / "gray.png")
    expect("gray.png", np.repeat(gray[:, :, None], 3, axis=2), 0, "gray: the same value in R, G and B")
    (folder / "gray-16-bit.png").write_bytes(png(_deep(gray)[:, :, None], 0))
    expect("gray-16-bit.png", np.repeat(gray[:, :, None], 3, axis=2), 0, "16 bits: v >> 8")
    (folder / "rgb-16-bit.png").write_bytes(png(_deep(rgb), 2))
    expect("rgb-16-bit.png", rgb, 0, "16 bits: v >> 8")
    Image.fromarray(np.dstack([rgb, alpha])).save(folder / "rgba.png")
    expect("rgba.png", over_white(rgb, alpha), 1, "alpha over white")
    Image.fromarray(np.dstack([gray, alpha])).save(folder / "gray-alpha.png")
    expect("gray-alpha.png", over_white(np.repeat(gray[:, :, None], 3, axis=2), alpha), 1, "alpha over white")
    _palettes(folder, rgb, expect)
    bits = rgb[:, :, 0] > 128
    Image.fromarray(bits).save(folder / "1-bit.png")
    expect("1-bit.png", np.repeat(np.where(bits, 255, 0).astype(np.uint8)[:, :, None], 3, axis=2), 0, "1 bit: 0 or 255")
    _cmyk(folder, rgb, expect)
    with (folder / "vectors.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "expected", "max_difference", "rule"), *rows])


def _deep(values: np.ndarray) -> np.ndarray:
    """16-bit values whose upper byte is the given one; rounding instead of `>> 8` would give the next value."""
    return values.astype(np.uint16) * 256 + 255


def _palettes(folder: Path, rgb: np.ndarray, expect: Expect) -> None:
    indices = (np.arange(HEIGHT * WIDTH) % 7).reshape(HEIGHT, WIDTH).astype(np.uint8)
    palette = rgb[::2, ::3].reshape(-1, 3)[:7]
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    image.save(folder / "palette.png")
    expect("palette.png", palette[indices], 0, "palette: look the color up")
    image.save(folder / "palette-transparent.png", transparency=2)
    seen = np.where((indices == 2)[:, :, None], np.uint8(255), palette[indices])
    expect("palette-transparent.png", seen, 0, "a transparent color: white")


def _cmyk(folder: Path, rgb: np.ndarray, expect: Expect) -> None:
    black = np.full((HEIGHT, WIDTH), 40, np.uint8)
    planes = [*np.moveaxis(rgb, -1, 0), black]
    image = Image.merge("CMYK", [Image.fromarray(np.ascontiguousarray(plane)) for plane in planes])
    image.save(folder / "cmyk.jpg", quality=100, subsampling=0)
    light = (255 - rgb.astype(int)) * (255 - black.astype(int))[:, :, None] / 255
    expect("cmyk.jpg", np.rint(light).astype(np.uint8), 4, "CMYK: R = (255 - C) (255 - K) / 255; profiles ignored")


if __name__ == "__main__":
    write_vectors(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
