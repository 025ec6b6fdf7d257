from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl
from tl import __version__

COMMANDS = ("train", "export", "predict", "evaluate", "inspect", "verify", "doctor", "demo")


def test_help__lists_every_command(run_tl: RunTl) -> None:
    text = run_tl("--help").out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help__has_an_example(run_tl: RunTl, name: str) -> None:
    done = run_tl(name, "--help")
    assert done.code == 0
    assert f"tl {name}" in done.out.split("Examples:")[1]


def test_version(run_tl: RunTl) -> None:
    assert run_tl("--version").out.strip() == __version__


def test_help__is_quick_and_loads_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['tl', '-h']\nfrom tl.cli import main\ntry: main()\nfinally: print([*sys.modules])"
    seconds = []
    for _ in range(3):  # the best of three: a busy machine must not fail it
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
    modules = done.stdout.splitlines()[-1]
    assert not [name for name in ("torch", "onnxruntime", "albumentations", "sklearn") if f"'{name}'" in modules]
    assert min(seconds) < 0.5


def test_unknown_option__exit_2(run_tl: RunTl) -> None:
    assert run_tl("predict", "x", "--modle", "a.onnx").code == 2


def test_doctor__json(run_tl: RunTl) -> None:
    done = run_tl("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.out)}
    assert findings["session cpu"]["ok"] is True
    assert findings["training"]["detail"].startswith("torch ")
    assert done.code == (1 if any(f["ok"] is False for f in findings.values()) else 0)


def test_train__nothing_given(run_tl: RunTl) -> None:
    done = run_tl("train")
    assert done.code == 1
    assert "nothing to train on" in done.err


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["--epochs", "0", "--lr", "nan"], ["epochs must be at least 1", "lr must be a positive finite number"]),
        (["--backbone", "resnet81"], ["unknown backbone 'resnet81' (nearest: 'resnet"]),
        (["--augment", "flop"], ["neither a preset", "(nearest: 'flip')"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--weights", "gone.pth"], ["weights 'gone.pth': no such file"]),
    ],
)
def test_train__faults_name_the_cure(run_tl: RunTl, photos: Path, words: list[str], messages: list[str]) -> None:
    done = run_tl("train", photos, "--backbone", "smallcnn", "--method", "scratch", *words)
    assert done.code == 1
    assert all(message in done.err for message in messages)


def test_train__config_file_with_misspelt_key(run_tl: RunTl, photos: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"data: {photos}\nepohcs: 3\nbatch_size: many\n", encoding="utf-8")
    done = run_tl("train", "--config", config)
    assert done.code == 1
    assert "unknown option 'epohcs' (nearest: 'epochs')" in done.err
    assert "batch_size: " in done.err


def test_export__needs_a_run_or_a_name(run_tl: RunTl, tmp_path: Path) -> None:
    assert "give either a run folder or --pretrained" in run_tl("export").err
    assert "needs --images" in run_tl("export", "--pretrained", "mobilenet_v2").err
    assert "no config.yaml" in run_tl("export", tmp_path, "-o", tmp_path / "m.onnx").err
