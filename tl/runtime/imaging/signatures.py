"""Name a file by its first bytes, whatever its extension: formats that cannot be read, each with the way out, and those
whose decoder detects damage.

Works on bytes; opens and decodes nothing.
"""

from __future__ import annotations

HEAD_BYTES = 512  # DICOM's signature is the farthest from the start
# TGA files since 1989 have a signature at the end. Source: Truevision TGA specification 2.0, "TGA file footer".
TAIL_BYTES = 26
_TGA_TAIL = b"TRUEVISION-XFILE."

_DEVELOP = "develop it to JPEG or TIFF"
_JPEG = "export it as JPEG"
_PNG = "convert it to PNG"
_HEIC = f"install pi-heif to read it (pip install 'tl-toolkit[heif]'), or {_JPEG}"
_HEIC_BRANDS = (b"hei", b"hev")  # heic, heix, heim, heis, hevc, hevx
_HEIF_BRANDS = (b"mif1", b"msf1")


def _microscope(program: str) -> str:
    return f"export each image as TIFF or PNG with {program} or Fiji (Bio-Formats)"


# Offset, bytes there, what the file is, the way out. The first match counts.
# Sources: ISO 14496-12 and 23008-12 (brands), LibRaw and libmagic (raw), Bio-Formats' readers (microscopes).
_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    *((4, b"ftyp" + brand, "an HEIC photo", _HEIC) for brand in _HEIC_BRANDS),
    *((4, b"ftyp" + brand, "an HEIF photo", _HEIC) for brand in _HEIF_BRANDS),
    (4, b"ftypcrx ", "a Canon raw photo (CR3)", _DEVELOP),
    *((4, b"ftyp" + brand, "a video", "save its frames as images") for brand in (b"isom", b"mp4", b"qt  ", b"M4V")),
    (8, b"CR\x02", "a Canon raw photo (CR2)", _DEVELOP),
    (0, b"FUJIFILMCCD-RAW", "a Fujifilm raw photo (RAF)", _DEVELOP),
    *((0, start, "an Olympus raw photo (ORF)", _DEVELOP) for start in (b"IIRO", b"IIRS", b"MMOR")),
    (0, b"IIU\0", "a Panasonic raw photo (RW2)", _DEVELOP),
    (0, b"FOVb", "a Sigma raw photo (X3F)", _DEVELOP),
    (0, b"\0MRM", "a Minolta raw photo (MRW)", _DEVELOP),
    (0, b"ZISRAWFILE", "a Zeiss CZI microscope file", _microscope("ZEN")),
    (0, b"\xda\xce\xbe\x0a", "a Nikon ND2 microscope file", _microscope("NIS-Elements")),
    (0, b"\x70\0\0\0", "a Leica LIF microscope file", _microscope("LAS X")),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an OLE file (OIB, ZVI, FPX or Office)", _microscope("its own program")),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (such as Imaris)", _microscope("its own program")),
    (128, b"DICM", "a DICOM file", "export it as PNG"),
    (0, b"SIMPLE  =", "a FITS file", "export it as TIFF or PNG"),
    (0, b"8BPS", "a Photoshop document", "export it as PNG or TIFF"),
    (0, b"gimp xcf", "a GIMP document", "export it as PNG or TIFF"),
    (0, b"%PDF", "a PDF document", "save its images or pages as PNG"),
    (0, b"%!PS", "a PostScript file", _PNG),
    (0, b"\xff\x0a", "a JPEG XL image", f"{_PNG} or JPEG"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image", f"{_PNG} or JPEG"),
    (0, b"II\xbc", "a JPEG XR image", f"{_PNG} or JPEG"),
    (0, b"\0\0\x01\0", "an icon (ICO)", _PNG),
    (0, b"v/1\x01", "an OpenEXR image", "save it as 8- or 16-bit PNG"),
    (0, b"#?RADIANCE", "a Radiance HDR image", "save it as 8- or 16-bit PNG"),
    (0, b"DDS ", "a DDS texture", _PNG),
    (0, b"<svg", "an SVG drawing", _PNG),
    (0, b"<?xml", "an XML file", "give the image itself"),
    (0, b"<", "a web page", "the download failed or requires a login, download it again"),
    (0, b"PK\x03\x04", "a zip archive", "name it .zip to read the images in it"),
    (0, b"version https://git-lfs", "a git-lfs pointer, not the image itself", "run 'git lfs pull' in its repository"),
)
# Formats that end their data with a checksum that the decoder compares, or that the strict decoder checks.
_CHECKED = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_UNCHECKED = (
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WebP"),
    *((4, b"ftyp" + brand, "HEIC") for brand in (*_HEIC_BRANDS, *_HEIF_BRANDS)),
    (4, b"ftyp", "AVIF"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xffO\xffQ", "JPEG 2000"),
    (0, b"BM", "BMP"),
    (0, b"P", "PNM"),
)

UNCHECKED_FORMATS = tuple(dict.fromkeys(name for _, _, name in _UNCHECKED))


def foreign_fault(head: bytes, tail: bytes = b"") -> str | None:
    """Return what a file is that cannot be read, and the way out; None if it is of a supported or an unknown format.

    `head`, `tail`: its first `HEAD_BYTES` and last `TAIL_BYTES` bytes.
    """
    if head.startswith(_CHECKED) or _is_avif(head):
        return None
    if _TGA_TAIL in tail:
        return f"a TGA image: {_PNG}"
    for text in (head, head.removeprefix(b"\xef\xbb\xbf").lstrip()):
        for offset, start, what, cure in _FOREIGN:
            if text.startswith(start, offset) and (start != b"\x70\0\0\0" or head[8:9] == b"*"):
                return f"{what}: {cure}"
    return None


def unchecked_format(head: bytes) -> str | None:
    """Return the format of an image whose decoder cannot detect all damage; None for PNG, JPEG and what is no image."""
    if head.startswith(_CHECKED):
        return None
    return next((name for offset, start, name in _UNCHECKED if head.startswith(start, offset)), None)


def is_heif(head: bytes) -> bool:
    """Return whether a file begins as HEIC or HEIF, and not as AVIF, which has the same container."""
    return head[4:8] == b"ftyp" and head.startswith((*_HEIC_BRANDS, *_HEIF_BRANDS), 8) and not _is_avif(head)


def _is_avif(head: bytes) -> bool:
    """Whether a file of the ISO media format names AVIF among its brands; HEIF's general brands stand for both."""
    size = int.from_bytes(head[:4], "big")
    return head[4:8] == b"ftyp" and (b"avif" in head[8:size] or b"avis" in head[8:size])
