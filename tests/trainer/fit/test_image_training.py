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

from tests.trainer.make import (
    Listener,
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
from tl.evaluation.calibration import softmax
from tl.progress import Silent
from tl.trainer.config import TrainConfig
from tl.trainer.fit import image_training
from tl.trainer.fit.distributed import Ranks
from tl.trainer.fit.image_training import copy_state, prepare_image_training, stage_of, standardize, start_head
from tl.trainer.fit.interpolation import SHARES, average, choose_share, interpolate
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


def tuning_config(data: Path, weights: Run, out: Path, **changes: Any) -> TrainConfig:
    """Fine-tuning with the default options: from a solved head, interpolated."""
    common = {"method": "finetune", "weights": str(weights.folder), "batch_size": 8, "audit": False}
    return make_config(data, out, **{**common, **changes})


def fine_tune(data: Path, weights: Run, out: Path, **changes: Any) -> Run:
    return train(tuning_config(data, weights, out, **changes), Silent()).run


def best_state(run: Run, states: Sequence[dict[str, Tensor]]) -> int:
    """The state of the run's network that validation images choose."""
    network, _, config = load_network(run)
    task = prepare_task(config, Silent())
    val = task.store.indices("val")
    images = torch.from_numpy(np.stack([task.store.input(i) for i in val]))
    logits = []
    for state in states:
        network.load_state_dict(state)
        with torch.no_grad():
            logits.append(network(images).numpy())
    return choose_share(np.array(logits), task.true_ids("val"), [""] * len(val), [])[0]


@pytest.mark.parametrize(("lr", "epochs"), [(0.3, 1), (3e-3, 2), (0.01, 6)])
def test_train__interpolates_to_what_validation_images_choose(
    close_photos: Path, finished_run: Run, tmp_path: Path, lr: float, epochs: int
) -> None:
    still = fine_tune(close_photos, finished_run, tmp_path / "still", refit=False, lr=1e-30, epochs=1)
    run = fine_tune(close_photos, finished_run, tmp_path / "run", refit=False, lr=lr, epochs=epochs)
    start, end = weights_of(still), torch.load(run.last_path, weights_only=True)["module"]
    states = [interpolate(start, end, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert equal(weights_of(run), states[best_state(run, states)])
    assert not (run.folder / "history_2.csv").exists()


def test_train__without_interpolation_the_best_epoch_is_kept(
    close_photos: Path, finished_run: Run, tmp_path: Path
) -> None:
    run = fine_tune(close_photos, finished_run, tmp_path / "run", interpolate=False, lr=0.3, epochs=3)
    assert run.load_config().refit is False
    state = torch.load(run.last_path, weights_only=True)
    assert equal(weights_of(run), state["best"])
    assert not (run.folder / "predictions_fitted.csv").exists()


@pytest.mark.parametrize("soup", [2, 3])
def test_train__averages_networks_that_hold_out_different_images(
    close_photos: Path, finished_run: Run, tmp_path: Path, soup: int
) -> None:
    run = fine_tune(close_photos, finished_run, tmp_path / "run", lr=1e-30, epochs=2, soup=soup)  # solved heads
    names = [f"last{stage_of(number)}.pt" for number in range(1, soup + 1)]
    states = [torch.load(run.folder / name, weights_only=True) for name in names]
    network, card, config = load_network(run)
    assert (config.refit, config.val_fraction) == (True, round(0.2 * soup, 1))
    mean = average([state["module"] for state in states])
    assert equal(weights_of(run), mean)
    # Each network was trained on all images but its part, in batches of 8.
    task = prepare_task(config, Silent())
    folds = prepare_image_training(task, Ranks()).folds
    val, every = task.store.indices("val"), range(len(task.ids))
    assert sorted(place for _, scored in folds for place in scored) == val
    assert len(val) == {2: 15, 3: 21}[soup]  # of 12 images of a class, 5 and 7
    for state, (places, scored) in zip(states, folds, strict=True):
        assert sorted([*places, *scored]) == list(every)
        assert state["optimizer"]["state"][0]["step"] == 2 * -(-len(places) // 8)
    # Each validation image is scored by the network that has not seen it.
    held_out = np.empty((len(val), 3))
    for state, (_, scored) in zip(states, folds, strict=True):
        network.load_state_dict(state["module"])
        images = torch.from_numpy(np.stack([task.store.input(i) for i in scored]))
        with torch.no_grad():
            logits = network(images).numpy()
        held_out[[val.index(i) for i in scored]] = softmax(logits, card.temperature)
    np.testing.assert_allclose(probabilities_of(run), held_out, rtol=0, atol=1e-5)  # six digits
    assert np.abs(probabilities_of(run, "predictions_fitted.csv") - held_out).max() > 0.01
    for number in range(1, soup + 1):
        assert len(read_rows(run.folder / f"history{stage_of(number)}.csv")) == 2
        assert (run.folder / f"c_search{stage_of(number)}.csv").is_file()


def test_train__interpolates_the_mean_of_networks(close_photos: Path, finished_run: Run, tmp_path: Path) -> None:
    still = fine_tune(close_photos, finished_run, tmp_path / "still", lr=1e-30, epochs=1)
    for lr in (3e-4, 0.3):
        run = fine_tune(close_photos, finished_run, tmp_path / f"{lr}", lr=lr, epochs=1)
        start, end = (
            average([torch.load(each.folder / name, weights_only=True)["module"] for name in ("last.pt", "last_2.pt")])
            for each in (still, run)
        )
        assert any(equal(weights_of(run), interpolate(start, end, share)) for share in SHARES)


def test_train__does_not_ship_a_mean_that_is_worse_than_its_networks(
    close_photos: Path, finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """A mean of networks that are not connected: its head decides for the wrong class."""
        return {**states[0], "head.weight": -states[0]["head.weight"], "head.bias": -states[0]["head.bias"]}

    monkeypatch.setattr(image_training, "average", torn)
    listener = Listener()
    config = tuning_config(close_photos, finished_run, tmp_path / "run", lr=1e-30, epochs=1)
    run = train(config, listener).run
    assert any("first network: the mean would be worse than each" in line for line in listener.lines)
    assert equal(weights_of(run), torch.load(run.last_path, weights_only=True)["module"])


def test_train__a_single_network_is_not_fitted_to_validation_images(
    close_photos: Path, finished_run: Run, tmp_path: Path
) -> None:
    run = fine_tune(close_photos, finished_run, tmp_path / "run", epochs=1, soup=1)
    assert (run.load_config().refit, run.load_config().val_fraction) == (False, 0.2)
    assert not (run.folder / "last_2.pt").exists()


@pytest.mark.parametrize("training", [1, 2])
def test_train__resumed_soup_equals_never_interrupted(
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


def test_standardize__measures_training_images(
    close_photos: Path, finished_run: Run, tmp_path: Path, cpu: Machine
) -> None:
    config = tuning_config(close_photos, finished_run, tmp_path / "r", method="features", augment="flip", epochs=1)
    task = prepare_task(config, Silent())
    network = prepare_image_training(task, Ranks()).network
    images = torch.from_numpy(np.stack([task.store.input(i) for i in task.store.indices("train")]))
    features = network.eval().features(images).detach()
    standardize(network, task.store, cpu)
    # float32 means of 30 values.
    torch.testing.assert_close(network.standardize.mean, features.mean(dim=0), rtol=1e-5, atol=1e-6)


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
