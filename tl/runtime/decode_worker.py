"""A process that decodes: lists of image sources in, their inputs into memory that it shares with its parent.

`decode_pool` starts it, and it ends with its parent, whatever ends that one. Knows the messages between the two and how
a slot of the shared memory is laid out. Does not know models, results or the order of images.
"""

from __future__ import annotations

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
from tl.runtime.sources.paths import read_content

# What is sent for an image whose reading failed in the parent: the error itself.
SentSource = ImageSource | ImageReadError
# Of an image: the SHA-256 of its content, "" where it was not asked for or could not be read; and what is wrong.
Outcome = tuple[str, str | None]


@dataclass(frozen=True)
class Setup:
    """The first message to a worker. `hashes`: whether contents are hashed. `num_bytes`: of the shared memory."""

    preparer: Preparer
    batch_size: int
    hashes: bool
    num_bytes: int


def slot_bytes(preparer: Preparer, batch_size: int) -> int:
    """How much memory a slot takes: a batch of inputs for each preprocessing."""
    return sum(math.prod(shape) for shape in _shapes(preparer, batch_size))


def slot_arrays(memory: mmap.mmap, slot: int, preparer: Preparer, batch_size: int) -> Inputs:
    """A slot as arrays: preprocessing -> uint8 (batch_size * V, H, W, 3), one preprocessing after the other."""
    start = slot * slot_bytes(preparer, batch_size)
    arrays: Inputs = {}
    for preprocessing, shape in zip(preparer.preprocessings, _shapes(preparer, batch_size), strict=True):
        count = math.prod(shape)
        arrays[preprocessing] = np.frombuffer(memory, np.uint8, count, start).reshape(shape)
        start += count
    return arrays


def _shapes(preparer: Preparer, batch_size: int) -> list[tuple[int, ...]]:
    return [(batch_size * len(preparer.views), *preprocessing.input_hw, 3) for preprocessing in preparer.preprocessings]


def decode_chunk(sources: Sequence[SentSource], arrays: Inputs, preparer: Preparer, hashes: bool) -> list[Outcome]:
    """Write the inputs of images that can be read into `arrays`, without gaps; say of each how it went."""
    outcomes: list[Outcome] = []
    end, views = 0, len(preparer.views)
    for source in sources:
        digest = ""
        try:
            if isinstance(source, ImageReadError):
                raise source
            content, digest = read_content(source) if hashes else (source, "")
            for preprocessing, inputs in preparer(content).items():
                arrays[preprocessing][end : end + views] = inputs
        except ImageReadError as error:
            outcomes.append((digest, error.reason))
        else:
            outcomes.append((digest, None))
            end += views
    return outcomes


class _LockBetweenProcesses:
    """Held by one process at a time, and free again when that one dies: a POSIX lock of the shared memory's file."""

    def __init__(self, file: int) -> None:
        import fcntl  # POSIX has it; without it `decode_pool` can still be imported and say so

        self._file, self._fcntl = file, fcntl

    def __enter__(self) -> None:
        self._fcntl.lockf(self._file, self._fcntl.LOCK_EX)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._fcntl.lockf(self._file, self._fcntl.LOCK_UN)


def main() -> None:
    """Decode what comes. Arguments: descriptors of the connection and of the shared memory."""
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
        except Exception as error:  # a fault of the calling program, such as an array of another kind: raised there
            reply = error
        channel.send_bytes(_dump(reply))


def _receive(channel: Connection, requests: SimpleQueue[Any]) -> None:
    """Take messages as they come, so that the parent never waits; leave when it is gone, even while decoding."""
    try:
        while True:
            requests.put(pickle.loads(channel.recv_bytes()))
    except (EOFError, OSError):
        os._exit(0)


def _dump(reply: list[Outcome] | Exception) -> bytes:
    try:
        return pickle.dumps(reply)
    except Exception:  # an exception that holds what cannot be pickled
        return pickle.dumps(RuntimeError(f"{type(reply).__name__}: {reply}"))
