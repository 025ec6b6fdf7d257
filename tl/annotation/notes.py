"""Notes on images, as people may write them."""

from __future__ import annotations

from tl.annotation.refusals import Refused

MAX_NOTE = 2000


def check_note(text: str) -> str:
    """Return a note without spaces around it. Raises `Refused` for one that files cannot have."""
    text = text.strip()
    if len(text) > MAX_NOTE or any(_is_refused(sign) for sign in text):
        raise Refused("invalid", f"a note has at most {MAX_NOTE:,} characters, and no control characters")
    return text


def _is_refused(sign: str) -> bool:
    """Control characters, and halves of characters, which UTF-8 does not have."""
    return (ord(sign) < 32 and sign not in "\n\t") or "\ud800" <= sign <= "\udfff"
