"""Architecture rules: one import direction, small units, a docstring in every file."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "tl").rglob("*.py"))
LAYERS = {
    **{"errors": 0, "progress": 0, "text": 0, "pages": 0, "runtime": 1, "data": 2, "evaluation": 3},
    **{"trainer": 4, "exporter": 5, "studies": 6, "annotation": 7, "serving": 8, "commands": 9, "cli": 10},
}
RUNTIME_FREE_OF = {"torch", "torchvision", "albumentations", "onnx", "sklearn", "typer", "pydantic"}
TORCH_FREE = ("runtime", "data", "evaluation")
MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 400


def layer(path: Path) -> int | None:
    parts = path.relative_to(ROOT / "tl").with_suffix("").parts
    return LAYERS.get(parts[0])


def imported_modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file__keeps_the_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    own, room = layer(path), path.relative_to(ROOT / "tl").parts[0]
    for module in imported_modules(tree):
        top, *rest = module.split(".")
        if top == "tl" and rest and own is not None:
            assert LAYERS[rest[0]] <= own, f"imports upward: {module}"
        assert not (own == LAYERS["runtime"] and top in RUNTIME_FREE_OF), f"the runtime imports {module}"
        assert not (room in TORCH_FREE and top.startswith("torch")), f"{room} imports {module}"
    assert ast.get_docstring(tree), "has no docstring"
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION_LINES, f"{node.name} is too long"


# What speaks of flags below the commands: the help text of the flags themselves.
SPEAKS_OF_FLAGS = "tl/trainer/config.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_messages__name_no_flag_below_the_commands(path: Path) -> None:
    if layer(path) in (LAYERS["commands"], None) or str(path.relative_to(ROOT)) in ("tl/cli.py", SPEAKS_OF_FLAGS):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    bare = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]  # docstrings
    flags = [node.value for node in texts if node not in bare and re.search(r"(^|[\s'\"(])--[a-z]", str(node.value))]
    assert [text for text in flags if "pip install" not in text and "var(--" not in text and text != "--no-"] == []


def test_imports__have_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = {
            module for module in imported_modules(ast.parse(path.read_text(encoding="utf-8"))) if module != name
        }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        if name in graph and name not in done:
            for module in graph[name]:
                visit(module, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_errors__each_class_is_raised_and_drawn() -> None:
    errors = ast.parse((ROOT / "tl/errors.py").read_text(encoding="utf-8"))
    names = [node.name for node in errors.body if isinstance(node, ast.ClassDef) and node.name != "TlError"]
    drawn = re.findall(r"[├└]── (\w+)", ast.get_docstring(errors) or "")
    source = "".join(path.read_text(encoding="utf-8") for path in FILES)
    assert sorted(names) == sorted(drawn)
    assert [name for name in names if f"raise {name}(" not in source] == []


def test_tracked_files__name_no_machine_and_are_small() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    private = re.compile(rb"/(?:work|root|home|Users)/\w")
    assert [path for path in paths if path.stat().st_size > 1_000_000] == []
    assert [path for path in paths if path != Path(__file__) and private.search(path.read_bytes())] == []
