"""Text for display: what files bring along, such as class names and paths, made safe to show; and time spans."""

from __future__ import annotations

import re

# Control characters but tab and line feed, and marks that reorder text. Source: Unicode TR 36, 3.5 ("Trojan Source").
_UNSAFE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Replace characters that control a terminal or reorder text with escapes such as `\x1b`."""
    return _UNSAFE.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def time_in_words(seconds: float) -> str:
    """A time span for display, such as `45 s`, `12 min` or `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def encodable(text: str) -> str:
    """Replace what UTF-8 and JSON cannot have: bytes of file names that are not UTF-8, escaped as surrogates."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
