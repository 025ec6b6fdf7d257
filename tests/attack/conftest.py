from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.models import make_model
from tests.trainer.make import make_class_folders, make_config
from tl.exporter.export import export_run
from tl.exporter.export_source import ExtraOutputs
from tl.progress import Silent
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train

Start = Callable[..., "subprocess.Popen[str]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these take long."""
    for item in items:
        if "attack" in item.path.parts:
            item.add_marker(pytest.mark.slow)


def start_tl(*words: object, before: str = "") -> subprocess.Popen[str]:
    """Start the command in a process of its own. `before`: Python code that runs first."""
    argv = ["tl", *map(str, words)]
    code = f"{before}\nimport sys\nsys.argv = {argv!r}\nfrom tl.__main__ import main\nmain()"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str, str]:
    """Wait, and return exit code, stdout and stderr."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three class folders of twelve squares; read only."""
    return make_class_folders(tmp_path_factory.mktemp("attack") / "photos", 12, hw=(20, 26))


@pytest.fixture(scope="session")
def finished_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of smallcnn; read only."""
    return train(make_config(photos, tmp_path_factory.mktemp("attack") / "run", epochs=2), Silent()).run


@pytest.fixture(scope="session")
def exported(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as a model file; read only."""
    path = tmp_path_factory.mktemp("attack") / "run.onnx"
    return export_run(finished_run, path, Silent(), further=ExtraOutputs(false_alarm=0.2)).path


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Two model files that disagree."""
    return [make_model(tmp_path / "a.onnx"), make_model(tmp_path / "b.onnx", gain=-0.05)]
