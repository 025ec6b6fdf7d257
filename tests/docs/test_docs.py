"""What the documentation says is true: its commands run, its options exist, its links lead somewhere, its site builds.

Every fenced block of a shell or of Python runs, page by page and from top to bottom, in one folder per page; a block
that cannot run says why (`pages`). The folder holds what `stage` puts there. `tl` is the real command with smaller
settings (`quick_tl`).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, RUN, SHOWN, Block, find_pages, parse_blocks, read_blocks, read_page
from tests.docs.quick_tl import added_options
from tests.docs.stage import STAGES, write_scripts, write_weights

# Pages that train, export or measure more than a few times. The README runs before each commit.
SLOW = {
    "docs/index.md",
    "docs/how-to/adopt.md",
    "docs/how-to/boxes.md",
    "docs/how-to/ensembles.md",
    "docs/how-to/labeling-tools.md",
    "docs/how-to/landmarks.md",
    "docs/how-to/microscopy.md",
    "docs/how-to/review.md",
    "docs/how-to/sequences.md",
    "docs/how-to/studies.md",
    "docs/reference/model-file.md",
    "docs/reference/recipes.md",
    "docs/tutorials/ecologist.md",
    "docs/tutorials/morphometrics.md",
    "docs/tutorials/inspection.md",
}
# Page -> heading -> what the heading's Python prints, in this order. Each Python block of these pages is listed.
PRINTED = {
    "docs/how-to/embedding.md": {
        "Load and predict": ["('red', 'green', 'blue') ", "green 0.99", "'label': 'green'", "red", "green", "green"],
        "Many images": ["photo.png green", " red", "broken.jpg gave nothing: No such file", "['green', 'red', None]"],
        "Several models that vote": ["('model', 'other') ('green', 'green') 1.0 0.0"],
        "Several images of one subject": ["green 2"],
        "When not to believe it": ["sure enough: green"],
        "Landmarks": ["red 20 15", "green 60 20", "blue 30 45", "True 0.0 False"],
        "Errors": ["no model: missing.onnx: no such file", "no image: not an image", "differs by "],
        "A window that must not freeze": ["'label': 'green'", "{'path': 'broken.jpg', 'error': 'No such file"],
        "A web service": ['"label": "green"', """('{"error": "empty file"}', 422)"""],
        "Processes": ["['green', 'green']"],
    },
    "docs/tutorials/tool-author.md": {
        "2. Verify the file": ["2 samples, largest difference "],
        "3. Predict one image": ["green 1.00", "{'red': 0.0, 'green': 1.0, 'blue': 0.0}", "red"],
        "4. Predict many images": ["photo.png: green", "wing.png: ", "missing.png: "],
        "5. Handle errors": ["This is not a usable model file. missing.onnx: no such", "The image cannot be read: "],
        "6. Read what the file says of itself": [
            "classification fp32 ('red', 'green', 'blue')",
            "(8, 8) squash",
            "none",
        ],
        "7. Let several models vote": ["green ('green', 'green') agreement 100%"],
    },
}


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "weights"
    write_weights(folder)
    return folder


@pytest.fixture
def environment(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables of the blocks' processes: `tl` on the path, and no network needed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "tl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.docs.quick_tl "$@"\n', encoding="utf-8")
    (folder / "tl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TL_WEIGHTS_DIR", str(request.getfixturevalue("weights")))
    return dict(os.environ)


def run_block(block: Block, script: Path | None, folder: Path, environment: dict[str, str]) -> str:
    """Run a block in `folder` and return its stdout. Fails the test with the block's output."""
    words = [sys.executable, "-W", "error", str(script)] if script else ["bash", "-euo", "pipefail", "-c", block.code]
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in block.code.splitlines() if line.startswith("$ ")]
        words[-1] = "\n".join(lines)
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    told = f"{block.place}: exit code {done.returncode}\n{block.code}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, told
    assert not (script and done.stderr), told
    return done.stdout


def check_printed(block: Block, stdout: str, expected: list[str]) -> None:
    at = 0
    for text in expected:
        found = stdout.find(text, at)
        assert found >= 0, f"{block.place}: {text!r} is not in {stdout[at:]!r}"
        at = found + len(text)


def page_parameters() -> list[object]:
    return [
        pytest.param(page, marks=pytest.mark.slow if page in SLOW else ())
        for page in find_pages()
        if any(block.runs for block in read_blocks(page))
    ]


@pytest.mark.parametrize("page", page_parameters())
def test_page__runs_from_top_to_bottom(page: str, tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "folder"
    scripts = write_scripts(page, folder)
    for block in read_blocks(page):
        if block.file:
            (folder / block.file).write_text(block.code, encoding="utf-8")
        elif block.runs:
            stdout = run_block(block, scripts.get(block.place), folder, environment)
            if block.language == "python":
                check_printed(block, stdout, PRINTED.get(page, {}).get(block.heading, []))


@pytest.mark.parametrize("page", find_pages())
def test_blocks__run_or_say_why_not(page: str) -> None:
    blocks = read_blocks(page)
    assert read_page(page).count("```") == 2 * len(blocks)  # none is overlooked
    silent = [b.place for b in blocks if not (b.runs or b.reason or b.file or b.language in SHOWN)]
    assert silent == [], f"neither run nor marked with a reason, as in <!-- not run: needs a GPU -->: {silent}"
    assert [b.place for b in blocks if b.reason and b.language in SHOWN] == []
    assert page in STAGES or not any(block.runs for block in blocks)


def test_printed__names_every_example() -> None:
    for page, expected in PRINTED.items():
        assert [block.heading for block in read_blocks(page) if block.language == "python"] == list(expected)


def test_python_blocks__are_typed(tmp_path: Path) -> None:
    scripts = [script for i, page in enumerate(STAGES) for script in _python_of(page, tmp_path / str(i))]
    words = [sys.executable, "-m", "mypy", "--strict", "--config-file", "pyproject.toml", "--scripts-are-modules"]
    checked = subprocess.run([*words, *map(str, scripts)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def _python_of(page: str, folder: Path) -> list[Path]:
    folder.mkdir()
    written = []
    for i, block in enumerate(b for b in read_blocks(page) if b.runs and b.language == "python"):
        written.append(folder / f"page_{folder.name}_{i}.py")
        written[-1].write_text(block.code, encoding="utf-8")
    return written


def test_parse_blocks__comments_and_headings() -> None:
    marked = "# A\n<!-- not run: no GPU -->\n```sh\ntl x\n```\n"
    text = f"{marked}## B\n```yaml\na: 1\n```\n<!-- file: s.yaml -->\n```yaml\nb: 2\n```\n"
    found = list(parse_blocks("p.md", text))
    assert [(b.heading, b.language, b.code, b.reason, b.file, b.line) for b in found] == [
        ("A", "sh", "tl x\n", "no GPU", "", 3),
        ("B", "yaml", "a: 1\n", "", "", 7),
        ("B", "yaml", "b: 2\n", "", "s.yaml", 11),
    ]
    assert not any(block.runs for block in found)
    assert set(RUN).isdisjoint(SHOWN)


def test_added_options__only_make_it_smaller(tmp_path: Path) -> None:
    assert added_options(["predict", "photos/", "--model", "m.onnx"]) == []
    assert added_options(["train", "--resume", "runs/a"]) == []
    (tmp_path / "wings.csv").write_text("path,x0,y0\na.png,1,2\n", encoding="utf-8")
    for options in (["photos/", "--method", "finetune"], ["photos/", "--head", "mlp"], [str(tmp_path / "wings.csv")]):
        assert "--epochs" in added_options(["train", *options])
    for options in (["photos/"], ["photos/", "--quality", "fast"], ["photos/", "--method", "features"]):
        assert "--epochs" not in added_options(["train", *options])


def test_cli_page__is_up_to_date() -> None:
    words = [sys.executable, ROOT / "docs/make_cli.py", "--check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_readme__leads_with_two_commands() -> None:
    first = read_blocks("README.md")[0]
    assert [line.split("#")[0].strip() for line in first.code.splitlines()] == ["make demo", "make test"]


@pytest.mark.parametrize("page", find_pages())
def test_commands__have_the_options_they_are_given(page: str) -> None:
    """Also of commands within a sentence."""
    sections = re.split(r"^## `tl (\w+)`$", read_page("docs/reference/cli.md"), flags=re.MULTILINE)
    options = {
        name: set(re.findall(r"--[a-z][a-z-]+", "\n".join(re.findall(r"^\* `(.+?)`", text, re.MULTILINE))))
        for name, text in zip(sections[1::2], sections[2::2], strict=True)
    }
    text = read_page(page)
    inline = [" ".join(code.split()) for code in re.findall(r"(?<!`)`(tl [^`]+)`(?!`)", text)]
    lines = [line for block in read_blocks(page) for line in block.code.splitlines() if block.language in RUN]
    commands = [f"tl {part}" for line in lines for part in re.split(r"(?:^|[\s|(;&])tl ", line.split(" #")[0])[1:]]
    unknown = []
    for line in [*inline, *commands]:
        name = line.split()[1]
        if name.startswith(("-", "[")) or name.isupper():
            continue
        given = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.split(r"\s[|;&]", line)[0]))
        unknown += [f"{line}: {word}" for word in ({name} - options.keys()) or (given - options.get(name, set()))]
    assert unknown == []


LINKING = ["CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md", "docs/reference/cli.md", *find_pages()]


def anchors_of(path: Path) -> set[str]:
    """Anchors of a page's headings, by the rule that code hosts and the site share for plain headings."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING)
def test_links__lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", read_page(page), flags=re.DOTALL)
    broken = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if "://" in target:
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors_of(path)):
            broken.append(f"{target}#{anchor}")
    assert broken == []


def test_pages_named_in_the_code__exist() -> None:
    """Messages, comments and docstrings name pages by their path."""
    sources = [path for folder in ("tl", "tests", "benchmarks", "recipes") for path in (ROOT / folder).rglob("*")]
    texts = [path.read_text(encoding="utf-8") for path in sources if path.suffix in (".py", ".sh", ".yaml", ".md")]
    named = {name for text in texts for name in re.findall(r"\bdocs/[\w/-]+\.md\b", text)}
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_model_file_page__describes_every_field() -> None:
    from tl.runtime.imaging.preprocessing import Preprocessing
    from tl.runtime.model_file.contract import Contract

    page = read_page("docs/reference/model-file.md")
    fields = [field.name for kind in (Contract, Preprocessing) for field in dataclasses.fields(kind)]
    assert [name for name in fields if f"`{name}`" not in page] == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs mkdocs: pip install 'tl-toolkit[docs]'")
def test_site__builds_strictly_and_needs_no_network(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(find_pages())
    loading = r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*>"""
    assert [hit for page in pages for hit in re.findall(loading, page.read_text(encoding="utf-8"))] == []
