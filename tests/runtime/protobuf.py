"""Protobuf messages built byte by byte, as no library would write them."""

from __future__ import annotations

VARINT, FIXED64, LEN, GROUP, FIXED32 = 0, 1, 2, 3, 5


def varint(value: int) -> bytes:
    """7 bits per byte, lowest first; the top bit marks that more bytes follow."""
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, payload: bytes | int | str) -> bytes:
    """A number as varint; text, bytes and messages with a length prefix."""
    if isinstance(payload, int):
        return varint(number << 3 | VARINT) + varint(payload)
    data = payload.encode() if isinstance(payload, str) else payload
    return varint(number << 3 | LEN) + varint(len(data)) + data
