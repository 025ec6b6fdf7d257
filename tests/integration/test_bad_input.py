"""Invalid input on the command line: exit code 1, one line with the location and the fix, and no files left behind."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import albumentations
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.trainer.make import make_class_folders, make_manifest, make_noise, make_png, train_here
from tl.cli import main
from tl.trainer.models.backbones import build_classifier, build_trunk
from tl.trainer.run_folder.run import Run

COMMON = "--method scratch --backbone smallcnn --image-size 32 --augment none --device cpu --threads 1 --epochs 1"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def tl(folder: Path, *words: object) -> Done:
    """Run `tl` in this process, which has already loaded torch."""
    out, err = io.StringIO(), io.StringIO()
    argv = patch.object(sys, "argv", ["tl", *map(str, words)])
    with chdir(folder), argv, redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main()
    return Done(int(stop.value.code or 0), out.getvalue(), err.getvalue())


def train(folder: Path, *words: object) -> Done:
    return tl(folder, "train", *words, *COMMON.split(), "--out", "run")


def assert_one_line(done: Done, *pieces: str) -> None:
    assert (done.code, done.out) == (1, "")
    line, *hint = done.err.splitlines()
    assert line.startswith("tl: ")
    assert [text[:8] for text in hint] in ([], ["hint: --"])
    for piece in pieces:
        assert piece in done.err


def assert_last_line(done: Done, *pieces: str) -> None:
    """Like `assert_one_line`, but allows lines about work done before the error was detected."""
    assert (done.code, done.out) == (1, "")
    lines = [line for line in done.err.splitlines() if not line.startswith("hint: ")]
    assert [line for line in lines if line.startswith("tl: ")] == lines[-1:]
    assert not any("Traceback" in line for line in lines)
    for piece in pieces:
        assert piece in lines[-1]


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A folder with `photos`: three classes of five images."""
    make_class_folders(tmp_path / "photos", 5)
    return tmp_path


# Images in each folder of `bad`, and the expected message.
FOLDERS: dict[str, tuple[dict[str, int], tuple[str, ...]]] = {
    "not there": ({}, ("bad: no such folder or CSV file",)),
    "empty": ({".": 0}, ("bad: contains no class folders", "expected one folder of images per class")),
    "images alone": ({".": 3}, ("bad: contains no class folders",)),
    "empty class": (
        {"blue": 3, "red": 0},
        ("bad/red: this class folder contains no images", "add images or remove it"),
    ),
    "one class": ({"red": 5}, ("has 1 class (red)", "at least two")),
    "one image a class": ({"red": 1, "blue": 1}, ("class 'blue' has only one image", "at least two")),
    "only in validation": (
        {"train/red": 2, "train/blue": 2, "val/red": 2, "val/bleu": 2},
        ("class 'bleu' of val/bleu/0.png (nearest: 'blue')", "2 known classes"),
    ),
    "empty validation": ({"train/red": 2, "train/blue": 2, "val": 0}, ("bad/val: ",)),
    "a class in two cases": (
        {"red": 3, "Red": 3, "blue": 3},
        ("'Red' and 'red' differ only in case", "use one spelling"),
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_train__faulty_folders(lab: Path, kind: str) -> None:
    counts, pieces = FOLDERS[kind]
    for name, count in counts.items():
        (lab / "bad" / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            make_png(lab / "bad" / name / f"{i}.png", make_noise(i))
    assert_one_line(train(lab, "bad"), *pieces)
    assert not (lab / "run").exists()


# Rows added to six valid ones, and the expected message.
MANIFESTS: dict[str, tuple[list[tuple[str, str]], tuple[str, ...]]] = {
    "twice": ([("photos/blue/0.png", "blue")], ("1 image appears in several rows, first photos/blue/0.png",)),
    "two labels": ([("photos/../photos/blue/0.png", "green")], ("several rows, first photos/blue/0.png",)),
    "capitals": (
        [("photos/blue/3.png", "Blue")],
        ("'blue' and 'Blue' differ only in case or spaces: use one spelling",),
    ),
    "spaces": ([("photos/blue/3.png", "blue ")], ("'blue' and 'blue ' differ only in case or spaces",)),
    # Visually identical words, which are not two forms of one name as those of macOS are: two letters or a ligature.
    "unicode": ([(f"photos/red/{i}.png", ("fish", "\ufb01sh")[i % 2]) for i in range(4)], ("use one spelling",)),
    "missing": (
        [("photos/blue/gone.png", "blue")],
        ("labels.csv: 1 of 7 images do not exist, first photos/blue/gone.png", "paths are relative to"),
    ),
    "no label": ([("photos/blue/3.png", "")], ("labels.csv row 8", "must not be empty")),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_train__faulty_manifest_rows(lab: Path, kind: str) -> None:
    rows, pieces = MANIFESTS[kind]
    plain = [(f"photos/{label}/{i}.png", label) for label in ("blue", "green") for i in range(3)]
    make_manifest(lab / "labels.csv", [*plain, *rows])
    (lab / "photos" / "blue" / "gone.png").unlink(missing_ok=True)
    assert_one_line(train(lab, "labels.csv"), "labels.csv", *pieces)
    assert not (lab / "run").exists()


@pytest.mark.parametrize(
    ("content", "piece"),
    [
        (b"path,kind\na.png,red\n", "has no column label (found: path, kind)"),
        (b"path,label\n", "contains a header but no rows"),
        (b"", "has no column path and label"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "labels.csv: "),
    ],
)
def test_train__no_manifest(lab: Path, content: bytes, piece: str) -> None:
    (lab / "labels.csv").write_bytes(content)
    assert_one_line(train(lab, "labels.csv"), "labels.csv: ", piece)


OPTIONS: dict[str, tuple[str, ...]] = {
    "--backbone resnet81": ("unknown backbone 'resnet81' (nearest: 'resnet18')", "timm:NAME"),
    "--backbone timm:resnet81": ("timm has no model 'resnet81' (nearest: 'resnet18')",),
    "--augment flop": ("augment: 'flop' is not a preset", "(nearest: 'flip'), a file, or transforms"),
    "--trunk-until blok2": ("trunk_until: no layer 'blok2' (nearest: 'block2')", "it can be cut after: "),
    "--freeze blok1": ("freeze: 'blok1' matches no layer (nearest: 'block",),
    "--freeze 9": ("freeze 9: this backbone has only 3 stages",),
    "--batch-size 400": ("batch_size 400 is larger than the 12 training images", "hint: --batch-size 12"),
    "--lr nan": ("lr must be a positive finite number, found nan",),
    "--lr inf": ("lr must be a positive finite number, found inf",),
    "--lr fast": ("options: lr: ", "auto", "'fast'"),
    "--weight-decay nan": ("weight_decay must not be negative, found nan",),
    "--weight-decay inf": ("weight_decay",),
    "--momentum 1.5": ("momentum",),
    "--epochs 0 --patience 0": ("epochs must be at least 1, found 0", "patience must be at least 1, found 0"),
    "--per-class 9": ("per_class 9: too few training images: class 'blue' has 4, 'green' has 4, 'red' has 4",),
    "--test": ("the data set has no images in its test split",),
    "--image-size 4": ("image_size 4 does not fit this backbone",),
    "--device cuda:99": ("cuda:99",),
    "--precision bf16": ("precision bf16 requires CUDA",),
    "--weights gone.pth --method finetune": ("weights 'gone.pth': no such file or folder",),
    "--method features": ("smallcnn has no published weights", "hint: --method scratch or --weights RUN"),
    "--method finetune": ("smallcnn has no published weights: train from scratch",),
    "--head svm": ("head svm requires method features",),
    "--config gone.yaml": ("gone.yaml: cannot be read (No such file or directory)",),
}


@pytest.mark.parametrize("words", OPTIONS)
def test_train__faulty_options(lab: Path, words: str) -> None:
    given = dict(zip(words.split()[::2], words.split()[1::2], strict=False))
    plain = dict(zip(COMMON.split()[::2], COMMON.split()[1::2], strict=True))
    if words.endswith("--test"):
        given = {"--test": ""}
    kept = [word for name, value in plain.items() if name not in given for word in (name, value)]
    done = tl(lab, "train", "photos", *kept, *words.split(), "--out", "run")
    assert_one_line(done, *OPTIONS[words])
    assert not (lab / "run").exists()


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("--epohcs 3", "--epochs"),
        ("--optimizer sdg", "'sgd'"),
        ("--epochs many", "--epochs"),
        ("--head cnov", "'conv'"),
    ],
)
def test_train__options_that_the_command_line_rejects(lab: Path, words: str, nearest: str) -> None:
    # Errors in the command line itself come from Typer: its box, and exit code 2.
    done = tl(lab, "train", "photos", *words.split(), "--out", "run")
    assert (done.code, done.out) == (2, "")
    assert nearest in done.err
    assert "Traceback" not in done.err
    assert not (lab / "run").exists()


CONFIGS = {
    "epohcs: 3\nlr: fast\n": ("c.yaml: ", "unknown option 'epohcs' (nearest: 'epochs')", "lr: "),
    "epochs: [1\n": ("c.yaml: not a YAML file",),
    "lr: .nan\n": ("lr must be a positive finite number, found nan",),
    "head_sizes: [16, many]\n": ("c.yaml: head_sizes.1: ",),
    "!!python/object/apply:os.mkdir [hostile]\n": ("c.yaml: not a YAML file",),
}


@pytest.mark.parametrize("text", CONFIGS)
def test_train__faulty_config_file(lab: Path, text: str) -> None:
    (lab / "c.yaml").write_text(text, encoding="utf-8")
    done = tl(lab, "train", "photos", "--config", "c.yaml", "--out", "run")
    assert_one_line(done, *CONFIGS[text])
    assert [path.name for path in sorted(lab.iterdir())] == ["c.yaml", "photos"]


def save_pipeline(path: Path, *steps: Any) -> None:
    albumentations.save(albumentations.Compose(list(steps)), path)


AUGMENTATIONS: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    # Working images are 32 px, too small for a 64 px crop.
    "too large": ("a.json", lambda path: save_pipeline(path, albumentations.RandomCrop(64, 64)), ("64",)),
    "too small": ("a.json", lambda path: save_pipeline(path, albumentations.RandomCrop(16, 16)), ("(16, 16, 3)",)),
    "floats": ("a.json", lambda path: save_pipeline(path, albumentations.Normalize()), ("float32", "expected uint8")),
    "no pipeline": ("a.json", lambda path: path.write_text('{"a": 1}', encoding="utf-8"), ()),
    "no JSON": ("a.json", lambda path: path.write_text("{\n'a': [\n", encoding="utf-8"), ()),
    # PyYAML's own message has several lines.
    "no YAML": ("a.yaml", lambda path: path.write_text("a: [1,\nb: {\n", encoding="utf-8"), ()),
}


@pytest.mark.parametrize(("kind", "workers"), [*((kind, 0) for kind in AUGMENTATIONS), ("too large", 1)])
def test_train__faulty_augmentation_file(lab: Path, kind: str, workers: int) -> None:
    name, make, pieces = AUGMENTATIONS[kind]
    make(lab / name)
    words = [*COMMON.replace("--augment none", f"--augment {name}").split(), "--workers", workers]
    assert_last_line(tl(lab, "train", "photos", *words, "--out", "run"), name, *pieces)
    assert not (lab / "run").exists()


@dataclass(frozen=True)
class RunsCode:
    """A malicious payload: unpickling it creates a folder."""

    folder: Path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def hostile(path: Path, kind: str) -> None:
    content = {"block1.0.weight": torch.zeros(2), "x": RunsCode(path.parent / "hostile")}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")


REFUSED = {"zip": "could run code", "legacy": "could run code", "pickle": "not a readable weights file"}


@pytest.mark.parametrize("kind", REFUSED)
def test_train__weights_that_would_run_code(lab: Path, kind: str) -> None:
    hostile(lab / "w.pth", kind)
    done = train(lab, "photos", "--weights", "w.pth", "--method", "finetune")
    assert_one_line(done, "w.pth: ", REFUSED[kind])
    assert not (lab / "hostile").exists()
    assert not (lab / "run").exists()


def small_tensors(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**build_trunk("smallcnn").state_dict(), **{k.replace("_", "."): t for k, t in changes.items()}}


def cut_short(path: Path) -> None:
    torch.save(small_tensors(), path) if path.suffix == ".pth" else save_file(small_tensors(), path)
    path.write_bytes(path.read_bytes()[:1000])


WEIGHTS: dict[str, tuple[str, Callable[[Path], None], tuple[str, ...]]] = {
    "another network": (
        "w.pth",
        lambda path: torch.save(build_classifier("resnet18").state_dict(), path),
        (
            "belong to a different network",
            "lack 15 tensors, such as block1.0.weight",
            "unknown 122 tensors, such as bn1.b",
        ),
    ),
    "another width": (
        "w.safetensors",
        lambda path: save_file(small_tensors(block2_0_weight=torch.zeros(64, 16, 3, 3)), path),
        ("belong to a different network", "block2.0.weight (64, 16, 3, 3) instead of (64, 32, 3, 3)"),
    ),
    "a list": (
        "w.pth",
        lambda path: torch.save([torch.zeros(2)], path),
        ("contains no named tensors (expected",),
    ),
    "half": ("w.pth", cut_short, ("not a readable weights file",)),
    "half of another kind": ("w.safetensors", cut_short, ("not a readable weights file",)),
    "empty": ("w.pth", Path.touch, ("not a readable weights file",)),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_train__faulty_weights(lab: Path, kind: str) -> None:
    name, make, pieces = WEIGHTS[kind]
    make(lab / name)
    assert_one_line(train(lab, "photos", "--weights", name, "--method", "finetune"), name, *pieces)
    assert not (lab / "run").exists()


@pytest.fixture
def finished(lab: Path) -> Run:
    """A run of two epochs in the lab."""
    return train_here(lab / "photos", lab / "run").run


def edit_state(run: Run, **changes: Any) -> None:
    state = {**torch.load(run.last_path, weights_only=True), **changes}
    torch.save(state, run.last_path)


STATES: dict[str, tuple[Callable[[Run], None], str]] = {
    "another version": (lambda run: edit_state(run, run_version=1), "made by another version of tl"),
    "a later version": (lambda run: edit_state(run, run_version=99), "made by another version of tl"),
    "no state": (lambda run: torch.save([1, 2], run.last_path), "last.pt: "),
    "half a file": (lambda run: run.last_path.write_bytes(run.last_path.read_bytes()[:5000]), "cannot be resumed from"),
    "hostile": (lambda run: hostile(run.last_path, "zip"), "cannot be resumed from"),
}


@pytest.mark.parametrize("kind", STATES)
def test_resume__faulty_state(lab: Path, finished: Run, kind: str) -> None:
    make, piece = STATES[kind]
    make(finished)
    before = {path.name: path.read_bytes() for path in finished.folder.iterdir()}
    assert_last_line(tl(lab, "train", "--resume", "run"), "run/last.pt: ", piece)
    after = {path.name: path.read_bytes() for path in finished.folder.iterdir()}
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed <= {"config.yaml"}  # it contains the path of the run folder as given by the user
    assert not (finished.folder / "hostile").exists()


def save_card(run: Run, text: str) -> None:
    tensors = load_file(run.best_path)
    save_file(tensors, run.best_path, metadata={"tl.network": text})


def card_of(run: Run) -> dict[str, Any]:
    with safe_open(run.best_path, framework="pt") as opened:
        card: dict[str, Any] = json.loads(opened.metadata()["tl.network"])
    return card


CARDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "another version": lambda card: json.dumps({**card, "run_version": 1}),
    "a field more": lambda card: json.dumps({**card, "keypoints": []}),
    "no card": lambda card: "{}",
}


@pytest.mark.parametrize("kind", CARDS)
def test_export__best_of_another_version(lab: Path, finished: Run, kind: str) -> None:
    save_card(finished, CARDS[kind](card_of(finished)))
    done = tl(lab, "export", "run", "-o", "m.onnx")
    assert_one_line(done, "run/best.safetensors: damaged, or made by another version of tl (")
    assert not (lab / "m.onnx").exists()


def test_train__weights_of_a_run_of_another_version(lab: Path, finished: Run) -> None:
    save_card(finished, CARDS["another version"](card_of(finished)))
    shutil.move(finished.folder, lab / "old")
    done = train(lab, "photos", "--weights", "old", "--method", "finetune")
    assert_one_line(done, "old/best.safetensors: ", "another version of tl")
    assert not (lab / "run").exists()


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        ("train --resume photos", ("photos: not a run folder, because it contains no config.yaml",)),
        ("train --resume run --epochs 3", ("leave out epochs",)),
        ("train photos --out run --method scratch --backbone smallcnn", ("run: already exists", "--resume run")),
    ],
)
def test_train__faulty_run_folder(lab: Path, finished: Run, words: str, pieces: tuple[str, ...]) -> None:
    assert_one_line(tl(lab, *words.split()), *pieces)


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("--batch-size 4", r"epoch 1, step 2: the loss of \d+ of 4 images is not finite \(class '"),
        # One step with a finite loss, after which the network is not finite.
        ("--batch-size 12", r"epoch 1\b.*not finite"),
    ],
)
def test_train__a_loss_that_is_not_finite(lab: Path, words: str, place: str) -> None:
    done = train(lab, "photos", "--lr", "1e30", "--optimizer", "sgd", *words.split())
    assert_last_line(done, "at learning rate", "; lower it")
    assert re.search(place, done.err)
