"""What pages may send: names of classes, notes, images as a window has seen them; and how a request is refused."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tl.runtime.ensembles.selective import REJECTED
from tl.runtime.sources.names import composed

Kind = Literal["invalid", "unknown", "conflict"]
MAX_NOTE = 2000
# The windows of events that no page has sent: labels taken over from a file, and what a start adds.
IMPORT, START = "import", "start"
_MAX_NAME = 100
_WINDOW = re.compile(r"[A-Za-z0-9_-]{1,40}", re.ASCII)


class Refused(Exception):  # noqa: N818  # an answer, not a fault of the program
    """A request is not carried out, and nothing has changed. The message is a sentence for the person who asked.

    `kind`: `invalid` for a value that is never accepted, `unknown` for an image or a class that does not exist,
    `conflict` for what is not possible as things are now.
    """

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


@dataclass(frozen=True)
class Seen:
    """An image as a window has seen it: its number and version."""

    id: int
    version: int


def check_window(name: str) -> str:
    """Return the name that a window has given itself. Raises `Refused`."""
    if not _WINDOW.fullmatch(name) or name in (IMPORT, START):
        raise Refused("invalid", "the name of a window has 1 to 40 letters, digits, hyphens and underscores")
    return name


def spell(name: str) -> str:
    """Return the name of a class as it is written: composed, with single spaces."""
    return composed(" ".join(name.split()))


def check_class_name(name: str, others: Iterable[str]) -> str:
    """Return the name of a new class as `spell` writes it. `others`: the classes there are.

    Raises `Refused` for a name that training and prediction do not accept, or that differs from another only in its
    spelling.
    """
    name = spell(name)
    if not name or len(name) > _MAX_NAME:
        raise Refused("invalid", f"the name of a class has 1 to {_MAX_NAME} characters")
    if name == REJECTED or any(unicodedata.category(sign) in ("Cc", "Cs", "Cf") for sign in name):
        raise Refused("invalid", f"{name!r} cannot be the name of a class")
    if twin := next((other for other in others if _plain(other) == _plain(name)), ""):
        raise Refused("conflict", f"there is a class '{twin}' already")
    return name


def _plain(name: str) -> str:
    """A name as `data.manifests` compares labels, which may not differ in spelling only."""
    return unicodedata.normalize("NFKC", spell(name)).casefold()


def check_note(text: str) -> str:
    """Return a note without spaces around it. Raises `Refused` for one that files cannot have."""
    text = text.strip()
    if len(text) > MAX_NOTE or any(_is_refused(sign) for sign in text):
        raise Refused("invalid", f"a note has at most {MAX_NOTE:,} characters, and no control characters")
    return text


def _is_refused(sign: str) -> bool:
    """Control characters, and halves of characters, which UTF-8 does not have."""
    return (ord(sign) < 32 and sign not in "\n\t") or "\ud800" <= sign <= "\udfff"
