"""Leave texts and color profiles out of a PNG whose texts Pillow refuses to read for their size."""

from __future__ import annotations

from typing import BinaryIO


def is_about_text(error: ValueError) -> bool:
    """Whether Pillow refuses a PNG for the size of its texts or color profile, which are not needed here."""
    return "MAX_TEXT" in str(error)


def without_text(stream: BinaryIO) -> bytes:
    """A PNG file without texts and color profile. Source: the PNG specification, "Chunk layout"."""
    stream.seek(0)
    kept = [stream.read(8)]
    while len(head := stream.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        rest = stream.read(length + 4)
        if kind not in (b"iCCP", b"tEXt", b"zTXt", b"iTXt"):
            kept += [head, rest]
        if kind == b"IEND":
            break
    return b"".join(kept)
