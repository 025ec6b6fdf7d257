"""Errors that `tl` raises for expected faults, with messages that say how to fix them.

Imports no other module of `tl`. Bugs raise ValueError, TypeError and the like instead.

    TlError
    ├── ImageReadError      one image cannot be read
    ├── DataError           a data set, manifest or split is invalid
    ├── ConfigError         options or a config file are invalid; lists all faults at once
    ├── WeightsError        backbone tensors are missing, unreadable or from another network
    ├── RunError            a run folder is missing, incomplete, from another version, or already exists
    ├── TrainingError       training cannot continue (no finite loss, too few images)
    ├── RunInterrupted      the user interrupted a training run that can be resumed
    ├── ModelFileError      an .onnx file is not a tl model file, is damaged, or has an invalid contract
    ├── EnsembleError       model files cannot be combined into an ensemble
    ├── ParityError         a model file does not reproduce the validated outputs
    ├── PrecisionError      a lower-precision graph differs too much from fp32, or is no faster
    ├── DeviceError         the requested device cannot be used
    ├── WorkerError         a process that decodes or predicts images cannot be reached or started, or died
    ├── OutputError         a result cannot be written
    └── MissingExtraError   an optional package is not installed
"""

from __future__ import annotations

import re
from collections.abc import Sequence


class TlError(Exception):
    """Base class of all expected errors. The message gives the location, what was expected and found, and the fix.

    `options`: arguments or config fields that can fix it, by their Python names, with a value where one is known, as in
    `("skip_bad", "lr=0.001")`. The command line shows them as flags.
    """

    def __init__(self, message: str, *, options: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.options = tuple(options)


class ImageReadError(TlError):
    """An image cannot be read. `path` is as the user gave it; `reason` is one line without the path."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageReadError], tuple[str, str]]:
        # By default, unpickling calls the class with the message alone. Data-loader workers pickle errors.
        return type(self), (self.path, self.reason)


class DataError(TlError):
    """A data set, manifest or split is invalid."""


class ConfigError(TlError):
    """Options or a config file are invalid. The message lists every fault."""


class WeightsError(TlError):
    """Backbone weights are missing, unreadable, or from another network."""


class RunError(TlError):
    """A run folder is missing, incomplete, from another version, or already exists."""


class TrainingError(TlError):
    """Training cannot continue."""


class RunInterrupted(TlError):  # noqa: N818  # not a fault
    """The user interrupted training. `run_folder`: the run that can be resumed, if it is one run."""

    def __init__(self, message: str, *, run_folder: str | None = None) -> None:
        super().__init__(message)
        self.run_folder = run_folder


class ModelFileError(TlError):
    """A model file cannot be used: it is not ONNX, is damaged, or has an invalid contract."""


class EnsembleError(TlError):
    """Model files cannot be combined into an ensemble."""


class ParityError(TlError):
    """A model file does not reproduce the validated outputs."""


class PrecisionError(TlError):
    """A lower-precision graph disagrees too often with its fp32 original, or is no faster on this machine."""


class DeviceError(TlError):
    """The requested device cannot be used."""


class WorkerError(TlError):
    """A process that decodes or predicts images, or its cluster, cannot be reached or started, or died."""


class OutputError(TlError):
    """A result cannot be written."""


class MissingExtraError(TlError):
    """An optional package is not installed."""


def first_line(error: Exception) -> str:
    """Return the first line of another library's exception, at most 300 characters, without places in its C++ code."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()  # torch colors its messages
    line = plain.splitlines()[0] if plain else type(error).__name__
    place = re.search(r"/\S+\.(cc|h|cu|cpp):\d+ [^(]*\(", line)  # of onnxruntime, followed by a function's signature
    if place is not None and (end := _closing(line, place.end())) < len(line):
        line = line[: place.start()].rstrip(": ") + ": " + line[end:].removeprefix(" const").lstrip()
    return line[:300]


def _closing(line: str, start: int) -> int:
    """The position after the parenthesis that closes the one before `start`; the end if there is none."""
    depth = 1
    for place in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[place], 0)
        if not depth:
            return place + 1
    return len(line)
