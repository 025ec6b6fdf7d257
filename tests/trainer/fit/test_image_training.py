from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.trainer.make import (
    StopsAt,
    assert_same_run,
    equal,
    make_class_folders,
    make_config,
    make_noise,
    make_png,
    read_rows,
    weights_of,
)
from tl.errors import RunInterrupted
from tl.progress import Silent
from tl.trainer.config import TrainConfig
from tl.trainer.fit.distributed import Ranks
from tl.trainer.fit.image_training import copy_state, interpolate, prepare_image_training, standardize, start_head
from tl.trainer.fit.machine import Machine
from tl.trainer.heads.solvers import LinearHead
from tl.trainer.models.backbone_info import BackboneInfo
from tl.trainer.models.build import build_network, load_network
from tl.trainer.options import resolve
from tl.trainer.run_folder.run import Run
from tl.trainer.task import prepare_task
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


def probabilities_of(run: Run, name: str = "predictions_val.csv") -> NDArray[np.float64]:
    rows = read_rows(run.folder / name)
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
    weights = {"weights": str(finished_run.folder), "epochs": None, "refit": False}
    solved = train(make_config(close_photos, tmp_path / "a", method="features", **weights), Silent()).run
    still: dict[str, Any] = {"lr": 1e-9, "epochs": 1, "method": "finetune", "freeze": "all"}  # nothing changes
    tuned = train(
        make_config(close_photos, tmp_path / "b", **{**weights, **still, "head_init": "solved"}), Silent()
    ).run
    assert (tuned.folder / "c_search.csv").read_bytes() == (solved.folder / "c_search.csv").read_bytes()
    assert np.abs(probabilities_of(tuned) - probabilities_of(solved)).max() < 1e-4  # the temperature fit's tolerance
    random = train(
        make_config(close_photos, tmp_path / "c", **{**weights, **still, "head_init": "random"}), Silent()
    ).run
    assert np.abs(probabilities_of(random) - probabilities_of(solved)).max() > 0.01


def test_train__a_random_start_needs_no_features(finished_run: Run, tmp_path: Path, fresh_cache: Path) -> None:
    data = make_class_folders(tmp_path / "d", 4)
    config = make_config(
        data, tmp_path / "r", method="finetune", weights=str(finished_run.folder), head_init="random", audit=False
    )
    run = train(config, Silent()).run
    assert not (run.folder / "c_search.csv").exists()
    assert not list(fresh_cache.glob("features/*/*"))


@pytest.mark.parametrize(
    ("share", "wanted"), [(0.0, [1.0, -2.0]), (0.5, [2.0, 0.0]), (0.25, [1.5, -1.0]), (1.0, [3.0, 2.0])]
)
def test_interpolate__by_hand(share: float, wanted: list[float]) -> None:
    start = {"weight": torch.tensor([1.0, -2.0]), "num_batches_tracked": torch.tensor(3)}
    end = {"weight": torch.tensor([3.0, 2.0]), "num_batches_tracked": torch.tensor(8)}
    found = interpolate(start, end, share)
    assert found["weight"].tolist() == wanted
    assert found["num_batches_tracked"] == 8
    assert (start["weight"].tolist(), end["weight"].tolist()) == ([1.0, -2.0], [3.0, 2.0])


def tuning_config(data: Path, weights: Run, out: Path, **changes: Any) -> TrainConfig:
    """Fine-tuning with the default options: from a solved head, interpolated."""
    common = {"method": "finetune", "weights": str(weights.folder), "batch_size": 8, "audit": False}
    return make_config(data, out, **{**common, **changes})


def fine_tune(data: Path, weights: Run, out: Path, **changes: Any) -> Run:
    return train(tuning_config(data, weights, out, **changes), Silent()).run


def val_losses(run: Run, states: Sequence[dict[str, Tensor]]) -> list[float]:
    """Mean log loss of the validation images for each state of the run's network."""
    network, _, config = load_network(run)
    task = prepare_task(config, Silent())
    val = task.store.indices("val")
    images = torch.from_numpy(np.stack([task.store.input(i) for i in val]))
    losses = []
    for state in states:
        network.load_state_dict(state)
        with torch.no_grad():
            losses.append(float(cross_entropy(network(images).double(), torch.tensor(task.true_ids("val")))))
    return losses


@pytest.mark.parametrize(("lr", "epochs", "where"), [(0.3, 1, "start"), (3e-5, 6, "between"), (0.01, 6, "end")])
def test_train__interpolates_to_the_lowest_loss_of_validation_images(
    close_photos: Path, finished_run: Run, tmp_path: Path, lr: float, epochs: int, where: str
) -> None:
    still = fine_tune(close_photos, finished_run, tmp_path / "still", refit=False, lr=1e-30, epochs=1)
    run = fine_tune(close_photos, finished_run, tmp_path / "run", refit=False, lr=lr, epochs=epochs)
    start, end = weights_of(still), torch.load(run.last_path, weights_only=True)["module"]
    states = [interpolate(start, end, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    losses = val_losses(run, states)
    best = int(np.argmin(losses))
    assert equal(weights_of(run), states[best])
    assert ("start", "between", "between", "between", "end")[best] == where
    assert not (run.folder / "history_refit.csv").exists()


def test_train__without_interpolation_the_best_epoch_is_kept(
    close_photos: Path, finished_run: Run, tmp_path: Path
) -> None:
    run = fine_tune(close_photos, finished_run, tmp_path / "run", interpolate=False, lr=0.3, epochs=3)
    assert run.load_config().refit is False
    state = torch.load(run.last_path, weights_only=True)
    assert equal(weights_of(run), state["best"])
    assert not (run.folder / "predictions_fitted.csv").exists()


def test_train__refits_to_all_images(close_photos: Path, finished_run: Run, tmp_path: Path) -> None:
    changes = {"lr": 1e-30, "epochs": 2, "c_values": (0.1,)}  # the solved head is not changed
    run = fine_tune(close_photos, finished_run, tmp_path / "run", **changes)
    solved = train(
        make_config(
            *(close_photos, tmp_path / "solved"),
            **{"method": "features", "weights": str(finished_run.folder), "epochs": None, "c_values": (0.1,)},
        ),
        Silent(),
    ).run
    assert solved.load_config().refit is True
    fitted = [probabilities_of(each, "predictions_fitted.csv") for each in (run, solved)]
    np.testing.assert_allclose(*fitted, rtol=0, atol=1e-4)  # float32 sums of 128 products
    # The scored network has not seen the validation images.
    held_out = fine_tune(close_photos, finished_run, tmp_path / "held-out", refit=False, **changes)
    np.testing.assert_array_equal(probabilities_of(run), probabilities_of(held_out))
    assert np.abs(probabilities_of(run) - fitted[0]).max() > 0.01
    # 29 and 36 images in batches of 8.
    for name, steps in (("last.pt", 4), ("last_refit.pt", 5)):
        state = torch.load(run.folder / name, weights_only=True)
        assert state["optimizer"]["state"][0]["step"] == 2 * steps
    refitted = read_rows(run.folder / "history_refit.csv")
    assert not any(name.startswith("val") for name in refitted[0])
    assert len(refitted) == len(read_rows(run.folder / "history.csv")) == 2


@pytest.mark.parametrize("training", [1, 2])
def test_train__resumed_refit_equals_never_interrupted(
    close_photos: Path, finished_run: Run, tmp_path: Path, training: int
) -> None:
    changes = {"epochs": 3, "augment": "flip"}
    whole = fine_tune(close_photos, finished_run, tmp_path / "whole", **changes)
    with pytest.raises(RunInterrupted):
        train(tuning_config(close_photos, finished_run, tmp_path / "stopped", **changes), StopsAt(3, training))
    run = Run(tmp_path / "stopped")
    train(run.load_config(), Silent(), resume=run)
    assert_same_run(run, whole)


def test_seconds_per_image__leaves_the_network_as_it_was(close_photos: Path, finished_run: Run, tmp_path: Path) -> None:
    task = prepare_task(tuning_config(close_photos, finished_run, tmp_path / "r", epochs=1), Silent())
    training = prepare_image_training(task, Ranks())
    before = copy_state(training.network)
    assert 0 < training.seconds_per_image(Run(tmp_path / "r"), Silent()) < 10
    assert equal(training.network.state_dict(), before)
    assert not (tmp_path / "r").exists()


def test_standardize__measures_the_given_images(
    close_photos: Path, finished_run: Run, tmp_path: Path, cpu: Machine
) -> None:
    config = tuning_config(close_photos, finished_run, tmp_path / "r", method="features", augment="flip", epochs=1)
    task = prepare_task(config, Silent())
    network = prepare_image_training(task, Ranks()).network
    images = torch.from_numpy(np.stack([task.store.input(i) for i in range(len(task.ids))]))
    features = network.eval().features(images).detach()
    for places, wanted in ((None, task.store.indices("train")), ([0, 5, 30], [0, 5, 30])):
        standardize(network, task.store, cpu, places)
        # float32 means of up to 29 values.
        torch.testing.assert_close(network.standardize.mean, features[wanted].mean(dim=0), rtol=1e-5, atol=1e-6)


def test_resolve__when_the_head_is_initialized_solved() -> None:
    base = make_config(Path("d"), Path("o"), method="finetune", weights="imagenet", backbone="squeezenet1_0")
    for changes, start in (
        ({}, "solved"),
        ({"backbone": "mobilenet_v2"}, "solved"),
        ({"optimizer": "sgd"}, "solved"),
        # Batch norm sees different features than the head was solved on.
        ({"optimizer": "sgd", "backbone": "mobilenet_v2"}, "random"),
        ({"head": "mlp"}, "random"),
        ({"pooling": "flatten"}, "random"),
        ({"weights": "none"}, "random"),
        ({"method": "scratch", "weights": None}, "random"),
    ):
        assert resolve(dataclasses.replace(base, **changes)).head_init == start, changes
