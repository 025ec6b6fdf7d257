"""Every fault that `tl` expects, and what the user can do about it.

Knows no other module. Each class is raised somewhere; bugs are ValueError, TypeError and the like instead.

    TlError
    ├── ImageReadError      one image cannot be read
    ├── DataError           a data set, manifest or split is faulty
    ├── ConfigError         options or a config file are faulty; lists all faults at once
    ├── WeightsError        backbone tensors are missing, unreadable or of another network
    ├── RunError            a run folder is missing, incomplete, of another version, or in the way
    ├── TrainingError       the training itself cannot go on (no finite loss, too few images)
    ├── RunInterrupted      the user stopped a training that can be resumed
    ├── ModelFileError      an .onnx file is no model of ours, is damaged, or its contract is faulty
    ├── EnsembleError       model files that cannot vote together
    ├── ParityError         a model file does not compute what was validated
    ├── PrecisionError      a graph of lower precision is too far from fp32, or no faster
    ├── DeviceError         the asked-for device cannot be used
    ├── WorkerError         a process that decodes images cannot be started, or died
    ├── OutputError         a result cannot be written
    └── MissingExtraError   an optional package is not installed
"""

from __future__ import annotations

import re


class TlError(Exception):
    """Base of every expected fault. Its text says where, what was expected, what was found, and the cure."""


class ImageReadError(TlError):
    """An image cannot be read. `path` is what the user called it, `reason` is one line without the path."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageReadError], tuple[str, str]]:
        # Pickling would otherwise call the class with the text alone; data-loader workers hand errors over so.
        return type(self), (self.path, self.reason)


class DataError(TlError):
    """A data set, manifest or split is faulty."""


class ConfigError(TlError):
    """Options or a config file are faulty. The text lists every fault."""


class WeightsError(TlError):
    """Backbone weights are missing, unreadable, or belong to another network."""


class RunError(TlError):
    """A run folder is missing, incomplete, of another version, or in the way."""


class TrainingError(TlError):
    """Training cannot go on."""


class RunInterrupted(TlError):  # noqa: N818  # not a fault
    """The user stopped a training. The text says how to go on."""


class ModelFileError(TlError):
    """A model file cannot be used: not ONNX, damaged, or its contract is faulty."""


class EnsembleError(TlError):
    """Model files that cannot vote together."""


class ParityError(TlError):
    """A model file does not compute what was validated."""


class PrecisionError(TlError):
    """A graph of lower precision decides too differently from its fp32 original, or is no faster on this machine."""


class DeviceError(TlError):
    """The asked-for device cannot be used."""


class WorkerError(TlError):
    """A process that decodes images cannot be started, or died."""


class OutputError(TlError):
    """A result cannot be written."""


class MissingExtraError(TlError):
    """An optional package is not installed."""


def first_line(error: Exception) -> str:
    """What a foreign exception says in its first line, for a message of ours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()  # torch colors its messages
    return plain.splitlines()[0][:300] if plain else type(error).__name__
