"""Small image folders and one finished run, shared by the trainer's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.trainer.make import make_class_folders, make_config
from tl.progress import Silent
from tl.trainer.fit.machine import Machine, build_machine
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """Restore torch's thread count and random state."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for one test."""
    monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three class folders of six 20 px squares; read only."""
    return make_class_folders(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="session")
def finished_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of smallcnn on `photos`; read only."""
    config = make_config(photos, tmp_path_factory.mktemp("runs") / "finished", epochs=4)
    return train(config, Silent()).run


@pytest.fixture
def cpu() -> Machine:
    """One thread of the CPU."""
    return build_machine("cpu", "fp32", 1)
