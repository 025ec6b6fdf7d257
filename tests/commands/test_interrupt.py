"""Ctrl-C and SIGTERM end every command with one line."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl
from tests.runtime.model_file.test_selftest import endless
from tl.commands import bench, compare, convert, doctor, export, merge, probe, verify
from tl.runtime.output.claim import Claim


@pytest.mark.parametrize("module", [bench, compare, convert, doctor, export, merge, probe, verify])
def test_command__interrupted_says_so_in_one_line(module: object) -> None:
    # A child, because the line that is tested is the entry point's; the interruption comes where imports would be.
    name = module.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    words = {"convert": ["a.csv", "b.csv"], "merge": ["a", "b"], "bench": ["a"], "verify": ["a"], "compare": ["a", "b"]}
    code = f"""
import sys
class Interrupts:
    def find_spec(self, name, *rest):
        if name.startswith(("tl.runtime.", "tl.evaluation.", "tl.studies.", "tl.exporter.", "tl.trainer.", "tl.data.")):
            raise KeyboardInterrupt
import tl.cli
for name in [name for name in sys.modules if name.startswith("tl.runtime.")]:
    del sys.modules[name]
sys.meta_path.insert(0, Interrupts())
sys.argv = ["tl", "{name}", *{words.get(name, ["a"] if name != "doctor" else [])!r}]
from tl.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert done.stderr == "tl: interrupted; every file written so far is complete: run the same command again\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_predict__interrupted_keeps_rows(
    run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    names = sorted(map(str, photos.rglob("*.png")))
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names) * 3000)
    out = tmp_path / "out.csv"
    words = ["predict", "--files-from", tmp_path / "list.txt", "--model", color_model, "-o", out, "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tl", *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has SIGINT ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (Claim(out).ledger.exists() and Claim(out).ledger.stat().st_size > 1000):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate()
    assert process.returncode == 130, error
    (line,) = [line for line in error.splitlines() if "interrupted" in line]
    assert line.endswith("add --resume to continue")
    assert "Traceback" not in error
    assert not out.exists()


def test_predict__interrupted_in_an_endless_model(photos: Path, tmp_path: Path) -> None:
    words = ["predict", photos, "--model", endless(tmp_path / "m.onnx"), "--device", "cpu", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tl", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("path,label")
    time.sleep(0.5)  # the first image is in the loop
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "interrupted after 0 of 6 images" in error
    assert "Traceback" not in error


def test_main__interrupted_while_packages_are_imported() -> None:
    code = """
import sys
class Interrupts:
    def find_spec(self, name, *rest):
        if name == "tl.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
from tl.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "tl: interrupted before it began\n")
