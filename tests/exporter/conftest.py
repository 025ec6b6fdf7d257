"""One finished run and its exported file, shared by the exporter's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.conftest import _torch_as_before as _torch_as_before  # a fixture of these tests too
from tests.trainer.make import make_class_folders, make_config
from tl.exporter.export import Exported, export_run
from tl.exporter.export_source import ExtraOutputs
from tl.progress import Silent
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three class folders of twelve squares of 20 x 26 px; read only."""
    return make_class_folders(tmp_path_factory.mktemp("data") / "photos", 12, hw=(20, 26))


@pytest.fixture(scope="session")
def finished_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of smallcnn on `photos`; read only."""
    config = make_config(photos, tmp_path_factory.mktemp("runs") / "finished", head="mlp", augment="flip", epochs=4)
    return train(config, Silent()).run


@pytest.fixture(scope="session")
def exported(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The run as a model file; read only. Its few validation images support a limit for one false alarm in five."""
    path = tmp_path_factory.mktemp("models") / "model.onnx"
    return export_run(finished_run, path, Silent(), further=ExtraOutputs(false_alarm=0.2))
