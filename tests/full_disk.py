"""A full disk, imitated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the size of files to `size` bytes, as on a full disk; Python turns the signal into an OSError.

    The limit holds for the whole process, so it must end before pytest writes to an output file again.
    """
    resource = pytest.importorskip("resource", reason="file sizes can be limited on Unix only")
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
