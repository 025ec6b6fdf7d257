"""A model of labels: real training on the bundled backbone, export, and a new head on a model file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.make import make_class_folders
from tl.annotation.model_making import make_model
from tl.errors import ConfigError, RunError
from tl.progress import Silent
from tl.runtime import Classification, load
from tl.runtime.model_file.selftest import run_selftest
from tl.trainer.run_folder.run import Run


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of eight images; every fourth image is for validation."""
    root = tmp_path_factory.mktemp("labeled")
    images = sorted(make_class_folders(root / "photos", per_class=8, classes=("red", "blue")).rglob("*.png"))
    rows = [
        f"{path.relative_to(root)},{path.parent.name},{'val' if i % 4 == 0 else 'train'},"
        f'{"random" if i % 4 == 0 else "selected"},"a note, with a comma"'
        for i, path in enumerate(images)
    ]
    table = root / "labels.csv"
    table.write_text("\n".join(["path,label,split,sampled,note", *rows]) + "\n", encoding="utf-8")
    return table


def test_make_model__writes_a_verified_file_scored_on_validation_images(labels: Path, tmp_path: Path) -> None:
    made = make_model(labels, tmp_path / "colors.onnx", run=tmp_path / "run", progress=Silent())
    run_selftest(made.model, device="cpu")
    assert made.run == tmp_path / "run"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["colors.onnx", "run"]
    assert Run(made.run).load_config().out == str(made.run)
    assert len(Run(made.run).images("val")) == 4  # its paths are right under its last name
    assert not [path for path in made.run.iterdir() if b"making" in path.read_bytes()]
    assert (tmp_path / "run" / "report.html").is_file()
    assert made.metrics["val"]["n"] == 4
    predictor = load(made.model, device="cpu")
    found = predictor.predict(str(labels.parent / "photos" / "red" / "0.png"))
    assert isinstance(found, Classification)
    assert (found.label, predictor.class_names) == ("red", ("blue", "red"))


class Stopping(Silent):
    """Stops, as a person who cancels or ends the session does, when a task begins or a step is done."""

    def __init__(self, when: str) -> None:
        self._when = when

    def start(self, task: str, total: int, unit: str) -> None:
        if task == self._when:
            raise KeyboardInterrupt

    def advance(self, steps: int = 1, note: str = "") -> None:
        if note == self._when:
            raise KeyboardInterrupt


def test_make_model__leaves_nothing_half_made(labels: Path, tmp_path: Path) -> None:
    for when in ("exporting", "done"):  # the last step, when the model file is there
        with pytest.raises(KeyboardInterrupt):
            make_model(labels, tmp_path / "a.onnx", run=tmp_path / "a", progress=Stopping(when))
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").touch()
    with pytest.raises(RunError, match="already exists"):
        make_model(labels, tmp_path / "a.onnx", run=tmp_path / "a", progress=Silent())


def test_make_model__puts_a_new_head_on_a_model_file(labels: Path, tmp_path: Path) -> None:
    trunk = make_model(labels, tmp_path / "trunk.onnx", run=tmp_path / "run", progress=Silent()).model
    renamed = tmp_path / "renamed.csv"
    text = labels.read_text(encoding="utf-8").replace(",red,", ",crimson,")
    renamed.write_text(text.replace("photos/", f"{labels.parent}/photos/"), encoding="utf-8")
    made = make_model(renamed, tmp_path / "new.onnx", run=tmp_path / "unused", trunk=trunk, progress=Silent())
    assert made.run is None
    assert not (tmp_path / "unused").exists()
    assert load(made.model, device="cpu").class_names == ("blue", "crimson")


def test_make_model__refuses_to_fine_tune_a_model_file(labels: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be fine-tuned"):
        make_model(labels, tmp_path / "a.onnx", run=tmp_path / "r", method="finetune", trunk=labels, progress=Silent())
