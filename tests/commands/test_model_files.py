"""What is no model file is answered by what it is, by every command that takes one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl
from tests.models import make_model

# The words of a command; MODEL is what the user takes for a model file.
COMMANDS: dict[str, tuple[str, ...]] = {
    "predict": ("predict", "PHOTOS", "--model", "MODEL"),
    "predict --ensemble": ("predict", "PHOTOS", "--ensemble", "GOOD", "--ensemble", "MODEL"),
    "evaluate": ("evaluate", "PHOTOS", "--model", "MODEL"),
    "evaluate --merged": ("evaluate", "PHOTOS", "--ensemble", "GOOD", "OTHER", "--merged", "MODEL"),
    "merge": ("merge", "GOOD", "MODEL", "-o", "OUT.onnx"),
    "refit": ("refit", "MODEL", "PHOTOS", "-o", "OUT.onnx"),
    "adopt": ("adopt", "MODEL", "--preset", "imagenet", "-o", "OUT.onnx"),
    "inspect": ("inspect", "MODEL"),
    "verify": ("verify", "MODEL"),
    "bench": ("bench", "MODEL"),
    "report": ("report", "RUN", "--model", "MODEL"),
}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    for name in ("config.yaml", "manifest.csv", "best.safetensors"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_model_files__a_folder_is_answered_by_what_it_is(
    run_tl: RunTl, photos: Path, color_model: Path, run_folder: Path, tmp_path: Path, command: str
) -> None:
    other = make_model(tmp_path / "other.onnx", gain=0.01)
    known = {"PHOTOS": photos, "GOOD": color_model, "OTHER": other, "RUN": run_folder, "OUT.onnx": tmp_path / "o.onnx"}
    for folder, answer in (
        (run_folder, f"{run_folder}: is a run folder, not a model file: export it first: tl export {run_folder}"),
        (photos, f"{photos}: is a folder of images, not a model file"),
    ):
        done = run_tl(*((known | {"MODEL": folder}).get(word, word) for word in COMMANDS[command]))
        assert (done.code, answer in done.err) == (1, True), done.err


def test_model_files__other_folders(run_tl: RunTl, color_model: Path, run_folder: Path, tmp_path: Path) -> None:
    def answer(path: Path) -> str:
        return run_tl("verify", path).err

    weights = run_folder / "best.safetensors"
    assert f"{weights}: the weights of a run, not a model file: export it first: tl export" in answer(weights)
    assert f"is a folder of runs, such as {run_folder}: export it first" in answer(run_folder.parent)
    weights.unlink()
    assert f"finish it first: tl train --resume {run_folder}" in answer(run_folder)
    models = tmp_path / "study" / "models"
    models.mkdir(parents=True)
    (tmp_path / "study" / "sweep.lock").touch()
    assert "is the folder of a study: give one of its model files, once the study" in answer(models.parent)
    model = Path(shutil.copy(color_model, models / "m.onnx"))
    assert f"is the folder of a study: give one of its model files, such as {model}" in answer(models.parent)
    assert f"is a folder of model files: give a file, such as {model}" in answer(models)
    (models / "config.json").touch()
    assert "is a folder of another library, not a model file: convert it first: tl adopt" in answer(models)
    (tmp_path / "empty").mkdir()
    assert "is a folder, not a model file" in answer(tmp_path / "empty")


def test_model_files__a_member_given_twice_is_pointed_out(
    run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path
) -> None:
    copy, other = Path(shutil.copy(color_model, tmp_path / "copy.onnx")), make_model(tmp_path / "o.onnx", gain=0.01)
    for words in (
        ("predict", photos, "--ensemble", color_model, other, copy),
        ("evaluate", photos, "--ensemble", color_model, other, copy),
        ("merge", color_model, other, copy, "-o", tmp_path / "both.onnx"),
    ):
        done = run_tl(*words)
        assert done.code == 0, done.err
        assert f"warning: {color_model} and {copy} are the same file: it votes twice" in done.err
    twice = run_tl("predict", photos, "--ensemble", other, other)
    assert f"warning: {other} is given twice: it votes twice" in twice.err
    assert "votes twice" not in run_tl("predict", photos, "--ensemble", color_model, other).err
