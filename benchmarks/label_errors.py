"""Benchmark the search for wrong labels: some labels are flipped, and `tl.evaluation.label_errors` looks for them.

Sets of $TL_SHARED/data, features of the default backbone, labels flipped at random with rates of 2, 5 and 10%, or
(asymmetric) each to the class whose mean feature is the most similar, several seeds each. The probabilities are those
of `tl review`: cross-validated linear heads. DEVELOPMENT sets served to choose the ranking and the rule that names
labels, the others are reported only.

    TL_SHARED=... python benchmarks/label_errors.py flip OUT [--seeds 5] [--sets NAME ...]   # OUT/*.npz
    PYTHON_WITH_CLEANLAB benchmarks/label_errors_cleanlab.py OUT   # optional: the same probabilities by cleanlab
    python benchmarks/label_errors.py table OUT   # one row for each set and kind of noise, means over the seeds
    python benchmarks/label_errors.py choose OUT   # rankings and rules, means over the development sets
    TL_SHARED=... python benchmarks/label_errors.py outliers   # images of other sets among those of a set

Columns of the table: share of the flipped labels that are in the first 10% of all images, ranked by quality; average
precision of the ranking; precision and recall of the labels that are named. Labels that were wrong before count as
false alarms. cleanlab's license is AGPL, so nothing here depends on it: it only reads the files.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tl.annotation.problems.frozen import embed_images, predict_held_out
from tl.annotation.problems.similarity import outlier_distances
from tl.data.manifests import LabeledImage
from tl.evaluation.label_errors import (
    calibrated_joint,
    class_thresholds,
    confident_joint,
    find_label_errors,
    normalized_margin,
    self_confidence,
)
from tl.progress import Silent
from tl.trainer.config import TrainConfig

DEVELOPMENT = ("cats-dogs", "coins", "cifar10", "brain-mri", "hymenoptera")
SETS = (*DEVELOPMENT, "pacs-cartoon", "tiny-imagenet", "imagenet-val-500")
# Tiny ImageNet: the first 50 classes of 200, 30 images each.
MAX_CLASSES = 50
NOISES = (("2%", 0.02, False), ("5%", 0.05, False), ("10%", 0.1, False), ("5% asymmetric", 0.05, True))
NOISES += (("10% asymmetric", 0.1, True),)
IMAGES = {".jpg", ".jpeg", ".png"}
Data = tuple[np.ndarray, np.ndarray, tuple[str, ...]]  # features (N, D), ids (N,), SHA-256 (N,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("flip", "table", "choose", "outliers"))
    parser.add_argument("out", type=Path, nargs="?", help="folder of the .npz files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    options = parser.parse_args()
    if options.step == "outliers":
        print_outliers(options.sets)
    elif options.out is None:
        parser.error(f"{options.step} needs the folder OUT")
    elif options.step == "flip":
        flip_all(options.out, options.sets, options.seeds)
    elif options.step == "table":
        print_table(options.out)
    else:
        print_choices(options.out)


def list_images(name: str) -> list[LabeledImage]:
    """Images of a set; their class is the folder they are in."""
    root = Path(os.environ["TL_SHARED"]) / "data" / name
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGES)
    names = sorted({path.parent.name for path in paths})[:MAX_CLASSES]
    return [LabeledImage(str(path), path.name, path.parent.name) for path in paths if path.parent.name in names]


def embed(name: str) -> Data:
    """Features of the default backbone, from the cache if they are there."""
    os.environ.setdefault("TL_WEIGHTS_DIR", os.environ["TL_SHARED"] + "/weights")
    images = list_images(name)
    found = embed_images(images, TrainConfig(data=name), Silent())
    labels = [images[i].label for i in found.places]
    return found.features, np.unique(labels, return_inverse=True)[1].astype(np.int64), found.hashes


def flip_all(out: Path, names: tuple[str, ...], seeds: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        data = embed(name)
        for noise, rate, is_asymmetric in NOISES:
            for seed in range(seeds):
                path = out / f"{name}~{noise.replace(' ', '_')}~{seed}.npz"
                if not path.exists():
                    flip_one(path, data, rate, is_asymmetric, seed)
                    print(path.name, flush=True)


def flip_one(path: Path, data: Data, rate: float, is_asymmetric: bool, seed: int) -> None:
    features, truth, hashes = data
    ids = flip(features, truth, rate, is_asymmetric, seed)
    found = predict_held_out(features, ids, int(truth.max()) + 1, hashes, [""] * len(ids), seed)
    np.savez(path, probabilities=found.probabilities, ids=ids, truth=truth)


def flip(features: np.ndarray, truth: np.ndarray, rate: float, is_asymmetric: bool, seed: int) -> np.ndarray:
    """Labels of which a share is wrong: at random, or each replaced by that of the most similar class."""
    rng, classes = np.random.default_rng(seed), int(truth.max()) + 1
    places = rng.permutation(len(truth))[: round(rate * len(truth))]
    ids = truth.copy()
    if is_asymmetric:
        means = np.stack([features[truth == c].mean(axis=0) for c in range(classes)])
        means -= means.mean(axis=0)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        likeness = means @ means.T
        np.fill_diagonal(likeness, -np.inf)
        ids[places] = likeness.argmax(axis=1)[truth[places]]
    else:
        ids[places] = (truth[places] + rng.integers(1, classes, len(places))) % classes
    return ids


def scores(quality: np.ndarray, is_wrong: np.ndarray) -> tuple[float, float]:
    """Share of the wrong labels in the first tenth, and average precision; low quality comes first."""
    ordered = is_wrong[np.argsort(quality, kind="stable")]
    first = ordered[: round(0.1 * len(ordered))].sum() / is_wrong.sum()
    return float(first), float((np.cumsum(ordered) / np.arange(1, len(ordered) + 1))[ordered].mean())


def named_scores(named: np.ndarray, is_wrong: np.ndarray) -> tuple[float, float]:
    """Precision and recall of the labels that are named."""
    hits = float((named & is_wrong).sum())
    return hits / max(1, int(named.sum())), hits / float(is_wrong.sum())


def read_all(out: Path) -> Iterator[tuple[str, str, Path, dict[str, np.ndarray]]]:
    for path in sorted(out.glob("*~*.npz")):
        name, noise, _ = path.stem.split("~")
        yield name, noise.replace("_", " "), path, dict(np.load(path))


def print_table(out: Path) -> None:
    rows: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    sizes = {}
    for name, noise, path, data in read_all(out):
        ids, is_wrong = data["ids"], data["ids"] != data["truth"]
        found = find_label_errors(data["probabilities"], ids)
        named = np.zeros(len(ids), bool)
        named[found.ranked] = True
        right = float((data["probabilities"].argmax(axis=1) == data["truth"]).mean())
        row = [right, *scores(found.quality, is_wrong), *named_scores(named, is_wrong), found.noise_rate]
        other = path.with_suffix(".cleanlab")
        if other.exists():
            theirs = dict(np.load(other))
            row += [*scores(theirs["quality"], is_wrong), *named_scores(theirs["named"], is_wrong)]
        rows[name, noise].append(row)
        sizes[name] = len(ids)
    ours = ("accuracy", "first 10%", "AP", "precision", "recall", "noise found")
    print(
        "| set, images | noise, seeds | "
        + " | ".join((*ours, "cleanlab: first 10%", "AP", "precision", "recall"))
        + " |"
    )
    print("|---|---|" + "---|" * 10)
    for name in SETS:
        for noise, *_ in NOISES:
            if (name, noise) in rows:
                means = np.mean(rows[name, noise], axis=0)
                kind = f"{noise}, {len(rows[name, noise])}"
                print(f"| {name}, {sizes[name]} | {kind} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")


Ranking = Callable[[np.ndarray, np.ndarray], np.ndarray]


def rankings() -> dict[str, Ranking]:
    """Label qualities of Kuan & Mueller 2022, "Model-agnostic label quality scoring to detect real-world label errors".

    Adjusted: probabilities minus the mean of their class, so that all classes are alike.
    """
    plain: dict[str, Ranking] = {"self-confidence": self_confidence, "normalized margin": normalized_margin}
    adjusted: dict[str, Ranking] = {
        f"{name}, adjusted": lambda p, ids, rank=rank: rank(adjust(p, ids), ids) for name, rank in plain.items()
    }
    return plain | {"confidence-weighted entropy": weighted_entropy} | adjusted


def adjust(probabilities: np.ndarray, ids: np.ndarray) -> np.ndarray:
    thresholds = class_thresholds(probabilities, ids)
    shifted = probabilities - thresholds + thresholds.max()
    return shifted / shifted.sum(axis=1, keepdims=True)


def weighted_entropy(probabilities: np.ndarray, ids: np.ndarray) -> np.ndarray:
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(axis=1)
    return -entropy / np.maximum(self_confidence(probabilities, ids), 1e-12)


def rules(probabilities: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Which labels are named, by the rules of Northcutt et al. 2021 and, for comparison, by the prediction alone."""
    counts = confident_joint(probabilities, ids)
    joint = np.rint(calibrated_joint(counts, ids)).astype(int)
    predicted, quality = probabilities.argmax(axis=1), self_confidence(probabilities, ids)
    by_rate, by_class = np.zeros(len(ids), bool), np.zeros(len(ids), bool)
    for c in range(len(joint)):
        own = np.flatnonzero(ids == c)
        by_class[own[np.argsort(quality[own], kind="stable")[: joint[c].sum() - joint[c, c]]]] = True
        for other in np.flatnonzero(joint[c] * (np.arange(len(joint)) != c)):
            margins = probabilities[own, other] - probabilities[own, c]
            by_rate[own[np.argsort(-margins, kind="stable")[: joint[c, other]]]] = True
    reached = probabilities >= class_thresholds(probabilities, ids) - 1e-6
    confident = reached.any(axis=1) & (np.where(reached, probabilities, -1).argmax(axis=1) != ids)
    differs = predicted != ids
    found = {"confident joint": confident, "by noise rate": by_rate & differs, "by class": by_class & differs}
    return found | {"both": by_rate & by_class & differs, "prediction differs": differs}


def print_choices(out: Path) -> None:
    ranked: dict[tuple[bool, str], list[tuple[float, float]]] = defaultdict(list)
    named: dict[tuple[bool, str], list[tuple[float, float]]] = defaultdict(list)
    for name, noise, _, data in read_all(out):
        if name in DEVELOPMENT:
            probabilities, ids = data["probabilities"].astype(np.float64), data["ids"]
            is_wrong, is_asymmetric = ids != data["truth"], "asymmetric" in noise
            for title, rank in rankings().items():
                ranked[is_asymmetric, title].append(scores(rank(probabilities, ids), is_wrong))
            for title, found in rules(probabilities, ids).items():
                named[is_asymmetric, title].append(named_scores(found, is_wrong))
    for columns, kept in (("first 10% | AP", ranked), ("precision | recall", named)):
        print(f"| | random: {columns} | asymmetric: {columns} |\n|---|---|---|---|---|")
        for title in dict.fromkeys(title for _, title in kept):
            means = [mean for kind in (False, True) for mean in np.mean(kept[kind, title], axis=0)]
            print(f"| {title} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
        print()


def print_outliers(names: tuple[str, ...]) -> None:
    """Precision among the K first images, and area under the ROC curve, for K images of another set, 3 or 10."""
    data = {name: embed(name)[0] for name in names}
    print("| features | neighbor | AUROC | precision at K |\n|---|---|---|---|")
    for title, prepare in (("unit length", lambda x: x), ("standardized, unit length", standardize)):
        for neighbor in (1, 5, 10, 20):
            found = [
                outlier_scores(prepare, own, other, count, neighbor)
                for name, own in data.items()
                for other_name, other in data.items()
                for count in (3, 10)
                if name != other_name
            ]
            print(f"| {title} | {neighbor} | " + " | ".join(f"{mean:.3f}" for mean in np.mean(found, axis=0)) + " |")


def standardize(features: np.ndarray) -> np.ndarray:
    std = features.std(axis=0)
    return (features - features.mean(axis=0)) / np.maximum(std, 0.1 * std.mean())


def outlier_scores(
    prepare: Callable[[np.ndarray], np.ndarray], own: np.ndarray, other: np.ndarray, count: int, neighbor: int
) -> tuple[float, float]:
    foreign = other[np.random.default_rng(0).permutation(len(other))[:count]]
    is_foreign = np.arange(len(own) + count) >= len(own)
    distances = outlier_distances(prepare(np.concatenate([own, foreign])), neighbor)
    order = np.argsort(-distances, kind="stable")
    ranks = np.argsort(np.argsort(distances, kind="stable"))[is_foreign]
    area = (ranks.sum() - count * (count - 1) / 2) / (count * len(own))
    return float(area), float(is_foreign[order[:count]].mean())


if __name__ == "__main__":
    main()
