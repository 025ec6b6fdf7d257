"""The files that all pages share: the style sheet, helpers to build elements, the icon. Imports nothing.

Pages of servers link to them; reports contain the style sheet.
"""

from pathlib import Path

BASE = Path(__file__).with_name("base")


def read_base_style() -> str:
    """Return the style sheet of all pages: colors, type, and the blocks that pages consist of."""
    return (BASE / "base.css").read_text(encoding="utf-8")
