"""The pages of the documentation and their fenced code blocks.

A comment in the line before a block says what is special about it:

    <!-- not run: REASON -->    the block is only shown
    <!-- file: NAME -->         the block is the content of a file that later blocks use
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ("docs/reference/cli.md",)
# Languages that run, and those of data and output, which are only shown.
RUN = ("sh", "bash", "console", "python")
SHOWN = ("text", "csv", "json", "yaml")

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w+-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
_COMMENT = re.compile(r"<!-- (?P<kind>not run|file): (?P<text>.+?) -->\n *\Z")


@dataclass(frozen=True)
class Block:
    """`heading`: the nearest one above. `reason`: why it does not run, or "". `file`: the file that it is, or ""."""

    page: str
    line: int
    heading: str
    language: str
    code: str
    reason: str
    file: str

    @property
    def runs(self) -> bool:
        return self.language in RUN and not self.reason and not self.file

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def find_pages() -> list[str]:
    """README and every page of docs/ that people write, as paths from the root."""
    found = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    return ["README.md", *sorted(set(found) - set(GENERATED))]


def read_page(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def read_blocks(page: str) -> list[Block]:
    """Every fenced block of a page, in order."""
    return list(parse_blocks(page, read_page(page)))


def parse_blocks(page: str, text: str) -> Iterator[Block]:
    for fence in _FENCE.finditer(text):
        before = text[: fence.start()]
        comment = _COMMENT.search(before)
        kind, told = (comment["kind"], comment["text"]) if comment else ("", "")
        headings = re.findall(r"^#+ (.+)$", before, re.MULTILINE)
        yield Block(
            page=page,
            line=before.count("\n") + 1,
            heading=headings[-1] if headings else "",
            language=fence["language"],
            code=fence["code"].replace(f"\n{fence['indent']}", "\n").removeprefix(fence["indent"]),
            reason=told if kind == "not run" else "",
            file=told if kind == "file" else "",
        )
