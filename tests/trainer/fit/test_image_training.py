from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.trainer.make import make_class_folders, make_config, make_noise, make_png, read_rows
from tl.progress import Silent
from tl.trainer.fit.image_training import start_head
from tl.trainer.heads.solvers import LinearHead
from tl.trainer.models.backbone_info import BackboneInfo
from tl.trainer.models.build import build_network
from tl.trainer.options import resolve
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train

pytestmark = pytest.mark.usefixtures("fresh_cache")
INFO = BackboneInfo("smallcnn", 16, 16, "bilinear", (0.5,) * 3, (0.25,) * 3)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def close_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of nearly the same color, so that probabilities are far from 0 and 1; read only."""
    root = tmp_path_factory.mktemp("close") / "photos"
    for c in range(3):
        for i in range(12):
            make_png(root / "abc"[c] / f"{i}.png", make_noise(100 * c + i, (120 + 6 * c, 125, 130 - 3 * c), (9, 9)))
    return root


def probabilities_of(run: Run) -> NDArray[np.float64]:
    rows = read_rows(run.folder / "predictions_val.csv")
    return np.array([[float(row[name]) for name in row if name.startswith("p:")] for row in rows])


@pytest.mark.parametrize("is_shifted", [False, True])
def test_start_head__is_the_solved_head_through_the_whole_network(is_shifted: bool) -> None:
    config = resolve(make_config(Path("d"), Path("o"), head="linear"))
    network = build_network(config, INFO, 3, None).eval()
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8))
    features = network.features(images).detach()
    if is_shifted:
        network.standardize.fit(features)
    solved = LinearHead(rng.normal(size=(3, features.shape[1])), rng.normal(size=3), 1.0)
    start_head(network, solved)
    got = network(images).detach().numpy()
    np.testing.assert_allclose(got, solved.logits(features.numpy()), atol=1e-4)  # float32 sums of 128 products


def test_start_head__refuses_a_head_of_layers() -> None:
    config = resolve(make_config(Path("d"), Path("o"), head="mlp"))
    network = build_network(config, INFO, 3, None)
    with pytest.raises(ValueError, match="only a linear head"):
        start_head(network, LinearHead(np.zeros((3, 128)), np.zeros(3), 1.0))


def test_train__fine_tuning_begins_with_the_solved_head(close_photos: Path, finished_run: Run, tmp_path: Path) -> None:
    weights = {"weights": str(finished_run.folder), "epochs": None}
    solved = train(make_config(close_photos, tmp_path / "a", method="features", refit=False, **weights), Silent()).run
    still: dict[str, Any] = {"lr": 1e-9, "epochs": 1, "method": "finetune", "freeze": "all"}  # nothing changes
    tuned = train(
        make_config(close_photos, tmp_path / "b", **{**weights, **still, "head_init": "solved"}), Silent()
    ).run
    assert (tuned.folder / "c_search.csv").read_bytes() == (solved.folder / "c_search.csv").read_bytes()
    assert np.abs(probabilities_of(tuned) - probabilities_of(solved)).max() < 1e-4  # the temperature fit's tolerance
    random = train(make_config(close_photos, tmp_path / "c", **{**weights, **still}), Silent()).run
    assert random.load_config().head_init == "random"
    assert np.abs(probabilities_of(random) - probabilities_of(solved)).max() > 0.01


def test_train__a_random_start_needs_no_features(finished_run: Run, tmp_path: Path, fresh_cache: Path) -> None:
    data = make_class_folders(tmp_path / "d", 4)
    config = make_config(
        data, tmp_path / "r", method="finetune", weights=str(finished_run.folder), head_init="random", audit=False
    )
    run = train(config, Silent()).run
    assert not (run.folder / "c_search.csv").exists()
    assert not list(fresh_cache.glob("features/*/*"))


def test_resolve__when_the_head_is_initialized_solved() -> None:
    base = make_config(Path("d"), Path("o"), method="finetune", weights="imagenet", backbone="squeezenet1_0")
    for changes, start in (
        ({}, "solved"),
        ({"backbone": "mobilenet_v2"}, "random"),  # batch norm sees different features than the head was solved on
        ({"head": "mlp"}, "random"),
        ({"pooling": "flatten"}, "random"),
        ({"weights": "none"}, "random"),
        ({"method": "scratch", "weights": None}, "random"),
    ):
        assert resolve(dataclasses.replace(base, **changes)).head_init == start, changes
