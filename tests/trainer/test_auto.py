from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.trainer.make import (
    Listener,
    StopsAt,
    assert_same_run,
    equal,
    make_manifest,
    make_stripes,
    read_rows,
    weights_of,
)
from tl.errors import ConfigError, RunInterrupted
from tl.progress import Progress, Silent
from tl.trainer import auto
from tl.trainer.auto import compare_methods
from tl.trainer.config import TrainConfig
from tl.trainer.fit.distributed import Ranks
from tl.trainer.fit.image_training import ImageTraining
from tl.trainer.outcome import HeldOut
from tl.trainer.run_folder.run import Run
from tl.trainer.train import TrainResult, _prepare, train

# Twelve images of a class hold out five of it: too few for a comparison.
FEW = 12


def margins(true_ids: NDArray[np.int64], wrong: int, margin: float = 3.0) -> NDArray[np.float64]:
    """Logits (N, 2) of an equal margin, in favor of the other class for the first `wrong` images."""
    decided = np.where(np.arange(len(true_ids)) < wrong, 1 - true_ids, true_ids)
    return margin * np.eye(2)[decided]


@pytest.mark.parametrize(
    ("wrong", "confidence", "is_tuned"),
    [
        # The targets are 17/18 and 1/18, so the fitted confidence is (12 * 17/18 + 4 * 1/18) / 16.
        (4, 13 / 18, True),
        # Better by 0.86 and 0.27 standard errors.
        (5, 2 / 3, False),
        (7, 5 / 9, False),
    ],
)
def test_compare_methods__by_hand(wrong: int, confidence: float, is_tuned: bool) -> None:
    true_ids = np.arange(16) % 2
    places = list(range(16))
    # Undecided logits: a log loss of ln 2 at any temperature, and all decisions are for class 0.
    features, tuned = HeldOut(places, np.zeros((16, 2))), HeldOut(places, margins(true_ids, wrong))
    first, second = compare_methods(features, tuned, true_ids, [""] * 16, (1.234, 5.678))
    gains = math.log(2) + np.log([1 - confidence] * wrong + [confidence] * (16 - wrong))
    assert (first.method, first.n, first.top1_accuracy, first.seconds) == ("features", 16, 0.5, 1.2)
    assert (second.method, second.n, second.top1_accuracy, second.seconds) == ("finetune", 16, 1 - wrong / 16, 5.7)
    assert (first.gain, first.standard_error) == (0.0, 0.0)
    assert first.log_loss == pytest.approx(math.log(2))
    # The temperature is a minimum found to about 0.1%.
    assert second.gain == pytest.approx(gains.mean(), abs=2e-3)
    assert second.log_loss == pytest.approx(math.log(2) - gains.mean(), abs=2e-3)
    assert second.standard_error == pytest.approx(gains.std(ddof=1) / 4, abs=2e-3)
    assert (first.is_chosen, second.is_chosen) == (not is_tuned, is_tuned)


def test_compare_methods__images_of_a_group_count_as_one() -> None:
    true_ids, places = np.arange(16) % 2, list(range(16))
    # Of four groups, all images are right or all are wrong.
    features, tuned = HeldOut(places, np.zeros((16, 2))), HeldOut(places, margins(true_ids, 4))
    alone, grouped = (
        compare_methods(features, tuned, true_ids, [names[i // 4] for i in range(16)], (0.0, 0.0))[1]
        for names in (("", "", "", ""), ("a", "b", "c", "d"))
    )
    assert grouped.gain == alone.gain
    # Equal deviations of 4 and of 16 values: the sums of squares are divided by 4 * 3 and by 16 * 15.
    assert grouped.standard_error == pytest.approx(alone.standard_error * math.sqrt(15 / 3))


def test_compare_methods__fine_tuning_is_chosen_only_where_it_is_better() -> None:
    true_ids, places = np.arange(16) % 2, list(range(16))
    good, bad = HeldOut(places, margins(true_ids, 0)), HeldOut(places, margins(true_ids, 6))
    for features, tuned, gains in ((good, good, False), (good, bad, False), (bad, good, True)):
        assert compare_methods(features, tuned, true_ids, [""] * 16, (0.0, 0.0))[1].is_chosen == gains


def test_compare_methods__compares_the_same_images_in_the_order_of_fine_tuning() -> None:
    all_ids = np.arange(20) % 2
    order = list(range(20))[::-1]
    features = HeldOut(order, margins(all_ids, 0)[order])  # out of fold, of all images
    places = [3, 4, 9, 15, 16]
    tuned = HeldOut(places, margins(all_ids, 0)[places])
    first, second = compare_methods(features, tuned, all_ids[places], [""] * 5, (0.0, 0.0))
    assert (first.n, first.top1_accuracy, second.top1_accuracy, second.gain) == (5, 1.0, 1.0, 0.0)


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of sixty images; read only."""
    return make_stripes(tmp_path_factory.mktemp("data") / "stripes")


def auto_config(data: Path, weights: Run, out: Path, **changes: Any) -> TrainConfig:
    """A run of method auto on smallcnn, from weights that were trained on colors."""
    common: dict[str, Any] = {"augment": "none", "device": "cpu", "threads": 1, "workers": 0, "image_size": 32}
    values = {**common, "backbone": "smallcnn", "weights": str(weights.folder), **changes}
    return TrainConfig(data=str(data), out=str(out), **values)


def train_auto(data: Path, weights: Run, out: Path, progress: Progress | None = None, **changes: Any) -> TrainResult:
    return train(auto_config(data, weights, out, **changes), progress or Silent())


@pytest.fixture(scope="module")
def tuned(stripes: Path, finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, list[str]]:
    """A run in which fine-tuning is clearly better, and what it said; read only."""
    listener = Listener()
    return train_auto(stripes, finished_run, tmp_path_factory.mktemp("auto") / "run", listener), listener.lines


def names_in(run: Run) -> set[str]:
    return {path.name for path in run.folder.iterdir() if "tfevents" not in path.name}


def test_train__auto_keeps_fine_tuning_where_it_is_better(tuned: tuple[TrainResult, list[str]]) -> None:
    result, lines = tuned
    config = result.run.load_config()
    assert (config.method, config.refit, config.quality, config.budget) == ("finetune", True, "balanced", None)
    assert names_in(result.run) >= {"methods.csv", "predictions_val.csv", "predictions_fitted.csv", "last_2.pt"}
    for name in ("history.csv", "history_2.csv"):
        assert len(read_rows(result.run.folder / name)) == config.epochs == 12  # 96 images are 12 steps an epoch
    features, fine_tuned = read_rows(result.run.folder / "methods.csv")
    assert list(features) == [
        *("method", "n", "top1_accuracy", "log_loss", "gain", "standard_error", "seconds", "is_chosen")
    ]
    assert [row["method"] for row in (features, fine_tuned)] == ["features", "finetune"]
    assert features["n"] == fine_tuned["n"] == "48"
    assert float(fine_tuned["gain"]) > float(fine_tuned["standard_error"])
    difference = float(features["log_loss"]) - float(fine_tuned["log_loss"])
    assert float(fine_tuned["gain"]) == pytest.approx(difference, abs=2e-6)  # six digits
    assert any(line.startswith("chosen: fine-tuning") for line in lines)
    assert any(line.startswith("frozen features: top-1") and "on 120 held-out images" in line for line in lines)
    # The scores are those of held-out images, as compared.
    rows = read_rows(result.run.folder / "predictions_val.csv")
    held_out = [row["path"] for row in read_rows(result.run.folder / "manifest.csv") if row["split"] == "val"]
    assert {row["path"] for row in rows} == {"/".join(Path(path).parts[-2:]) for path in held_out}
    assert result.metrics["val"]["n"] == len(rows) == 48
    assert result.metrics["val"]["top1_accuracy"] == pytest.approx(float(fine_tuned["top1_accuracy"]), abs=1e-6)


def test_train__kept_config_of_auto_repeats_the_chosen_run(
    tuned: tuple[TrainResult, list[str]], tmp_path: Path, run_tl: RunTl
) -> None:
    run = tuned[0].run
    done = run_tl("train", "--config", run.config_path, "--out", tmp_path / "again", "--no-report")
    assert done.code == 0, done.err
    again = Run(tmp_path / "again")
    assert equal(weights_of(again), weights_of(run))
    for name in ("predictions_val.csv", "predictions_fitted.csv", "c_search.csv"):
        assert (again.folder / name).read_bytes() == (run.folder / name).read_bytes()
    assert not (again.folder / "methods.csv").exists()


@pytest.mark.parametrize("training", [1, 2])
def test_train__resumed_auto_equals_never_interrupted(
    tuned: tuple[TrainResult, list[str]], stripes: Path, finished_run: Run, tmp_path: Path, training: int
) -> None:
    config = auto_config(stripes, finished_run, tmp_path / "stopped")
    with pytest.raises(RunInterrupted):
        train(config, StopsAt(6, training))
    run = Run(tmp_path / "stopped")
    assert run.load_config().method == "auto"
    train(run.load_config(), Silent(), resume=run)
    assert_same_run(run, tuned[0].run)


def assert_features(result: TrainResult, listener: Listener, reason: str) -> None:
    """Check that frozen features were chosen, for a reason that was given."""
    config = result.run.load_config()
    assert (config.method, config.optimizer) == ("features", "lbfgs")
    (chosen,) = (line for line in listener.lines if line.startswith("chosen: "))
    assert chosen.startswith("chosen: frozen features (")
    assert reason in chosen
    assert result.metrics["val"]["n"] == len(read_rows(result.run.folder / "predictions_val.csv"))
    assert (result.run.folder / "predictions_fitted.csv").exists()


def test_train__auto_keeps_features_where_fine_tuning_is_no_better(
    finished_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def undecided(features: HeldOut, tuned: HeldOut, *rest: Any) -> object:
        """Compare as if fine-tuning had learned nothing, and the head what fine-tuning has learned."""
        return compare_methods(tuned, HeldOut(tuned.places, np.zeros_like(tuned.logits)), *rest)

    monkeypatch.setattr(auto, "compare_methods", undecided)
    data, listener = make_stripes(tmp_path / "stripes"), Listener()
    result = train_auto(data, finished_run, tmp_path / "run", listener)
    assert_features(result, listener, "fine-tuning is not better by more than the standard error")
    assert [row["is_chosen"] for row in read_rows(result.run.folder / "methods.csv")] == ["1", "0"]
    assert result.metrics["val"]["n"] == 120  # out of fold
    # What remains is a run of method features, and the history of the fine-tuning that was not chosen.
    plain = train_auto(data, finished_run, tmp_path / "plain", method="features").run
    assert names_in(result.run) == {*names_in(plain), "methods.csv", "history_finetune.csv"}
    assert equal(weights_of(result.run), weights_of(plain))
    assert (result.run.folder / "c_search.csv").read_bytes() == (plain.folder / "c_search.csv").read_bytes()


@pytest.mark.parametrize(
    ("per_class", "changes", "reason"),
    [
        (60, {"quality": "fast"}, "quality fast"),
        (60, {"budget": "0.01s"}, "the budget of 0.01s is too short for fine-tuning"),
        (FEW, {}, "10 validation images are too few to tell whether fine-tuning is better"),
    ],
)
def test_train__auto_keeps_features_where_fine_tuning_is_not_tried(
    stripes: Path,
    finished_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    per_class: int,
    changes: dict[str, Any],
    reason: str,
) -> None:
    # Fast steps: a budget that features have used up is not too short by a fraction of an epoch, but by many.
    monkeypatch.setattr(ImageTraining, "seconds_per_image", lambda *_: 1e-6)
    listener = Listener()
    data = stripes if per_class == 60 else make_stripes(tmp_path / "few", per_class)
    result = train_auto(data, finished_run, tmp_path / "run", listener, **changes)
    assert_features(result, listener, reason)
    assert not names_in(result.run) & {"methods.csv", "history.csv", "last.pt"}


def test_train__auto_does_not_fine_tune_what_is_nearly_perfect(photos: Path, finished_run: Run, tmp_path: Path) -> None:
    listener = Listener()
    result = train_auto(photos, finished_run, tmp_path / "run", listener)
    assert_features(result, listener, "their accuracy is at least 0.99, so fine-tuning is not tried")


class StopsBeforeTraining(Listener):
    """Presses Ctrl-C when training by steps begins. `steps`: how many were to come."""

    steps = 0

    def start(self, task: str, total: int, unit: str) -> None:
        if task == "training":
            self.steps = total
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("changes", "seconds_per_image", "epochs"),
    [
        ({}, 1e9, 12),
        ({"quality": "best"}, 1e9, 12),
        ({"quality": "best", "budget": "1h"}, 1e-9, 12),
        # An epoch takes 2 x 96 training images, and 48 predictions at a third of their time: 208 s. Of 10 minutes, 85%
        # are planned for, less the seconds since the start.
        ({"budget": "10m"}, 1.0, 2),
        # Three networks: 3 x 96 training images, and 72 predictions.
        ({"budget": "20m", "quality": "best"}, 1.0, 3),
        ({"budget": "10m", "refit": False}, 1.0, 4),
    ],
)
def test_train__auto_fine_tunes_as_long_as_quality_and_budget_say(
    stripes: Path,
    finished_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    seconds_per_image: float,
    epochs: int,
) -> None:
    monkeypatch.setattr(ImageTraining, "seconds_per_image", lambda *_: seconds_per_image)
    stops = StopsBeforeTraining()
    with pytest.raises(RunInterrupted):
        train_auto(stripes, finished_run, tmp_path / "run", stops, **changes)
    assert stops.steps == 12 * epochs  # 96 images in batches of 8


def test_train__auto_with_a_split_of_its_own_is_not_refitted(finished_run: Run, tmp_path: Path) -> None:
    splits = ["train"] * 48 + ["val"] * 12 + ["test"] * 3
    data = make_stripes(tmp_path / "d", len(splits))
    rows = [(f"{name}/{i}.png", name, split) for name in "ab" for i, split in enumerate(splits)]
    manifest = make_manifest(data / "list.csv", rows, ("path", "label", "split"))
    result = train_auto(manifest, finished_run, tmp_path / "run", test=True)
    assert [row["n"] for row in read_rows(result.run.folder / "methods.csv")] == ["24", "24"]
    assert result.run.load_config().refit is False
    assert result.metrics["val"]["n"] == 24
    assert result.metrics["test"]["n"] == 6
    assert "history_2.csv" not in names_in(result.run)


def test_train__auto_among_processes_is_refused(stripes: Path, finished_run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method auto runs in a single process"):
        _prepare(auto_config(stripes, finished_run, tmp_path / "run"), Ranks(0, 2, 0), Silent())
