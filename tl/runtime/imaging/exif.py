"""Read when, where and with which camera a photo was taken, from its EXIF data.

Reads headers only, never pixels. EXIF data is untrusted: only the few fields used here are read, each of limited size,
and a damaged field counts as absent. Thread-safe.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image

from tl.errors import ImageReadError
from tl.runtime.imaging.decode import ImageSource, open_header, reading

# Tags. Source: CIPA DC-008 (Exif 2.32), sections 4.6.4 to 4.6.6.
_MAKE, _MODEL, _EXIF_IFD, _GPS_IFD = 0x010F, 0x0110, 0x8769, 0x8825
_TAKEN, _DIGITIZED, _TAKEN_OFFSET, _DIGITIZED_OFFSET = 0x9003, 0x9004, 0x9011, 0x9012
_TAKEN_FRACTION, _DIGITIZED_FRACTION, _SERIAL = 0x9291, 0x9292, 0xA431
_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE = 1, 2, 3, 4
# Types of values that these tags have, with the size of one value in bytes.
_ASCII, _SHORT, _LONG, _RATIONAL, _IFD = 2, 3, 4, 5, 13
_SIZES = {_ASCII: 1, _SHORT: 2, _LONG: 4, _RATIONAL: 8, _IFD: 4}
# A longer directory or text is damage or an attack: Exif has fewer than 200 tags.
_MAX_ENTRIES, _MAX_BYTES = 512, 256
# As Pillow gives it for JPEG.
_PREFIX = b"Exif\0\0"

_Value = str | tuple[float, ...]
_Tags = dict[int, _Value]


@dataclass(frozen=True)
class CaptureFacts:
    """What EXIF data says of a photo. `captured`: with an offset from UTC only if the camera recorded one.

    `latitude`, `longitude`: decimal degrees, north and east are positive. `serial`: of the camera body. Unknown facts
    are None or "".
    """

    captured: datetime | None = None
    make: str = ""
    model: str = ""
    serial: str = ""
    latitude: float | None = None
    longitude: float | None = None


NOTHING = CaptureFacts()


def read_facts(source: ImageSource) -> CaptureFacts:
    """Read the EXIF data of an image; `NOTHING` without any, and for an image that cannot be opened.

    A file that is open is left at its position.
    """
    if isinstance(source, np.ndarray | Image.Image):
        return NOTHING
    try:
        with reading(source) as stream:
            place = stream.tell()
            try:
                stream.seek(0)
                return _read(stream)
            finally:
                stream.seek(place)
    except ImageReadError:
        return NOTHING


def parse_facts(block: bytes) -> CaptureFacts:
    """Parse EXIF data, which has the structure of a TIFF file, with or without its prefix."""
    return _parse(BytesIO(block.removeprefix(_PREFIX)))


def _read(stream: BinaryIO) -> CaptureFacts:
    with open_header(stream) as image:
        if image.format == "TIFF":
            return _parse(stream)
        block = image.info.get("exif")
        return parse_facts(block) if isinstance(block, bytes) else NOTHING


def _parse(stream: BinaryIO) -> CaptureFacts:
    """Parse a TIFF structure that starts at the beginning of a seekable file."""
    head = _read_at(stream, 0, 8)
    if len(head) < 8 or head[:4] not in (b"II*\0", b"MM\0*"):
        return NOTHING
    order = "<" if head[:2] == b"II" else ">"
    (start,) = struct.unpack(f"{order}I", head[4:])
    main = _directory(stream, order, start, {_MAKE, _MODEL, _EXIF_IFD, _GPS_IFD})
    taken = {_TAKEN, _DIGITIZED, _TAKEN_OFFSET, _DIGITIZED_OFFSET, _TAKEN_FRACTION, _DIGITIZED_FRACTION, _SERIAL}
    exif = _directory(stream, order, _offset(main, _EXIF_IFD), taken)
    place = {_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE}
    gps = _directory(stream, order, _offset(main, _GPS_IFD), place)
    captured = _time(exif, _TAKEN, _TAKEN_FRACTION, _TAKEN_OFFSET)
    latitude = _degrees(gps, _LATITUDE, _LATITUDE_REF, "NS", 90)
    longitude = _degrees(gps, _LONGITUDE, _LONGITUDE_REF, "EW", 180)
    has_place = latitude is not None and longitude is not None
    return CaptureFacts(
        captured=captured or _time(exif, _DIGITIZED, _DIGITIZED_FRACTION, _DIGITIZED_OFFSET),
        make=_text(main, _MAKE),
        model=_text(main, _MODEL),
        serial=_text(exif, _SERIAL),
        latitude=latitude if has_place else None,
        longitude=longitude if has_place else None,
    )


def _directory(stream: BinaryIO, order: str, start: int, wanted: set[int]) -> _Tags:
    """Read the wanted tags of the directory at `start`; none for 0 and for a damaged directory."""
    counted = _read_at(stream, start, 2) if start else b""
    if len(counted) < 2:
        return {}
    count = min(struct.unpack(f"{order}H", counted)[0], _MAX_ENTRIES)
    entries = _read_at(stream, start + 2, 12 * count)
    found: _Tags = {}
    for place in range(0, len(entries) - 11, 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", entries, place)
        num_bytes = length * _SIZES.get(kind, 0)
        if tag not in wanted or not 0 < num_bytes <= _MAX_BYTES:
            continue
        inline = entries[place + 8 : place + 12]
        data = inline[:num_bytes]
        if num_bytes > 4:
            data = _read_at(stream, struct.unpack(f"{order}I", inline)[0], num_bytes)
        if len(data) == num_bytes:
            found[tag] = _value(data, kind, length, order)
    return found


def _value(data: bytes, kind: int, count: int, order: str) -> _Value:
    if kind == _ASCII:
        return data.split(b"\0")[0].decode("utf-8", "replace").strip()
    if kind == _RATIONAL:
        parts = struct.unpack(f"{order}{2 * count}I", data)
        return tuple(
            above / below if below else float("nan") for above, below in zip(parts[::2], parts[1::2], strict=True)
        )
    return tuple(map(float, struct.unpack(f"{order}{count}{'H' if kind == _SHORT else 'I'}", data)))


def _read_at(stream: BinaryIO, place: int, count: int) -> bytes:
    stream.seek(place, os.SEEK_SET)
    return stream.read(count)


def _offset(tags: _Tags, tag: int) -> int:
    value = tags.get(tag)
    return int(value[0]) if isinstance(value, tuple) else 0


def _text(tags: _Tags, tag: int) -> str:
    value = tags.get(tag)
    return "".join(sign if sign.isprintable() else " " for sign in value).strip() if isinstance(value, str) else ""


def _time(tags: _Tags, when: int, fraction: int, offset: int) -> datetime | None:
    """Return the time of a tag; None if it is absent, invalid or zero, as of a camera whose clock was never set."""
    try:
        found = datetime.strptime(_text(tags, when), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    digits = _text(tags, fraction)
    if digits.isascii() and digits.isdigit():
        found = found.replace(microsecond=int(digits[:6].ljust(6, "0")))
    return found.replace(tzinfo=_zone(_text(tags, offset)))


def _zone(text: str) -> timezone | None:
    """`+02:00` -> a time zone, None for anything else."""
    sign, hours, minutes = text[:1], text[1:3], text[4:]
    if sign not in ("+", "-") or text[3:4] != ":" or len(text) != 6:
        return None
    if not (hours + minutes).isascii() or not (hours + minutes).isdigit() or int(hours) > 14 or int(minutes) > 59:
        return None
    ahead = timedelta(hours=int(hours), minutes=int(minutes))
    return timezone(ahead if sign == "+" else -ahead) if ahead else UTC


def _degrees(tags: _Tags, tag: int, reference: int, signs: str, limit: float) -> float | None:
    """Return an angle in decimal degrees, None if it is absent, not finite or outside its range."""
    parts, side = tags.get(tag), _text(tags, reference).upper()
    if not isinstance(parts, tuple) or len(parts) != 3 or side not in tuple(signs):
        return None
    degrees = parts[0] + parts[1] / 60 + parts[2] / 3600
    if not 0 <= degrees <= limit:  # NaN too
        return None
    return round(-degrees if side == signs[1] else degrees, 7)
