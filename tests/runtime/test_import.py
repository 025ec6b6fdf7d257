"""Importing `tl.runtime` must not affect the host program, other than defining names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tl.runtime

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "torchvision",
    "typer",
    "pydantic",
    "albumentations",
    "onnx",
    "sklearn",
    "cv2",
    "scipy",
    "yaml",
    "tifffile",
    "pi_heif",
)
NEEDED = "import numpy, onnxruntime, orjson, PIL.Image, simplejpeg\n"
ALL_MODULES = """
import importlib, pkgutil, tl.runtime
for module in pkgutil.iter_modules(tl.runtime.__path__, "tl.runtime."):
    importlib.import_module(module.name)
"""

# Host state that a library must not change.
STATE = """
import json, locale, logging, os, random, signal, sys, threading, warnings
import numpy, PIL.Image, PIL.ImageFile
tasks = "/proc/self/task"  # also threads that Python does not know
def state():
    return {
        "environment": dict(os.environ),
        "handlers": [repr(handler) for handler in logging.root.handlers],
        "level": [logging.root.level, logging.root.manager.disable],
        "filters": repr(warnings.filters),
        "showwarning": repr(warnings.showwarning),
        "threads": [threading.active_count(), len(os.listdir(tasks)) if os.path.exists(tasks) else 0],
        "pillow": [PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES],
        "numpy": [numpy.geterr(), repr(numpy.get_printoptions())],
        "random": hash(random.getstate()),
        "signals": [repr(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
        "hooks": [repr(sys.excepthook), repr(threading.excepthook)],
        "path": sys.path,
        "folder": os.getcwd(),
        "locale": locale.setlocale(locale.LC_ALL),
    }
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV_", "PYTEST_"))}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran


def loaded_by(code: str) -> set[str]:
    ran = run_python(f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))")
    return {name.split(".")[0] for name in json.loads(ran.stdout)}


@pytest.mark.parametrize("code", ["import tl.runtime", ALL_MODULES], ids=["package", "every module"])
def test_import__loads_nothing_heavy(code: str) -> None:
    loaded = loaded_by(code)
    assert {"tl", "numpy", "PIL", "simplejpeg"} <= loaded
    assert loaded.isdisjoint(HEAVY)


def test_import__loads_no_training_code() -> None:
    ran = run_python(f"{ALL_MODULES}\nimport sys, json; print(json.dumps([m for m in sys.modules if m[:3] == 'tl.']))")
    parts = {name.split(".")[1] for name in json.loads(ran.stdout)}
    assert parts == {"errors", "runtime"}


def test_import__errors_alone_loads_nothing() -> None:
    assert loaded_by("import tl.errors").isdisjoint({"numpy", "orjson", "PIL", "onnxruntime", "simplejpeg", *HEAVY})


def test_import__prints_nothing() -> None:
    ran = run_python(ALL_MODULES)
    assert (ran.stdout, ran.stderr) == ("", "")


def test_import__warns_of_nothing() -> None:
    ran = run_python(f"{NEEDED}import warnings; warnings.simplefilter('error')\n{ALL_MODULES}")
    assert ran.stderr == ""


def test_import__leaves_the_host_as_it_was() -> None:
    # Side effects of importing numpy, Pillow and onnxruntime are excluded, so these are imported first.
    code = f"{NEEDED}{STATE}before = state()\n{ALL_MODULES}\nprint(json.dumps([before, state()]))"
    before, after = json.loads(run_python(code).stdout)
    changed: dict[str, Any] = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    assert not changed


def test_import__uses_no_network() -> None:
    guard = """
import sys
def hook(event, arguments):
    if event.startswith(("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system")):
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(hook)
"""
    run_python(f"{NEEDED}{guard}{ALL_MODULES}")


@pytest.mark.alone
def test_import__is_quick() -> None:
    # Relative to what it needs: how many seconds an import takes depends on the CPU.
    code = f"import time\nbefore = time.process_time()\n{NEEDED}needed = time.process_time()\nimport tl.runtime\n"
    code += "print((time.process_time() - needed) / (needed - before))"
    ratios = [float(run_python(code).stdout) for _ in range(5)]
    assert sorted(ratios)[2] < 2.5, ratios  # about 0.8


def test_import__public_names_exist_and_are_documented() -> None:
    for name in tl.runtime.__all__:
        assert getattr(tl.runtime, name).__doc__
