"""Write a folder for any web server: a page that runs a model file in the browser, by onnxruntime-web.

The page shares its files with that of `tl serve` (`pages/predict/`); `browser/` has what runs the model.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib.resources import files
from pathlib import Path, PurePath

from tl import __version__
from tl.errors import ConfigError, ModelFileError
from tl.pages import BASE
from tl.runtime.model_file.contract import Contract
from tl.runtime.output.files import output_errors
from tl.runtime.session import Session

# The version that tests run. Later ones have the same interface as far as can be known.
ORT_WEB_VERSION = "1.30.0"
ORT_WEB_INSTALL = f"npm install onnxruntime-web@{ORT_WEB_VERSION}"
# Its interface, and the WebAssembly of its CPU provider with the code that loads it.
_ORT_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_DIST = PurePath("node_modules", "onnxruntime-web", "dist")
_SETTINGS, _ORT_FOLDER = "settings.json", "ort"
# Files that only the page of `tl serve` needs; `browser/` has another app.js.
_SERVER_ONLY = ("app.js", "server.js")


def write_web_folder(model: Path, folder: Path, ort_web: Path | None, *, overwrite: bool = False) -> Path:
    """Write the page, the model and onnxruntime-web to `folder`; returns the path of its index.html.

    `ort_web`: folder of npm that contains onnxruntime-web: its `dist`, the package, or the folder above node_modules;
    None for the current folder. `overwrite`: replace a folder that an earlier call wrote. Raises `ModelFileError` for a
    model that browsers cannot run, `ConfigError` if onnxruntime-web is missing or the folder exists, `OutputError`.
    """
    contract = Session(model, device="cpu").contract
    if contract is None:
        raise ModelFileError(f"{model}: contains no contract")
    if reason := why_not(contract):
        raise ModelFileError(f"{model}: {reason}: predict its images with tl predict")
    libraries = find_ort_web(ort_web)
    check_web_folder(folder, overwrite=overwrite)
    with output_errors(folder):
        (folder / _ORT_FOLDER).mkdir(parents=True, exist_ok=True)
        page, browser = (files("tl.serving") / name for name in ("pages/predict", "browser"))
        shared = [item for item in page.iterdir() if item.name not in _SERVER_ONLY]
        for item in (*BASE.iterdir(), *shared, *browser.iterdir()):
            (folder / item.name).write_bytes(item.read_bytes())
        for path in libraries:
            # Not every web server knows that .mjs is JavaScript, without which browsers do not run it.
            name = path.name.replace(".mjs", ".js")
            shutil.copyfile(path, folder / _ORT_FOLDER / name)
        shutil.copyfile(model, folder / model.name)
        settings = {"model": model.name, "tl_version": __version__}
        # Written last: a folder without it is not complete.
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return folder / "index.html"


def why_not(contract: Contract) -> str | None:
    """Return why the page in the browser cannot run a model, None if it can."""
    if contract.boxes is not None or (contract.landmarks is not None and contract.landmarks.region != "whole"):
        return "the model uses a box in each image, which the page does not have"
    if contract.preprocessing.chooses:
        return "the model uses channels or planes of stacks, which browsers do not decode"
    return None


def find_ort_web(given: Path | None) -> list[Path]:
    """Return the files of onnxruntime-web. Raises `ConfigError` with the command that installs it."""
    start = Path() if given is None else given
    places = [start, start / "dist", start / "onnxruntime-web" / "dist", start / _DIST]
    for place in places:
        found = [place / name for name in _ORT_FILES]
        if all(path.is_file() for path in found):
            return found
    where = "this folder" if given is None else os.fspath(given)
    raise ConfigError(
        f"{where}: onnxruntime-web was not found, looked for {_DIST / _ORT_FILES[0]}: "
        f"run '{ORT_WEB_INSTALL}' and name the folder in which it was run",
        options=["ort_web=FOLDER"],
    )


def check_web_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Raise `ConfigError` unless a folder is new or empty, or, with `overwrite`, was written by `write_web_folder`."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / _SETTINGS).is_file():
        raise ConfigError(f"{folder}: expected a new or empty folder, and its files are not those of such a page")
    if not overwrite:
        raise ConfigError(f"{folder}: already exists", options=["overwrite"])
