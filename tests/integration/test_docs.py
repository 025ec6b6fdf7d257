"""What the documentation says is true: commands exist, pages are made, the embedding example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.models import make_model

ROOT = Path(__file__).resolve().parents[2]


def code_blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_embedding__example_runs_and_is_typed(tmp_path: Path) -> None:
    (code,) = code_blocks("docs/embedding.md", "python")
    script = tmp_path / "example.py"
    script.write_text(code, encoding="utf-8")
    make_model(tmp_path / "model.onnx")
    make_model(tmp_path / "other.onnx", gain=0.1)
    Image.fromarray(np.full((40, 30, 3), (10, 220, 30), np.uint8)).save(tmp_path / "photo.png")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("green 0.99")
    assert "refused: not a picture" in done.stdout
    assert "broken.jpg No such file or directory" in done.stdout
    assert done.stderr == ""
    typed = [sys.executable, "-m", "mypy", "--strict", "--config-file", ROOT / "pyproject.toml", script]
    checked = subprocess.run(typed, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


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
    known = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
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

    from tl.runtime.contract import Contract
    from tl.runtime.recipe import Recipe

    page = (ROOT / "docs/model-file.md").read_text(encoding="utf-8")
    fields = [field.name for kind in (Contract, Recipe) for field in dataclasses.fields(kind)]
    assert [name for name in fields if f"`{name}`" not in page] == []
