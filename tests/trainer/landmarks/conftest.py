from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.landmarks.make import make_landmark_config, make_spots
from tl.progress import Silent
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train


@pytest.fixture(scope="session")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve annotated images; read only."""
    return make_spots(tmp_path_factory.mktemp("data") / "spots")


@pytest.fixture(scope="session")
def spot_run(spots: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A heatmap run on `spots`; read only."""
    return train(make_landmark_config(spots, tmp_path_factory.mktemp("runs") / "spots"), Silent()).run
