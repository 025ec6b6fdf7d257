"""What a session says to a request that it does not carry out."""

from __future__ import annotations

from typing import Literal

Kind = Literal["invalid", "unknown", "conflict"]


class Refused(Exception):  # noqa: N818  # an answer, not a fault of the program
    """A request is not carried out, and nothing has changed. The message is a sentence for the person who asked.

    `kind`: `invalid` for a value that is never accepted, `unknown` for an image or a class that does not exist,
    `conflict` for what is not possible as things are now.
    """

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason
