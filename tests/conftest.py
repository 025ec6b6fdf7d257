"""Fixtures for all tests. Real images and weights are optional: TL_SHARED names the folder that contains them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytest-xdist workers share the cores, so each worker uses one thread: with more, they would block each other.
# Libraries read these variables on import, and child processes inherit them.
if "PYTEST_XDIST_WORKER" in os.environ:
    for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[_name] = "1"

from tests.models import make_model


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests' cached features and images separate from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TL_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with data/ and weights/, or a skip."""
    folder = Path(os.environ.get("TL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs local test data: {folder}/data is not there (set TL_SHARED)")
    return folder


@pytest.fixture(scope="session")
def color_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file that labels an image red, green or blue by its mean color."""
    return make_model(tmp_path_factory.mktemp("models") / "color.onnx")
