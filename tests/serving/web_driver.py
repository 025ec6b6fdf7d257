"""Run JavaScript of the pages: in Node, and in headless Chromium with packages from npm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tl.pages import BASE
from tl.serving.web_folder import ORT_WEB_VERSION

ROOT = Path(__file__).resolve().parents[2]
SERVING = ROOT / "tl" / "serving"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE, NPM = shutil.which("node"), shutil.which("npm")
PACKAGES = (f"onnxruntime-web@{ORT_WEB_VERSION}", "playwright-core@1.65.1", "axe-core@4.14.1")

needs_node = pytest.mark.skipif(NODE is None, reason="needs node")


def run_node(code: str, data: Any, tmp_path: Path) -> Any:
    """Call the function `run` that `code` defines, with `data`. Its imports name pages as "@/", such as "@/predict/".

    Each page's folder contains what all pages share, as the server shows it.
    """
    folder = tmp_path / "modules"
    if not folder.exists():  # with a package.json that tells Node that these files are modules
        for source in (SERVING / "browser", *(SERVING / "pages").iterdir()):
            shutil.copytree(source, folder / source.name)
            shutil.copytree(BASE, folder / source.name, dirs_exist_ok=True)
        (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
    called = 'console.log(JSON.stringify(await run(JSON.parse(readFileSync("data.json", "utf8")))));'
    body = code.replace('"@/', '"./')
    (folder / "run.js").write_text(f'import {{ readFileSync }} from "node:fs";\n{body}\n{called}\n', encoding="utf-8")
    done = subprocess.run([str(NODE), "run.js"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def install_npm(base: Path) -> Path:
    """Install the packages of the tests, once for all that share `base`; skips if that is not possible here."""
    if NODE is None or NPM is None or CHROMIUM is None:
        pytest.skip("needs node, npm and chromium")
    folder = base / "npm-packages"
    if (folder / "installed").exists():
        return folder
    folder.mkdir(exist_ok=True)
    command = [NPM, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder), *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install {', '.join(PACKAGES)}: {done.stderr.strip()[-200:]}")
    (folder / "installed").touch()
    return folder


@dataclass(frozen=True)
class Driven:
    """What happened: the output of each step, those of steps with a name, addresses requested, errors of the page."""

    outputs: list[Any]
    named: dict[str, Any]
    requests: list[str]
    errors: list[str]


def drive(
    npm: Path, url: str, steps: Sequence[dict[str, Any]], tmp_path: Path, *, script: str = "drive.mjs", **job: Any
) -> Driven:
    """Open a page and do the steps of drive.mjs, or of another script beside it.

    With `TL_TEST_LAG_MS=400`, drive_images.mjs delays requests and answers at random by up to so many milliseconds
    each: steps that do not wait for what they need then fail more often.
    """
    lag = int(os.environ.get("TL_TEST_LAG_MS", "0"))
    told = {"npm": str(npm), "chromium": CHROMIUM, "url": url, "steps": steps, "lag": lag, **job}
    (tmp_path / "job.json").write_text(json.dumps(told), encoding="utf-8")
    done = subprocess.run(
        [str(NODE), str(Path(__file__).with_name(script)), str(tmp_path / "job.json")],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    happened = json.loads(done.stdout)
    named = {step["as"]: output for step, output in zip(steps, happened["outputs"], strict=False) if "as" in step}
    return Driven(**happened, named=named)
