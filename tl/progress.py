"""What long work reports of itself. The command line draws it; the library only calls it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A listener to long work."""

    def start(self, task: str, total: int, unit: str) -> None:
        """A task of `total` steps begins; the one before has ended."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Steps are done; `note` is a short state such as the loss."""

    def say(self, line: str) -> None:
        """A line worth keeping, such as an epoch's result."""


class Silent:
    """Listens to nothing."""

    def start(self, task: str, total: int, unit: str) -> None:
        """Ignored."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Ignored."""

    def say(self, line: str) -> None:
        """Ignored."""
