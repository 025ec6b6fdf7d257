"""What the documentation says is true: commands exist, pages are made, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def code_blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_cli_page__is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs/make_cli.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_readme__leads_with_two_commands() -> None:
    first = code_blocks("README.md", "sh")[0]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]


def test_readme__names_real_options() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    known = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"^tl (\w+)", text, re.MULTILINE))
    options = set(re.findall(r"(--[a-z][a-z-]+)", "\n".join(re.findall(r"^tl .*$|`[^`\n]*`", text, re.MULTILINE))))
    assert commands
    assert [name for name in commands if f"## `tl {name}`" not in known] == []
    assert [name for name in options if f"`{name}" not in known and f", {name}" not in known] == []


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links__lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []


def test_model_file_page__describes_every_field() -> None:
    import dataclasses

    from tl.runtime.imaging.preprocessing import Preprocessing
    from tl.runtime.model_file.contract import Contract

    page = (ROOT / "docs/reference/model-file.md").read_text(encoding="utf-8")
    fields = [field.name for kind in (Contract, Preprocessing) for field in dataclasses.fields(kind)]
    assert [name for name in fields if f"`{name}`" not in page] == []
