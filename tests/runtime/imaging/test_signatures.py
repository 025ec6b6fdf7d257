"""Files of formats that cannot be read are named by their first bytes, whatever their extension."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.images import RECIPE, encode, noise
from tests.runtime.tiny_images import IMAGES
from tl.errors import ImageReadError
from tl.runtime.imaging.decode import decode_image, read_size
from tl.runtime.imaging.signatures import foreign_fault, unchecked_format

FOREIGN = {
    b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom": "a Canon raw photo (CR3): develop it to JPEG or TIFF",
    b"II*\0\x10\0\0\0CR\x02\0": "a Canon raw photo (CR2): develop it",
    b"FUJIFILMCCD-RAW 0201FF383501": "a Fujifilm raw photo (RAF): develop it",
    b"IIRO\x08\0\0\0": "an Olympus raw photo (ORF): develop it",
    b"IIU\0\x18\0\0\0": "a Panasonic raw photo (RW2): develop it",
    b"ZISRAWFILE\0\0\0\0\0\0": "a Zeiss CZI microscope file: export each image as TIFF or PNG with ZEN or Fiji",
    b"\xda\xce\xbe\x0a\x60\0\0\0": "a Nikon ND2 microscope file: export",
    b"\x70\0\0\0\x10\0\0\0*\x08\0\0\0": "a Leica LIF microscope file: export",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an OLE file",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    bytes(128) + b"DICM": "a DICOM file: export it as PNG",
    b"8BPS\0\x01": "a Photoshop document: export it as PNG or TIFF",
    b"%PDF-1.7": "a PDF document: save its images or pages as PNG",
    b"\xff\x0a\xfa\x7f": "a JPEG XL image: convert it to PNG or JPEG",
    b"\0\0\0\x0cJXL \r\n\x87\n": "a JPEG XL image: convert",
    b"\0\0\x01\0\x01\0": "an icon (ICO): convert it to PNG",
    b"<!DOCTYPE html>": "a web page: the download failed",
    b"\xef\xbb\xbf\n<svg xmlns=": "an SVG drawing",
    b"version https://git-lfs.github.com/spec/v1\n": "a git-lfs pointer",
    bytes(18) + b"\x80" * 64 + bytes(8) + b"TRUEVISION-XFILE.\0": "a TGA image: convert it to PNG",
}


@pytest.mark.parametrize("start", FOREIGN, ids=FOREIGN.values())
@pytest.mark.parametrize("read", [lambda path: decode_image(path, RECIPE), read_size], ids=["decode", "size"])
def test_decode_image__names_a_foreign_format(start: bytes, read: object, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    is_tga = start.endswith(b"XFILE.\0")
    path.write_bytes(start if is_tga else start + bytes(2000))
    with pytest.raises(ImageReadError) as caught:
        read(path)  # type: ignore[operator]
    assert caught.value.reason.startswith(FOREIGN[start])


@pytest.mark.parametrize("kind", IMAGES)
def test_foreign_fault__not_for_supported_formats(kind: str) -> None:
    assert foreign_fault(IMAGES[kind][:512], IMAGES[kind][-26:]) is None


def test_foreign_fault__text_is_no_format() -> None:
    assert foreign_fault(b"path,label\n") is None
    assert foreign_fault(b"") is None


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("JPEG", None),
        ("PNG", None),
        *(("TIFF", "TIFF"), ("GIF", "GIF"), ("WEBP", "WebP"), ("AVIF", "AVIF"), ("BMP", "BMP"), ("PPM", "PNM")),
        ("JPEG2000", "JPEG 2000"),
    ],
)
def test_unchecked_format__all_but_jpeg_and_png(kind: str, found: str | None) -> None:
    assert unchecked_format(encode(noise(16, 16), kind)) == found
