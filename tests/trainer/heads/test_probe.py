from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, t
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from tests.trainer.heads.test_solvers import HalfStandardized
from tests.trainer.make import Listener, make_images
from tl.data.array_cache import ArrayCache
from tl.data.features import FeatureSet
from tl.data.images import ImageStore
from tl.data.manifests import class_ids
from tl.errors import ConfigError, DataError
from tl.progress import Silent
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.trainer.config import TrainConfig
from tl.trainer.heads.probe import ProbeRow, _interval, _limit, configure, expand_tries, probe
from tl.trainer.models.backbone_info import BackboneInfo
from tl.trainer.options import resolve
from tl.trainer.task import Task

BASE = TrainConfig(method="features", device="cpu", threads=1)
LINEAR, SVM = {"head": "linear", "c": "0.01"}, {"head": "svm", "c": "0.01"}


def make_task(
    folder: Path,
    features: NDArray[np.floating],
    labels: Sequence[str],
    *,
    splits: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    hashes: Sequence[str] | None = None,
) -> Task:
    """A task whose features (N, D) are already cached; its images are names only."""
    splits = splits or ["train"] * len(labels)
    images = make_images(labels, groups=groups)
    images = [dataclasses.replace(p, split=split) for p, split in zip(images, splits, strict=True)]
    digests = tuple(hashes or [f"{i:064x}" for i in range(len(labels))])
    kept = FeatureSet(ArrayCache(folder, keeps_unwritten=True), folder)
    for digest, row in zip(digests, features, strict=True):
        kept.cache.put(kept.key(digest, 0), row.astype(np.float32))
    preprocessing, names = build_preprocessing((8, 8)), tuple(sorted(set(labels)))
    info = BackboneInfo("none", 8, 8, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    store, ids = ImageStore(tuple(images), digests, preprocessing, {}), tuple(class_ids(images, names))
    return Task(resolve(BASE), info, preprocessing, None, None, store, [], names, ids, kept, None, False)


def clouds(count: int = 60, classes: int = 3, apart: float = 0.5) -> tuple[NDArray[np.float64], list[str]]:
    """Overlapping clouds (N, 8), in an order that mixes the classes; every head makes errors on them."""
    rng = np.random.default_rng(4)
    true_ids = np.arange(count) % classes
    features = apart * rng.normal(size=(classes, 8))[true_ids] + rng.normal(size=(count, 8))
    return features, ["abcdef"[i] for i in true_ids]


def make_coin_flips(count: int = 60, width: int = 100) -> tuple[NDArray[np.float64], list[str]]:
    """Noise (N, D) that any head memorizes, with unrelated labels."""
    rng = np.random.default_rng(2)
    return rng.normal(size=(count, width)), list(rng.permutation(list("ab") * (count // 2)))


def probe_one(task: Task, chosen: dict[str, str], folds: int = 5, seeds: int = 1, **more: Any) -> ProbeRow:
    (row,) = probe(task, configure(BASE, chosen), folds, seeds, Silent(), **more)
    return row


def test_expand_tries__every_combination_in_order() -> None:
    assert expand_tries(["head=mlp lr=0.1,0.2 batch-size=4,8", "head=svm"]) == [
        {"head": "mlp", "lr": "0.1", "batch_size": "4"},
        {"head": "mlp", "lr": "0.1", "batch_size": "8"},
        {"head": "mlp", "lr": "0.2", "batch_size": "4"},
        {"head": "mlp", "lr": "0.2", "batch_size": "8"},
        {"head": "svm"},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("haed=svm", r"try 'haed=svm': cannot vary 'haed' \(nearest: 'head'\)"),
        ("c=1 backbone=resnet18", "cannot vary 'backbone'"),  # other features
        ("patience=3", "cannot vary 'patience'"),  # would look at the images that score
        ("head=svm c", r"try 'head=svm c': expected option=value\[,value...\], found 'c'"),
        ("head=", "found 'head='"),
        ("head = svm", "found 'head'"),
    ],
)
def test_expand_tries__faults(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand_tries(["head=mlp", text])


@pytest.mark.parametrize(
    ("head", "c_values"),
    [("linear", ["0.0001", "0.001", "0.01", "0.1", "1", "10"]), ("svm", ["0.0001", "0.001", "0.01"])],
)
def test_configure__one_config_per_default_c(head: str, c_values: list[str]) -> None:
    configured = configure(BASE, {"head": head})
    assert [chosen for chosen, _ in configured] == [{"head": head, "c": c} for c in c_values]
    assert [config.c_values for _, config in configured] == [(float(c),) for c in c_values]
    assert {config.optimizer for _, config in configured} == {"lbfgs"}


def test_configure__one_config_otherwise() -> None:
    ((chosen, config),) = configure(BASE, {"head": "svm", "c": "0.5"})
    assert (chosen, config.c_values) == ({"head": "svm", "c": "0.5"}, (0.5,))
    ((chosen, config),) = configure(BASE, {"head": "mlp", "head_sizes": "8x4", "lr": "0.01"})
    assert (chosen, config.head_sizes, config.lr) == ({"head": "mlp", "head_sizes": "8x4", "lr": "0.01"}, (8, 4), 0.01)
    ((_, config),) = configure(BASE, {"head": "linear", "epochs": "3"})
    assert (config.optimizer, config.epochs) == ("adamw", 3)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            {"head": "mlp", "lr": "auto"},
            "try head=mlp lr=auto: lr auto and schedule plateau would use the validation images",
        ),
        ({"head": "mlp", "schedule": "plateau"}, "lr auto and schedule plateau would use"),
        ({"head": "mlp", "head_sizes": "8xx"}, "try head=mlp head_sizes=8xx: head_sizes.1: "),
        ({"head": "tree"}, "head: .* found 'tree'"),
        ({"head": "linear", "c": "1", "lr": "0.1"}, "leave out lr and epochs"),
    ],
)
def test_configure__faults(chosen: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(BASE, chosen)


@pytest.mark.parametrize(
    ("chosen", "model"),
    [
        (LINEAR, LogisticRegression(C=0.01, max_iter=1000)),
        ({**LINEAR, "class_weights": "balanced"}, LogisticRegression(C=0.01, max_iter=1000, class_weight="balanced")),
        (SVM, LinearSVC(C=0.01, tol=1e-3)),
    ],
)
def test_probe__as_scikit_learn_cross_validates(tmp_path: Path, chosen: dict[str, str], model: Any) -> None:
    features, labels = clouds()
    features, labels = features[:-8], labels[:-8]
    labels = ["a" if i % 5 == 0 else label for i, label in enumerate(labels)]  # no longer of equal sizes
    seeds, folds = 2, 4
    row = probe_one(make_task(tmp_path, features, labels), chosen, folds, seeds)
    scaler = StandardScaler() if isinstance(model, LinearSVC) else HalfStandardized()
    pipeline, accuracies, decided = make_pipeline(scaler, model), [], []
    for seed in range(seeds):
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        accuracies += list(cross_val_score(pipeline, features, labels, cv=splitter))
        decided += list(cross_val_predict(pipeline, features, labels, cv=splitter))
    assert 0.3 < np.mean(accuracies) < 0.9  # otherwise scores would not distinguish the methods
    assert row.top1_accuracy == pytest.approx(np.mean(accuracies), abs=1e-12)  # float64
    assert row.macro_f1 == pytest.approx(f1_score(labels * seeds, decided, average="macro"), abs=1e-12)
    assert (row.fits, row.n) == (folds * seeds, len(labels) * seeds)
    # Nadeau & Bengio 2003: each fold holds 13 of the 52 images, so validation over training is 13/39.
    half = t.ppf(0.975, 7) * math.sqrt(np.var(accuracies, ddof=1) * (1 / 8 + 13 / 39))
    assert (row.ci_low, row.ci_high) == pytest.approx((row.top1_accuracy - half, row.top1_accuracy + half), abs=1e-12)


def test_interval__by_hand() -> None:
    # Mean 0.53, variance 0.002 / 3, times 1/4 + 1/4; 3.182446 is the 97.5% quantile of t with 3 degrees of freedom.
    half = 3.182446 * math.sqrt(0.002 / 3 * 0.5)
    found = _interval([0.50, 0.52, 0.54, 0.56], [0.2, 0.3, 0.2, 0.3])
    assert found == pytest.approx((0.53 - half, 0.53 + half), abs=1e-7)  # the quantile has seven digits
    assert _interval([0.5, 1.0, 1.0], [0.5] * 3)[1] == 1.0
    assert _interval([0.5, 0.0, 0.0], [0.5] * 3)[0] == 0.0
    assert _interval([0.75, 0.75], [1.0, 1.0]) == (0.75, 0.75)


# Of 40 coin flips, 20 are guessed, plus or minus three standard deviations of sqrt(10); of twins, two of them.
CHANCE = (10.5 / 40, 29.5 / 40)


@pytest.mark.parametrize(
    ("width", "chosen"),
    [
        (100, LINEAR),  # memorizes 40 images: training on the scored images would make all of them correct
        (100, SVM),
        # Never converges: selecting the epoch on a fold's two images would make most of them correct.
        (4, {"optimizer": "sgd", "lr": "1", "epochs": "10", "batch_size": "8", "schedule": "constant"}),
    ],
)
def test_probe__noise_is_guessed(tmp_path: Path, width: int, chosen: dict[str, str]) -> None:
    row = probe_one(make_task(tmp_path, *make_coin_flips(40, width)), chosen, folds=20)
    assert CHANCE[0] < row.top1_accuracy < CHANCE[1]
    assert row.n == 40


def test_probe__twins_stay_on_one_side(tmp_path: Path) -> None:
    # Every image occurs twice, so a head that was trained on one copy has the label of the other.
    features, labels = make_coin_flips(20, 100)
    features, labels = np.concatenate([features, features]), labels * 2
    names = [f"{i % 20:064x}" for i in range(40)]
    apart = probe_one(make_task(tmp_path / "1", features, labels), LINEAR, 10)
    assert apart.top1_accuracy > 0.85  # some twins share a fold by chance; otherwise the rest would show nothing
    for i, ties in enumerate(({"groups": names}, {"hashes": names}, {"groups": names, "hashes": names})):
        together = probe_one(make_task(tmp_path / f"tied {i}", features, labels, **ties), LINEAR, 10)
        assert CHANCE[0] < together.top1_accuracy < CHANCE[1], ties.keys()
        assert together.n == 40


@pytest.mark.parametrize("grouped", [20, 40])
def test_probe__equal_files_of_several_groups_stay_on_one_side(tmp_path: Path, grouped: int) -> None:
    features, labels = make_coin_flips(20, 100)
    groups = [f"{i}" if i < grouped else "" for i in range(40)]
    hashes = [f"{i % 20:064x}" for i in range(40)]
    task = make_task(tmp_path, np.concatenate([features, features]), labels * 2, groups=groups, hashes=hashes)
    assert CHANCE[0] < probe_one(task, LINEAR, 10).top1_accuracy < CHANCE[1]


def test_probe__each_seed_cuts_other_folds_and_starts_elsewhere(tmp_path: Path) -> None:
    task = make_task(tmp_path, *clouds())
    for chosen in (LINEAR, {"head": "mlp", "head_sizes": "4", "epochs": "2"}):
        one, again, three = (probe_one(task, chosen, 3, seeds) for seeds in (1, 1, 3))
        assert dataclasses.replace(one, seconds=0) == dataclasses.replace(again, seconds=0)
        assert (one.fits, one.n, three.fits, three.n) == (3, 60, 9, 180)
        assert one.top1_accuracy != three.top1_accuracy
    split = make_task(tmp_path / "split", *clouds(), splits=["train", "train", "val"] * 20)
    one, three = (probe_one(split, {"head": "mlp", "head_sizes": "4", "epochs": "2"}, 0, seeds) for seeds in (1, 3))
    assert one.top1_accuracy != three.top1_accuracy  # the same images with different initial weights


def test_probe__without_folds_the_validation_split_scores(tmp_path: Path) -> None:
    # Two distant clouds; of ten validation images, three have the other's label.
    labels = list("ab" * 10)
    features = np.where(np.array(labels) == "a", -5.0, 5.0)[:, None] + np.linspace(0, 1, 60).reshape(20, 3)
    splits = ["val" if i < 10 else "train" for i in range(20)]
    labels[0], labels[1], labels[2] = "bab"
    row = probe_one(make_task(tmp_path, features, labels, splits=splits), LINEAR, folds=0, seeds=2)
    assert (row.top1_accuracy, row.fits, row.n) == (0.7, 2, 20)
    wilson = binomtest(7, 10).proportion_ci(method="wilson")  # of the ten images, however often they are scored
    assert (row.ci_low, row.ci_high) == pytest.approx((wilson.low, wilson.high), abs=1e-6)  # z has seven digits


@pytest.mark.parametrize("folds", [0, 4])
def test_probe__the_test_split_counts_for_nothing(tmp_path: Path, folds: int) -> None:
    features, labels = clouds()
    splits = ["train"] * 30 + ["val"] * 10
    rows = []
    for i, rest in enumerate((slice(0, 0), slice(40, 60))):
        data = np.concatenate([features[:40], 1e6 + features[rest]])  # would ruin any fit
        task = make_task(
            tmp_path / f"{i}", data, labels[:40] + labels[rest], splits=splits + ["test"] * len(labels[rest])
        )
        rows.append(dataclasses.replace(probe_one(task, LINEAR, folds), seconds=0))
    assert rows[0] == rows[1]
    assert rows[0].n == (40 if folds else 10)


def test_probe__needs_no_features_of_the_test_split(tmp_path: Path) -> None:
    features, labels = clouds(20)
    whole = make_task(tmp_path / "a", features, labels, splits=["train"] * 15 + ["test"] * 5)
    task = dataclasses.replace(whole, features=make_task(tmp_path / "b", features[:15], labels[:15]).features)
    assert probe_one(task, LINEAR, 3).n == 15


def test_probe__per_class_limits_the_training_part_alone(tmp_path: Path) -> None:
    # Each class has five kinds of images; a head trained on two images has seen at most two kinds.
    kinds, labels = np.arange(40) % 10, list("ab" * 20)
    task = make_task(tmp_path, np.eye(10)[kinds], labels)
    whole, limited = (probe_one(task, LINEAR, 4, per_class=count) for count in (None, 2))
    assert (whole.top1_accuracy, whole.n) == (1.0, 40)
    assert limited.n == 40
    # Two fifths are known; of the other kinds, half are guessed, so the result is partly random.
    assert 0.4 <= limited.top1_accuracy <= 0.85
    enough = probe_one(task, LINEAR, 4, per_class=15)  # three folds hold fifteen of each class
    assert dataclasses.replace(enough, seconds=0) == dataclasses.replace(whole, seconds=0)


def test_limit__that_many_of_each_class_drawn_by_the_seed() -> None:
    true_ids, train = np.arange(30) % 3, np.arange(5, 30)
    limited = [_limit(train, true_ids, 4, seed) for seed in (0, 0, 1)]
    for places in limited:
        assert np.bincount(true_ids[places]).tolist() == [4, 4, 4]
        assert set(places) < set(train)
    assert limited[0].tolist() == limited[1].tolist() != limited[2].tolist()
    assert _limit(train, true_ids, None, 0) is train


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        ("aaaabbbb", "", r"5 folds require at least as many .* the smallest class has 4: lower folds"),
        ("aaaaaabbbbbb", "112233112233", r"at least as many groups \(found 3\); the smallest class has 6: lower folds"),
        ("aaaaabbbbb", "1111122345", "5 folds leave a class without training images: it has too few groups"),
    ],
)
def test_probe__too_many_folds(tmp_path: Path, labels: str, groups: str, message: str) -> None:
    features = np.random.default_rng(0).normal(size=(len(labels), 3))
    task = make_task(tmp_path, features, labels, groups=list(groups) or None)
    with pytest.raises(DataError, match=message):
        probe_one(task, LINEAR, 5)


def test_probe__best_first_and_progress(tmp_path: Path) -> None:
    task = make_task(tmp_path, *clouds(apart=2))
    still = {"head": "mlp", "epochs": "1", "lr": "1e-9"}  # effectively untrained
    tries = [configured for chosen in (still, LINEAR, SVM) for configured in configure(BASE, chosen)]
    listener = Listener()
    rows = probe(task, tries, 3, 1, listener)
    assert listener.tasks == ["trying heads"]
    assert rows[-1].options == "head=mlp epochs=1 lr=1e-9"
    assert {row.options for row in rows[:2]} == {"head=linear c=0.01", "head=svm c=0.01"}
    assert rows[0].top1_accuracy >= rows[1].top1_accuracy > rows[2].top1_accuracy
    (unnamed,) = probe(task, [({}, configure(BASE, LINEAR)[0][1])], 3, 1, Silent())
    assert unnamed.options == "defaults"
