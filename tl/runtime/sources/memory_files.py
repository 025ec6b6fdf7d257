"""Images that are not files of their own: in memory with a name, or impossible to read with the reason."""

from __future__ import annotations

import os
from io import BytesIO

from tl.errors import ImageReadError


class MemoryFile(BytesIO):
    """An encoded image in memory, with a name."""

    def __init__(self, name: str, content: bytes) -> None:
        super().__init__(content)
        self.name = name


class UnreadableFile(BytesIO):
    """An image that could not be read: its name, and the reason, which is raised on reading."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__()
        self.name, self._reason = name, reason

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Raise `ImageReadError`."""
        raise ImageReadError(self.name, self._reason)

    def read(self, size: int | None = -1, /) -> bytes:
        """Raise `ImageReadError`."""
        raise ImageReadError(self.name, self._reason)
