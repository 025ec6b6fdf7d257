"""Read a multipart/form-data body: text fields, and uploaded files in memory. Source: RFC 7578."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

# Of a file name or the value of an option; far above any real one.
_MAX_TEXT = 4096
_MAX_FIELDS = 32


@dataclass
class Upload:
    """One uploaded file. `filename`: without folders."""

    filename: str
    content: bytes


@dataclass
class Form:
    """The fields of a body, and the files of each file field."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[Upload]] = field(default_factory=dict)


def parse_form(content_type: str, body: bytes, file_field: str, max_files: int) -> Form:
    """Parse a body. Parts named `file_field` are files, all others text.

    Raises 400 for a malformed body, 413 for more than `max_files` files, 415 for another content type.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise HTTPException(
            415, f"expected a body of type multipart/form-data with files named {file_field!r}, found "
            f"{kind.decode('latin-1') or 'no content type'!r}"
        )  # fmt: skip
    reader = _Reader(file_field, max_files)
    try:
        parser = MultipartParser(options[b"boundary"], reader.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise HTTPException(400, f"the multipart body is malformed: {error}") from error
    if not reader.is_complete:
        raise HTTPException(400, "the multipart body ends before its last boundary")
    return reader.form


class _Reader:
    """Collects the parts that the parser finds."""

    def __init__(self, file_field: str, max_files: int) -> None:
        self.form, self.is_complete = Form(), False
        self._file_field, self._max_files = file_field, max_files
        self._name, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._chunks: list[bytes] = []

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._name, self._value, self._headers, self._chunks = b"", b"", {}, []

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._chunks.append(data[start:end])

    def _end_part(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        content = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        if name == self._file_field:
            files = self.form.files.setdefault(name, [])
            if len(files) >= self._max_files:
                raise HTTPException(413, f"more than {self._max_files} images in one request: send several requests")
            files.append(Upload(_file_name(options.get(b"filename", b"")), content))
        elif name in self.form.fields:
            raise HTTPException(400, f"field {name[:80]!r} is there twice")
        elif len(content) > _MAX_TEXT or len(self.form.fields) >= _MAX_FIELDS:
            raise HTTPException(400, f"field {name[:80]!r} is too long, or there are too many fields")
        else:
            self.form.fields[name] = content.decode("utf-8", "replace")

    def _end(self) -> None:
        self.is_complete = True


def _file_name(given: bytes) -> str:
    """Return the name of an upload without the folders that some clients send."""
    return given.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2][:_MAX_TEXT]
