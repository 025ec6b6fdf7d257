"""Benchmark solved heads: how features are scaled, how C is chosen, and whether the head is refitted on all images.

Test accuracy of a logistic regression on frozen features, on whole sets and on 10, 20 and 50 images per class with
three seeds each. Columns: features raw, standardized, and halfway (divided by the square root of the standard
deviation), each refitted on all training images with the C of 5-fold cross-validation; halfway on four fifths of them.

TL_SHARED=... python benchmarks/heads.py [BACKBONE ...]
"""

import csv
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from defaults import list_images
from joblib import Parallel, delayed
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from tl.progress import Silent
from tl.trainer.classification import compute_features
from tl.trainer.config import TrainConfig
from tl.trainer.task import prepare_task

SHARED = Path(os.environ["TL_SHARED"])
os.environ.setdefault("TL_WEIGHTS_DIR", str(SHARED / "weights"))
SETS = ("brain-mri", "cats-dogs", "coins", "hymenoptera", "pacs-few", "pacs")
SCALINGS = ("raw", "standardized", "halfway")
C_VALUES = tuple(10.0**power for power in range(-5, 3))
FOLDS, SEEDS = 5, 3
Data = tuple[np.ndarray, np.ndarray]


def main() -> None:
    print("| backbone, images | " + " | ".join((*SCALINGS, "halfway, 4/5")) + " |")
    print("|---|" + "---|" * (len(SCALINGS) + 1))
    for backbone in sys.argv[1:] or ("efficientnet_lite0", "mobilenet_v2"):
        cases = [case for name in SETS for case in draw(name, *embed(name, backbone))]
        scores = Parallel(-1)(delayed(score)(train, test) for _, train, test in cases)
        names = [name for name, _, _ in cases]
        for name in dict.fromkeys(names):
            print_row(f"{backbone}, {name}", [s for n, s in zip(names, scores, strict=True) if n == name])
        print_row(f"**{backbone}, mean**", scores)


def print_row(name: str, scores: list[list[float]]) -> None:
    print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in np.mean(scores, axis=0)) + " |", flush=True)


def embed(name: str, backbone: str) -> tuple[Data, Data]:
    """Embeddings and class ids of the training and the test images."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "images.csv"
        with manifest.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("path", "label", "split"), *list_images(name)])
        config = TrainConfig(data=str(manifest), method="features", backbone=backbone, skip_bad=True)
        task = prepare_task(config, Silent())
        compute_features(task, Silent())
    train = [i for split in ("train", "val") for i in task.store.indices(split)]
    test, ids = task.store.indices("test"), np.array(task.ids)
    return (task.features_at(train), ids[train]), (task.features_at(test), ids[test])


def draw(name: str, train: Data, test: Data) -> Iterator[tuple[str, Data, Data]]:
    """The whole set, and subsets of some images per class."""
    yield name, train, test
    for count in () if name.endswith("-few") else (10, 20, 50):
        if (np.bincount(train[1]) <= count).all():
            continue
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            kept = [rng.permutation(np.flatnonzero(train[1] == c))[:count] for c in np.unique(train[1])]
            places = np.concatenate(kept)
            yield f"{name}, {count} per class", (train[0][places], train[1][places]), test


def score(train: Data, test: Data) -> list[float]:
    warnings.simplefilter("ignore")  # a large C converges slowly
    found = [evaluate(train, test, scaling) for scaling in SCALINGS]
    return [refitted for refitted, _ in found] + [found[-1][1]]


def evaluate(train: Data, test: Data, scaling: str) -> tuple[float, float]:
    """Test accuracy of a head refitted on all training images, and of one fitted to four fifths of them."""
    shift, scale = scale_of(train[0], scaling)
    features, ids, tested = (train[0] - shift) / scale, train[1], (test[0] - shift) / scale
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(features, ids))
    losses = []
    for c in C_VALUES:
        loss = 0.0
        for own, held in folds:
            model = fit(features[own], ids[own], c)
            loss -= model.predict_log_proba(features[held])[np.arange(len(held)), ids[held]].sum()
        losses.append(loss)
    best = C_VALUES[int(np.argmin(losses))]
    whole, part = fit(features, ids, best), fit(features[folds[0][0]], ids[folds[0][0]], best)
    return float(whole.score(tested, test[1])), float(part.score(tested, test[1]))


def fit(features: np.ndarray, ids: np.ndarray, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=1000).fit(features, ids)


def scale_of(features: np.ndarray, scaling: str) -> tuple[np.ndarray, np.ndarray]:
    mean, std = features.mean(axis=0), features.std(axis=0)
    std = np.maximum(std, 0.1 * std.mean())
    if scaling == "raw":
        return np.zeros_like(mean), np.ones_like(std)
    return mean, std if scaling == "standardized" else np.sqrt(std * std.mean())


if __name__ == "__main__":
    main()
