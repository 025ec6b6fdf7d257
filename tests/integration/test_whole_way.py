"""End to end, as a user types it: train three ways, export, predict with an ensemble, evaluate."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.digits import write_digits
from tl.cli import main

COMMON = "--backbone smallcnn --image-size 16 --augment none --batch-size 32 --threads 1"


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def tl(folder: Path, line: str) -> Done:
    """Run a command line in this process, which has already loaded torch."""
    out, err = io.StringIO(), io.StringIO()
    argv = patch.object(sys, "argv", line.split())
    with chdir(folder), argv, redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main()
    return Done(int(stop.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, a pretrained run, and three model files a.onnx, b.onnx, c.onnx."""
    folder = tmp_path_factory.mktemp("lab")
    write_digits(folder)
    lines = [
        f"tl train digits-0-4 --method scratch --epochs 3 {COMMON} --out runs/pre",
        f"tl train digits-5-9 --method scratch --epochs 12 --lr 0.005 {COMMON} --out runs/a",
        f"tl train digits-5-9 --method features --weights runs/pre {COMMON} --out runs/b",
        f"tl train digits-5-9 --method finetune --weights runs/pre --head mlp --lr 0.05 {COMMON} --out runs/c",
        *(f"tl export runs/{name} -o {name}.onnx" for name in "abc"),
    ]
    for line in lines:
        done = tl(folder, line)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    (folder / "images").symlink_to(folder / "digits-5-9" / "test")
    return folder


def test_predict__ensemble_line_as_written(lab: Path) -> None:
    words = ["predict", "images/", "--ensemble", "a.onnx", "b.onnx", "c.onnx"]
    command = [sys.executable, "-m", "tl", *words]
    done = subprocess.run(command, cwd=lab, capture_output=True, text=True, check=False)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.returncode == 0
    assert len(rows) == 706  # scikit-learn's digits 5-9 minus 38 per class
    assert {"agreement", "entropy", "vote:a", "vote:b", "vote:c"} <= rows[0].keys()
    assert sum(Path(row["path"]).parent.name == row["label"] for row in rows) > 0.5 * len(rows)  # chance: one fifth


def test_evaluate__members_and_votes_agree_with_predict(lab: Path) -> None:
    table = json.loads(tl(lab, "tl evaluate digits-5-9 --ensemble a.onnx b.onnx c.onnx --json").stdout)
    rows = list(csv.DictReader(io.StringIO(tl(lab, "tl predict images/ --ensemble a.onnx b.onnx c.onnx").stdout)))
    right = sum(Path(row["path"]).parent.name == row["label"] for row in rows)
    soft = next(row for row in table["rows"] if row["voting"] == "soft")
    assert table["split"] == "test"
    assert soft["top1_accuracy"] == pytest.approx(right / len(rows), abs=1e-12)  # the same count, divided
    assert [row["model"] for row in table["rows"]] == ["a", "b", "c", *["ensemble"] * 3, "oracle"]


def test_train__repeats_from_its_config(lab: Path) -> None:
    done = tl(lab, "tl train --config runs/b/config.yaml --out runs/again")
    assert done.returncode == 0, done.stderr
    files = [(lab / "runs" / name / "predictions_val.csv").read_bytes() for name in ("b", "again")]
    assert files[0] == files[1]


def test_evaluate__reads_a_runs_own_manifest(lab: Path) -> None:
    done = tl(lab, "tl evaluate runs/c/manifest.csv --split val --model c.onnx --json")
    (row,) = json.loads(done.stdout)["rows"]
    metrics = json.loads((lab / "runs/c/metrics.json").read_text(encoding="utf-8"))["val"]
    assert row["n"] == metrics["n"] == 150
    assert row["top1_accuracy"] == metrics["top1_accuracy"]  # the deployed model is the validated one


def test_verify_and_inspect__work_on_exports(lab: Path) -> None:
    assert tl(lab, "tl verify c.onnx --device cpu").returncode == 0
    assert "smallcnn, finetune, weights run pre" in tl(lab, "tl inspect c.onnx").stdout


@pytest.mark.slow
def test_oldest_runtime__runs_an_export(lab: Path) -> None:
    python = os.environ.get("TL_OLDEST_PYTHON")
    if python is None or not Path(python).exists():
        pytest.skip("needs a venv with the oldest supported versions: make test sets TL_OLDEST_PYTHON")
    code = (
        "import onnxruntime, tl.runtime\n"
        "assert onnxruntime.__version__.startswith('1.18.'), onnxruntime.__version__\n"
        "print(tl.runtime.run_selftest('c.onnx', device='cpu').max_abs_diff)"
    )
    absolute = Path(python).absolute()  # not resolved: the python of a venv is a symlink
    done = subprocess.run([absolute, "-c", code], cwd=lab, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-4  # the tolerance of the export
