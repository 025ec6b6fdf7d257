from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup, TyperOption

from tests.commands.conftest import RunTl
from tests.trainer.make import read_rows
from tl import __version__
from tl.cli import app
from tl.commands.console import packages_of
from tl.errors import MissingExtraError
from tl.trainer.run_folder.run import Run

GROUP = typer.main.get_command(app)
assert isinstance(GROUP, TyperGroup)
COMMANDS = GROUP.commands


def test_help__lists_every_command(run_tl: RunTl) -> None:
    text = run_tl("--help").out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help__begins_with_a_sentence_and_two_or_three_examples(run_tl: RunTl, name: str) -> None:
    done = run_tl(name, "--help")
    assert done.code == 0
    assert f"tl {name}" in done.out.split("Examples:")[1]
    _, heading, *examples = (COMMANDS[name].help or "").split("\n\n")
    assert heading.startswith("Examples:")
    listed = [heading, *examples]
    assert sum(f"- `tl {name}" in text for text in listed) in (2, 3)


@pytest.mark.parametrize("name", COMMANDS)
def test_help__shows_at_most_ten_options_before_the_panels(name: str) -> None:
    options = [p for p in COMMANDS[name].params if isinstance(p, TyperOption) and p.name not in ("help", "as_json")]
    assert len([option.name for option in options if option.rich_help_panel is None]) <= 10


def test_version(run_tl: RunTl) -> None:
    assert run_tl("--version").out.strip() == __version__


def printed_by(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.alone
def test_help__is_quick_and_loads_nothing_heavy() -> None:
    code = "import sys, time; sys.argv = ['tl', '-h']\nfrom tl.cli import main\n"
    code += "try: main()\nfinally: print([*sys.modules], time.process_time(), sep='\\n')"
    bare = "import time, numpy, PIL.Image, rich.console, typer\nprint(time.process_time())"
    seconds, least = [], []
    for _ in range(3):  # CPU time, best of three, so that a busy machine does not fail the test
        *_, modules, used = printed_by(code).splitlines()
        seconds.append(float(used))
        least.append(float(printed_by(bare)))
    assert not [name for name in ("torch", "onnxruntime", "albumentations", "sklearn") if f"'{name}'" in modules]
    # Relative to the libraries that it needs: how many seconds an import takes depends on the CPU.
    assert min(seconds) / min(least) < 8, (seconds, least)  # about 3.5


@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_main__threads_that_wait_spin_briefly(own: dict[str, str], expected: str) -> None:
    code = "import os, sys; sys.argv = ['tl', '--version']\nfrom tl.cli import main\n"
    code += "try: main()\nfinally: print(os.environ.get('GOMP_SPINCOUNT'))"
    bare = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=bare | own, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == expected


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
        (["--augment", "flop"], ["is not a preset", "(nearest: 'flip')"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--weights", "gone.pth"], ["weights 'gone.pth': no such file"]),
        (["--lr", "fast"], ["lr: ", "found 'fast'"]),
        (["--head", "svm"], ["head svm requires method features"]),
        (["--batch-size", "99"], ["batch_size 99 is larger than the 3 training images", "hint: --batch-size 3"]),
        (["--per-class", "9"], ["per_class 9: too few training images: class 'blue' has 1"]),
    ],
)
def test_train__faults_name_the_cure(run_tl: RunTl, photos: Path, words: list[str], messages: list[str]) -> None:
    done = run_tl("train", photos, "--backbone", "smallcnn", "--method", "scratch", *words)
    assert done.code == 1
    assert all(message in done.err for message in messages)
    assert done.err.startswith("tl: ")
    assert len(done.err.splitlines()) == 1 + ("hint: " in done.err)


SMALL = ("--backbone", "smallcnn", "--image-size", 16, "--device", "cpu", "--threads", 1)
QUICK = (*SMALL, "--epochs", 1, "--augment", "none")


def test_train__lr_auto_as_a_flag(run_tl: RunTl, photos: Path, tmp_path: Path) -> None:
    done = run_tl("train", photos, "--method", "scratch", "--lr", "auto", *QUICK, "--out", tmp_path / "r", "--json")
    assert done.code == 0, done.err
    lr = Run(tmp_path / "r").load_config().lr
    assert f"lr auto: {lr:.2g} (lr_finder.csv)" in done.err
    lowest = min(read_rows(tmp_path / "r" / "lr_finder.csv"), key=lambda row: float(row["smoothed_loss"]))
    assert lr == pytest.approx(float(lowest["lr"]) / 10, rel=0.05)  # two digits
    assert json.loads(done.out)["best_epoch"] == 1


def test_train__c_values_one_after_each_flag(run_tl: RunTl, photos: Path, trunk_weights: Path, tmp_path: Path) -> None:
    words = ("--method", "features", "--weights", trunk_weights, "--c-values", 2, "--c-values", 0.5)
    done = run_tl("train", photos, *words, *SMALL, "--out", tmp_path / "r", "--json")
    assert done.code == 0, done.err
    assert [row["c"] for row in read_rows(tmp_path / "r" / "c_search.csv")] == ["0.5", "2"]
    answer = json.loads(done.out)
    assert answer["best_epoch"] is None
    assert answer["val"]["n"] == 6  # out of fold: all images


def test_train__head_sizes_one_after_each_flag(run_tl: RunTl, photos: Path, tmp_path: Path) -> None:
    words = ("--method", "scratch", "--head", "mlp", "--head-sizes", 8, "--head-sizes", 4)
    done = run_tl("train", photos, *words, *QUICK, "--out", tmp_path / "r")
    assert done.code == 0, done.err
    assert Run(tmp_path / "r").load_config().head_sizes == (8, 4)


BY_HAND = ("--epochs", 2, "--lr", 0.002, "--optimizer", "sgd")
SGD, LBFGS, ADAMW = ("sgd", 2, 0.002), ("lbfgs", None, None), ("adamw", 40, 0.003)
SVM_C, LINEAR_C = (0.0001, 0.001, 0.01), (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)


@pytest.mark.parametrize(
    ("first", "change", "trained", "head_sizes", "c_values"),
    [
        # Step options set by the user are kept if the other head is also trained by steps.
        (("--head", "conv", *BY_HAND), ("--head", "mlp"), SGD, (512, 256), ()),
        (("--head", "mlp", "--head-sizes", 4, *BY_HAND), ("--head", "mlp"), SGD, (4,), ()),
        (("--head", "mlp", *BY_HAND), ("--head", "linear"), SGD, (), LINEAR_C),
        (("--head", "mlp", *BY_HAND), ("--optimizer", "adamw"), ("adamw", 2, 0.003), (512, 256), ()),
        (("--head", "mlp"), ("--method", "scratch", "--epochs", 1), ("adamw", 1, 0.001), (512, 256), ()),
        # A solver has no steps, so step options are dropped.
        (("--head", "mlp", *BY_HAND), ("--head", "svm"), LBFGS, (), SVM_C),
        (("--head", "svm"), ("--head", "mlp"), ADAMW, (512, 256), ()),
        (("--head", "linear"), ("--head", "conv"), ADAMW, (32, 1024), ()),
        (("--head", "svm"), ("--head", "linear"), LBFGS, (), LINEAR_C),
        (("--head", "svm", "--c-values", 5), ("--seed", 3), LBFGS, (), (5.0,)),
        (("--head", "linear"), ("--lr", 0.002, "--epochs", 2), ("adamw", 2, 0.002), (), LINEAR_C),
    ],
)
def test_train__derived_defaults_follow_a_changed_option(
    run_tl: RunTl,
    photos: Path,
    trunk_weights: Path,
    tmp_path: Path,
    first: tuple[object, ...],
    change: tuple[object, ...],
    trained: tuple[object, ...],
    head_sizes: tuple[int, ...],
    c_values: tuple[float, ...],
) -> None:
    base = ("--method", "features", "--weights", trunk_weights, *SMALL, "--no-audit")
    done = run_tl("train", photos, *base, *first, "--out", tmp_path / "a")
    assert done.code == 0, done.err
    done = run_tl("train", "--config", tmp_path / "a" / "config.yaml", *change, "--out", tmp_path / "b")
    assert done.code == 0, done.err
    kept = Run(tmp_path / "b").load_config()
    assert (kept.optimizer, kept.epochs, kept.lr) == trained
    assert (kept.head_sizes, kept.c_values) == (head_sizes, c_values)
    assert kept.drop_epochs == (None if kept.epochs is None else max(1, kept.epochs // 3))


def test_train__config_file_with_misspelt_key(run_tl: RunTl, photos: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"data: {photos}\nepohcs: 3\nbatch_size: many\n", encoding="utf-8")
    done = run_tl("train", "--config", config)
    assert done.code == 1
    assert "unknown option 'epohcs' (nearest: 'epochs')" in done.err
    assert "batch_size: " in done.err


def test_export__needs_a_run_or_a_name(run_tl: RunTl, tmp_path: Path) -> None:
    assert "give either a run folder or --pretrained" in run_tl("export").err
    assert "requires --images DIR" in run_tl("export", "--pretrained", "mobilenet_v2").err
    assert "no config.yaml" in run_tl("export", tmp_path, "-o", tmp_path / "m.onnx").err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_main__a_full_disk_behind_stdout() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tl", "doctor", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("tl: a file cannot be written (No space left on device): free space")


def test_packages_of__says_what_to_install() -> None:
    said = r"no_such_package is missing\): pip install 'tl-toolkit\[train\]'"
    with pytest.raises(MissingExtraError, match=said), packages_of("train"):
        import no_such_package  # noqa: F401
