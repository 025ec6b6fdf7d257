"""The journal of a session: what people decided, one JSON event a line, on disk before anyone is told that it is kept.

Knows the fields of each kind of event, not what they mean: `labels` does.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tl.errors import ConfigError, DataError, OutputError
from tl.runtime.output.files import check_output, no_follow, output_errors


@dataclass(frozen=True, kw_only=True)
class Event:
    """One decision. `n` counts from 1 and `at` is the time in UTC; `Journal.append` sets both.

    `do`: what was done; which other fields it has is in `_FIELDS`. `window`: who did it. `images`: names of images.
    `predicted`, `confidence`: what the head said of each image before it was labeled, None for an image of which it had
    said nothing. `of`: the number of the event that is undone or redone, or the name of the image that is shown twice.
    `first`: the number of the first event of the same action, and `more`: whether the next event is of it too; only for
    an action of several events. `kind`, `path`, `prints`: what began the journal, for which folder, and how a few of
    its images are recognized (see `identity`). `reserve`, `passed`: see `reserve.Draw`; `drawn`: names of the images
    that are reserved since then. `renamed`: the names of `images` from now on.
    """

    do: str
    window: str = ""
    images: tuple[str, ...] = ()
    label: str | None = None
    confirmed: bool = False
    predicted: tuple[str | None, ...] | None = None
    confidence: tuple[float | None, ...] | None = None
    text: str | None = None
    of: int | str | None = None
    name: str | None = None
    key: str | None = None
    old: str | None = None
    new: str | None = None
    version: str | None = None
    root: str | None = None
    classes: tuple[str, ...] | None = None
    seed: int | None = None
    num_images: int | None = None
    reserve: str | None = None
    passed: tuple[str, ...] | None = None
    drawn: tuple[str, ...] | None = None
    renamed: tuple[str, ...] | None = None
    groups: str | None = None
    kind: str | None = None
    path: str | None = None
    prints: tuple[str, ...] | None = None
    first: int | None = None
    more: bool = False
    n: int = 0
    at: str = ""

    def line(self) -> bytes:
        """The event as a line of the journal. Names that are not UTF-8 keep their bytes, as escaped surrogates."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {name: value for name, value in values.items() if value != _DEFAULTS[name]}
        ordered = {"n": self.n, "at": self.at, "window": self.window, "do": self.do} | given
        return json.dumps(ordered, separators=(",", ":"), allow_nan=False).encode() + b"\n"


_DEFAULTS = {field.name: field.default for field in fields(Event)}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_guesses(value: Any) -> bool:
    return isinstance(value, list) and all(one is None or _is_text(one) for one in value)


def _is_shares(value: Any) -> bool:
    return isinstance(value, list) and all(one is None or type(one) in (int, float) for one in value)


# Of every event, then by kind of event: the fields, with their check. Those that end in "?" may be absent.
_Checks = dict[str, Callable[[Any], bool]]
_COMMON: _Checks = {"n": _is_count, "at": _is_text, "window": _is_text, "do": _is_text}
_ACTION: _Checks = {"first?": _is_count, "more?": _is_bool}
_IMAGES: _Checks = {"images": _is_texts}
_SAID: _Checks = {"predicted?": _is_guesses, "confidence?": _is_shares}
_NUMBER: _Checks = {"of": _is_count}
_FIELDS: dict[str, _Checks] = {
    "open": {
        "version": _is_text,
        "root": _is_text,
        "classes?": _is_texts,
        "seed?": _is_count,
        "num_images?": _is_count,
        "reserve?": _is_text,
        "passed?": _is_texts,
        "drawn?": _is_texts,
        "groups?": _is_text,
        "kind?": _is_text,
        "path?": _is_text,
        "prints?": _is_texts,
    },
    "label": _IMAGES | {"label": _is_text, "confirmed?": _is_bool} | _SAID,
    "clear": _IMAGES,
    "unsure": _IMAGES | _SAID,
    "skip": _IMAGES | _SAID,
    "note": _IMAGES | {"text": _is_text},
    "undo": _NUMBER,
    "redo": _NUMBER,
    "add_class": {"name": _is_text, "key?": _is_text},
    "rename_class": {"old": _is_text, "new": _is_text},
    "merge_class": {"old": _is_text, "new": _is_text},
    "remove_class": {"name": _is_text},
    "rename_images": _IMAGES | {"renamed": _is_texts},
    "keep": _IMAGES,
    "relabel": _IMAGES | {"label": _is_text},
    "drop": _IMAGES,
    "duplicate": _IMAGES | {"of": _is_text},
    "group": _IMAGES | {"of": _is_text},
}


class Journal:
    """Appends events to a file. Thread-safe. `repaired`: what was mended when it was opened, "" for nothing.

    Only one process may have a journal open: see `runtime.output.claim.hold`.
    """

    def __init__(self, path: Path, descriptor: int, size: int, last: int, repaired: str) -> None:
        self.path, self.repaired = path, repaired
        self._descriptor, self._size, self._last = descriptor, size, last
        self._lock = threading.Lock()
        self._fault = ""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> tuple[Journal, tuple[Event, ...]]:
        """Open a journal, which need not exist, and return its events. Cuts off a last action that was not finished.

        Raises `DataError` that names the line for anything else that is damaged, `OutputError`.
        """
        path = Path(path)
        check_output(path, overwrite=True)
        with output_errors(path):
            descriptor = no_follow(os.fspath(path), os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0))
        try:
            with output_errors(path), os.fdopen(os.dup(descriptor), "rb") as stream:
                stream.seek(0)
                content = stream.read()
            whole = content.rfind(b"\n") + 1
            lines = content[:whole].splitlines(keepends=True)
            events = tuple(_read_line(path, n, line) for n, line in enumerate(lines, 1))
            if events and events[-1].more:
                events = events[: (events[-1].first or events[-1].n) - 1]
                whole = sum(map(len, lines[: len(events)]))
            repaired = ""
            if whole < len(content):
                repaired = f"{path}: the last action was not finished, and nobody was told that it is kept: removed"
            with output_errors(path):
                os.ftruncate(descriptor, whole)
                os.fsync(descriptor)
                _flush_folder(path.parent)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, whole, len(events), repaired), events

    def append(self, event: Event) -> Event:
        """Write an event and return it with its number and time. When this returns, the event is on disk.

        Raises `OutputError`; the journal is then as before.
        """
        return self.append_all([event])[0]

    def append_all(self, events: Sequence[Event]) -> tuple[Event, ...]:
        """Write the events of one action, as `append` does: all of them, or none."""
        with self._lock:
            if self._fault:
                raise OutputError(f"{self.path}: {self._fault}")
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            start, count = self._last + 1, len(events)
            numbered = tuple(replace(event, n=n, at=now) for n, event in enumerate(events, start))
            if count > 1:
                numbered = tuple(replace(event, first=start, more=event.n < self._last + count) for event in numbered)
            lines = [_checked(event) for event in numbered]
            with output_errors(self.path):
                self._write(b"".join(lines))
            self._size += sum(map(len, lines))
            self._last += count
            return numbered

    def _write(self, line: bytes) -> None:
        if not os.fstat(self._descriptor).st_nlink:
            raise OutputError(f"{self.path}: was removed meanwhile: stop, and start again")
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except OSError:
            self._take_back()
            raise

    def _take_back(self) -> None:
        """Remove what was written of an action that could not be written completely."""
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError as error:
            self._fault = f"the last line could not be written ({error.strerror}): stop, and start again"

    def close(self) -> None:
        """Close the file; nothing can be appended after that."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor, self._fault = -1, "is closed"


def check_kind(path: Path, events: Sequence[Event], kind: str) -> None:
    """Raise `ConfigError` if another command has begun a journal. `kind`: "label" or "review".

    A journal that does not say which has a seed if it is of labeling.
    """
    if not events:
        return
    first = events[0]
    if first.do != "open":
        raise DataError(f"{path} line 1: is not the beginning of a session")
    found = first.kind or ("review" if first.seed is None else "label")
    if found != kind:
        raise ConfigError(f"{path}: is the journal of tl {found}: give tl {kind} another output")


def _checked(event: Event) -> bytes:
    """The line of an event, which can be read again. Raises `ValueError` for an event that the journal may not have."""
    line = event.line()
    try:
        _parse("new event", json.loads(line))
    except DataError as error:
        raise ValueError(str(error)) from error
    return line


def _flush_folder(folder: Path) -> None:
    """Flush the entry of a new file to disk, where the system can do this."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError:  # a file system that cannot: the file's content is flushed all the same
            pass
        finally:
            os.close(descriptor)


def _read_line(path: Path, number: int, line: bytes) -> Event:
    place = f"{path} line {number}"
    try:
        found = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{place}: damaged ({error}): restore the file from a copy, or remove this line and all after it"
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("do"), str):
        raise DataError(f"{place}: expected an object with the key do")
    event = _parse(place, found)
    if event.n != number:
        raise DataError(f"{place}: has the number {event.n}: a line is missing, or in a wrong place")
    return event


def _parse(place: str, found: Mapping[str, Any]) -> Event:
    if found["do"] not in _FIELDS:
        raise DataError(f"{place}: do '{found['do']}' is not one of {', '.join(_FIELDS)}; it may be of a newer version")
    checks = _COMMON | _ACTION | _FIELDS[found["do"]]
    known = {name.removesuffix("?"): check for name, check in checks.items()}
    if unknown := [name for name in found if name not in known]:
        raise DataError(f"{place}: '{found['do']}' has no field {', '.join(unknown)}; it may be of a newer version")
    if lacking := [name for name in checks if not name.endswith("?") and name not in found]:
        raise DataError(f"{place}: '{found['do']}' lacks {', '.join(lacking)}")
    if wrong := [name for name, value in found.items() if not known[name](value)]:
        raise DataError(f"{place}: {wrong[0]} has a value of another kind: {str(found[wrong[0]])[:100]}")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    each = [values[name] for name in ("predicted", "confidence", "renamed") if name in values]
    if any(len(one) != len(values["images"]) for one in each):
        raise DataError(f"{place}: predicted, confidence and renamed need one value for each image")
    return Event(**values)
