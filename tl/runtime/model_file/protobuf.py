"""Parse protobuf's wire format: find where each field of a message begins and ends.

Parses tags, varints and lengths, with bounded work; callers specify the messages and the fields they need. Rejects
anything that two parsers could read differently, so that no content can be hidden from one of them.
Payloads are read only on request, so a file of any size needs one small window of memory. Does not use a memory map,
because the process would be killed if another program truncated a mapped file.
Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple

# The ONNX IR version of written model files.
# Source: onnxruntime's compatibility table; 1.18, the oldest supported version, reads IR up to 10.
IR_VERSION = 10
VARINT, FIXED64, LEN, FIXED32 = 0, 1, 2, 5

MAX_TEXT_BYTES = 4096  # for names and keys
_WINDOW_BYTES = 1 << 16

_KINDS = (VARINT, FIXED64, LEN, FIXED32)
_SIZES = {FIXED64: 8, FIXED32: 4}
# onnxruntime's parser drops the higher bits of a field number: larger ones would be a different field there than here.
_LARGEST_NUMBER = (1 << 29) - 1


class WireError(ValueError):
    """The bytes are not a protobuf message, not the expected message, or larger than allowed."""


class Field(NamedTuple):
    """A requested field. `kinds`: allowed wire types. `once`: reject repeats, which parsers would merge or drop."""

    name: str
    kinds: tuple[int, ...]
    once: bool


Message = Mapping[int, Field]


def one(name: str, kind: int = LEN) -> Field:
    """Return a field that may occur once in its message."""
    return Field(name, (kind,), True)


def many(name: str, *kinds: int) -> Field:
    """Return a repeated field. `kinds`: wire types for numbers, which every parser accepts unpacked or packed."""
    return Field(name, (LEN, *kinds), False)


class Wire:
    """The messages of an open file. `max_fields` limits the total number of fields, and so the time."""

    def __init__(self, file: BinaryIO, max_fields: int) -> None:
        self._file = file
        self._max_fields = self._left = max_fields
        self._window, self._base = b"", 0  # a section of the file, and its position

    def fields(self, begin: int, end: int, message: Message) -> Iterator[tuple[str, int, int]]:
        """Yield the requested fields of the message in bytes [begin, end), in order: name, start, stop; skip others.

        Start and stop delimit the payload. For a varint, start is its unsigned value and stop is -1. Raises
        `WireError`.
        """
        at, seen = begin, set()
        while at < end:
            place = at
            tag, at = self.varint(at, end)
            number, kind = tag >> 3, tag & 7
            if kind not in _KINDS or not 0 < number <= _LARGEST_NUMBER:
                raise WireError(f"expected a message field at byte {place}")
            if kind == VARINT:
                start, at = self.varint(at, end)
                stop = -1
            else:
                size, start = self.varint(at, end) if kind == LEN else (_SIZES[kind], at)
                at = stop = start + size
            self._left -= 1
            if at > end or self._left < 0:
                raise WireError(
                    f"a field beyond the end of its message, or more than {self._max_fields} fields, at byte {place}"
                )
            if number in message:
                field = message[number]
                if kind not in field.kinds or (field.once and number in seen):
                    raise WireError(f"the field {field.name!r} twice, or stored with a different type, at byte {place}")
                seen.add(number)
                yield field.name, start, stop

    def numbers(self, start: int, stop: int) -> Iterator[int]:
        """Yield the signed numbers of one occurrence of a repeated field: one unpacked or many packed numbers."""
        if stop < 0:
            yield signed(start)
        while start < stop:
            value, start = self.varint(start, stop)
            yield signed(value)

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """Return the varint at `at`, as 64 bits unsigned, and where it ends."""
        first = at - self._base
        if at < end and 0 <= first < len(self._window) and self._window[first] < 128:  # nearly all are one byte long
            return self._window[first], at + 1
        value = 0
        for place, byte in enumerate(self._read(at, min(at + 10, end))):
            value |= (byte & 127) << 7 * place
            if byte < 128:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at + place + 1
        raise WireError(f"an unterminated number at byte {at}")

    def text(self, place: tuple[int, int] | None, what: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
        """Return a text, "" for no place. `what` names it in the `WireError` if it is too long or not UTF-8."""
        start, stop = place or (0, 0)
        if stop - start > max_bytes:
            raise WireError(f"{what} of {stop - start} bytes, expected at most {max_bytes}")
        try:
            return self._read(start, stop).decode()
        except UnicodeDecodeError as error:
            raise WireError(f"{what} that is not UTF-8, at byte {start}") from error

    def integers(self, start: int, stop: int) -> list[int]:
        """Return the signed 64-bit numbers of raw data, lowest byte first."""
        data = self._read(start, stop)
        return [int.from_bytes(data[i : i + 8], "little", signed=True) for i in range(0, len(data) - 7, 8)]

    def _read(self, start: int, stop: int) -> bytes:
        if start >= stop:
            return b""
        if start < self._base or stop > self._base + len(self._window):
            self._file.seek(start)
            self._window, self._base = self._file.read(max(stop - start, _WINDOW_BYTES)), start
        return self._window[start - self._base : stop - self._base]


def signed(value: int) -> int:
    """Interpret a varint's 64 bits as a signed number."""
    return value - (1 << 64) if value >> 63 else value


MODEL: Message = {7: one("graph"), 14: many("metadata_props"), 20: many("training_info"), 25: many("functions")}
TRAINING: Message = {1: one("initialization"), 2: one("algorithm")}
FUNCTION: Message = {1: one("name"), 7: many("node"), 10: one("domain"), 11: many("attribute_proto")}
GRAPH: Message = {1: many("node"), 5: many("initializer"), 15: many("sparse_initializer")}
NODE: Message = {1: many("input"), 2: many("output"), 4: one("op_type"), 5: many("attribute"), 7: one("domain")}
ATTRIBUTE: Message = {
    5: one("t"),
    6: one("g"),
    10: many("tensors"),
    11: many("graphs"),
    22: one("sparse_tensor"),
    23: many("sparse_tensors"),
}
TENSOR: Message = {
    1: many("dims", VARINT),
    2: one("data_type", VARINT),
    4: many("float_data", FIXED32),
    5: many("int32_data", VARINT),
    6: many("string_data"),
    7: many("int64_data", VARINT),
    8: one("name"),
    9: one("raw_data"),
    10: many("double_data", FIXED64),
    11: many("uint64_data", VARINT),
    14: one("data_location", VARINT),
}
SPARSE: Message = {1: one("values"), 2: one("indices"), 3: many("dims", VARINT)}
ENTRY: Message = {1: one("key"), 2: one("value")}
