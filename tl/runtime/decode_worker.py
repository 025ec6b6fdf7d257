"""A decoding worker process: receives lists of image sources, writes their inputs to memory shared with its parent.

Started by `decode_pool`; exits with its parent, however the parent ended. Defines the messages between the two and the
layout of a slot in the shared memory.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any

import numpy as np

import tl.runtime.imaging.decode as decode
from tl.errors import ImageReadError
from tl.runtime.imaging.decode import ImageSource
from tl.runtime.imaging.pipeline import Inputs, Preparer
from tl.runtime.sources.boxed_images import BoxedImage, split_item
from tl.runtime.sources.paths import read_content

# Sent for an image that the parent could not read: the error itself.
SentSource = ImageSource | BoxedImage | ImageReadError
# For each image: the SHA-256 of its content, "" if not requested or not readable; and the error, if any.
Outcome = tuple[str, str | None]


@dataclass(frozen=True)
class Setup:
    """First message to a worker. `hashes`: whether to hash contents. `num_bytes`: size of the shared memory."""

    preparer: Preparer
    batch_size: int
    hashes: bool
    num_bytes: int


def slot_bytes(preparer: Preparer, batch_size: int) -> int:
    """Return the size of a slot in bytes: one batch of inputs for each preprocessing."""
    return sum(math.prod(shape) for shape in _shapes(preparer, batch_size))


def slot_arrays(memory: mmap.mmap, slot: int, preparer: Preparer, batch_size: int) -> Inputs:
    """View a slot as arrays: preprocessing -> uint8 (batch_size * V, H, W, 3), one preprocessing after another."""
    start = slot * slot_bytes(preparer, batch_size)
    arrays: Inputs = {}
    for preprocessing, shape in zip(preparer.preprocessings, _shapes(preparer, batch_size), strict=True):
        count = math.prod(shape)
        arrays[preprocessing] = np.frombuffer(memory, np.uint8, count, start).reshape(shape)
        start += count
    return arrays


def _shapes(preparer: Preparer, batch_size: int) -> list[tuple[int, ...]]:
    return [(batch_size * len(preparer.views), *one.input_shape) for one in preparer.preprocessings]


def decode_chunk(sources: Sequence[SentSource], arrays: Inputs, preparer: Preparer, hashes: bool) -> list[Outcome]:
    """Write the inputs of readable images into `arrays`, without gaps; return the outcome of every image."""
    outcomes: list[Outcome] = []
    end, views = 0, len(preparer.views)
    for sent in sources:
        digest = ""
        try:
            if isinstance(sent, ImageReadError):
                raise sent
            source, box = split_item(sent)
            content, digest = read_content(source) if hashes else (source, "")
            for preprocessing, inputs in preparer(content, box).items():
                arrays[preprocessing][end : end + views] = inputs
        except ImageReadError as error:
            outcomes.append((digest, error.reason))
        else:
            outcomes.append((digest, None))
            end += views
    return outcomes


class _LockBetweenProcesses:
    """Lock between processes, released when its holder dies: a POSIX lock on the file of the shared memory."""

    def __init__(self, file: int) -> None:
        import fcntl  # POSIX only; elsewhere `decode_pool` can still be imported and raise its error

        self._file, self._fcntl = file, fcntl

    def __enter__(self) -> None:
        self._fcntl.lockf(self._file, self._fcntl.LOCK_EX)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._fcntl.lockf(self._file, self._fcntl.LOCK_UN)


def main() -> None:
    """Decode chunks as they arrive. Arguments: descriptors of the connection and of the shared memory."""
    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # a damaged file is an outcome, not a log entry
    channel, file = Connection(int(sys.argv[1])), int(sys.argv[2])
    requests: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_receive, args=(channel, requests), daemon=True).start()
    setup: Setup = requests.get()
    memory = mmap.mmap(file, setup.num_bytes)
    decode.large_image_lock = _LockBetweenProcesses(file)
    while True:
        slot, sources = requests.get()
        reply: list[Outcome] | Exception
        try:
            arrays = slot_arrays(memory, slot, setup.preparer, setup.batch_size)
            reply = decode_chunk(sources, arrays, setup.preparer, setup.hashes)
        except Exception as error:  # an error of the caller, such as an unsupported array: raised in the parent
            reply = error
        channel.send_bytes(_dump(reply))


def _receive(channel: Connection, requests: SimpleQueue[Any]) -> None:
    """Receive messages at once, so that the parent never waits; exit when the parent is gone, even while decoding."""
    try:
        while True:
            requests.put(pickle.loads(channel.recv_bytes()))
    except (EOFError, OSError):
        os._exit(0)


def _dump(reply: list[Outcome] | Exception) -> bytes:
    try:
        return pickle.dumps(reply)
    except Exception:  # an exception that contains unpicklable data
        return pickle.dumps(RuntimeError(f"{type(reply).__name__}: {reply}"))
