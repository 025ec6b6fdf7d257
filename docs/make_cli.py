"""Write docs/reference/cli.md from the commands themselves, or with --check fail if it is out of date."""

from __future__ import annotations

import sys
from pathlib import Path

import typer
import typer.cli

from tl.cli import app

PATH = Path(__file__).with_name("reference") / "cli.md"


def main() -> None:
    command = typer.main.get_command(app)
    text = typer.cli.get_docs_for_click(obj=command, ctx=typer.Context(command), name="tl")
    header = "<!-- Made by `make docs` from the commands' own help; do not edit. -->\n\n"
    text = header + "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    if "--check" in sys.argv:
        if not PATH.exists() or PATH.read_text(encoding="utf-8") != text:
            sys.exit("docs/reference/cli.md is out of date: run `make docs`")
    else:
        PATH.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
