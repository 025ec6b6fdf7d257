"""The interface between `Session` and the program that computes a model file. Knows no library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

INPUT_NAME = "images"
# Name, type as in "tensor(uint8)", and shape of a graph input or output; None for dynamic sizes.
Signature = tuple[str, str, tuple[int | None, ...]]


class RunEndedError(Exception):
    """A run was ended by `Engine.end_runs`, or after its time."""


class RunFailedError(Exception):
    """A run failed. The message is one line without the file's name."""


class Engine(Protocol):
    """An open model file. Thread-safe.

    `name`: the library. `provider`: what computes, as in `providers.PROVIDERS`. `is_bf16`: whether an fp32 graph is
    computed in bf16.
    """

    name: str
    provider: str
    is_bf16: bool
    inputs: tuple[Signature, ...]
    outputs: tuple[Signature, ...]

    def read_metadata(self, key: str) -> str | None:
        """Return the text under a key of the file's metadata. Raises UnicodeDecodeError."""

    def run(
        self, names: Sequence[str], images: NDArray[np.uint8], max_seconds: float | None
    ) -> list[NDArray[np.float32]]:
        """Run a batch. `images`: uint8 (N, H, W, C). Returns the named outputs in order.

        Raises `RunEndedError` after `max_seconds`, and `RunFailedError`.
        """

    def end_runs(self) -> None:
        """End the runs that are in progress, in any thread, at their next operator."""


@contextmanager
def ending_after(seconds: float | None, end: Any) -> Iterator[None]:
    """Call `end` from another thread if the block takes longer than `seconds`; never if None."""
    timer = None if seconds is None else Timer(seconds, end)
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
