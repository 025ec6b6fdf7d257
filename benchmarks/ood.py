"""Compare out-of-distribution scores for few training images, on embeddings of two frozen backbones.

- tl: what `tl export` fits. Embeddings of unit length, minus 0.75 of their mean, at unit length again; Mahalanobis
  distance to the nearest class mean in all dimensions, with a covariance shrunk by 0.95 towards the identity.
- fully centered, not centered: the same, minus all or none of the mean; Ledoit-Wolf: not centered, estimated shrinkage.
- subspace: what `tl export` fitted before: the distance within the leading principal components alone.
- nearest neighbor: cosine distance to the nearest training image. Energy: of a logistic regression. ViM: the energy
  plus the length outside the 32 leading components. Source: Wang et al. 2022.

`tune`: the pairings on which the method was chosen. Known: groups of Tiny ImageNet, single classes of it, CIFAR-10,
coins, ants and bees, brain scans. Far strangers: other data sets; near: other classes of the same set. False alarms:
the share of further known images above the 95% limit of cross-fitted scores, in the first draw. `final`: the pairings
that were kept back, with 200 training images; in brackets the share of strangers found at that limit.

    TL_SHARED=... python benchmarks/ood.py tune|final
"""

import csv
import itertools
import math
import os
import sys
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from scipy.special import logsumexp
from sklearn.covariance import LedoitWolf, ledoit_wolf_shrinkage
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import euclidean_distances

from tl.data.features import unit_length
from tl.data.splits import find_folds
from tl.evaluation.ood import fit_ood
from tl.progress import Silent
from tl.runtime.ensembles.selective import conformal_limit
from tl.runtime.sources.paths import find_images
from tl.trainer.classification import compute_features
from tl.trainer.config import TrainConfig
from tl.trainer.task import prepare_task

DATA = Path(os.environ["TL_SHARED"]) / "data"
os.environ.setdefault("TL_WEIGHTS_DIR", str(DATA.parent / "weights"))
BACKBONES, DRAWS, SIZES = ("efficientnet_lite0", "mobilenet_v2"), 3, (40, 100, 200, 300)
TUNING_STRANGERS = ("tiny-imagenet", "cifar10", "hymenoptera", "mollusk-landmarks", "dlc-reaching")
FINAL_KNOWN, FINAL_SIZE = ("cats-dogs", "pacs-cartoon"), 200
FINAL_STRANGERS = ("imagenet-val-500", "flywing-landmarks", "coins", "brain-mri", "noise")
MOST_IMAGES, FALSE_ALARM = 300, 0.05
SPRINGER = "n02102040"  # the only dog of imagenet-val-500, which has no cat
# Groups of classes of all sets; those of Tiny ImageNet are WordNet offsets, and its other classes are left out.
GROUPS = """
dog: dog 02085620 02094433 02099601 02099712 02106662 02113799 cat: cat 02123045 02123394 02124075 02125311 02129165
reptile: frog 01629819 01641577 01644900 01698640 01742172 arthropod: ants bees 01770393 01774384 01774750 01784675
02165456 02190166 02206856 02226429 02231487 02233338 02236044 02268443 02279972 02281406 sea: 01443537 01910747
01917289 01944390 01945685 01950731 01983481 01984695 02321529 09256479 01768244 02074367 bird: bird 01855672 02002724
02056570 02058221 hoofed: deer horse 02395406 02403003 02410509 02415577 02423022 02437312 02504458 furry: 01882714
02132136 02364673 02480495 02481823 02486410 02509815 04399382 vehicle: airplane automobile ship truck 02814533
02917067 03100240 03393912 03444034 03599486 03662601 03670208 03796401 03977966 04146614 04285008 04465501 04487081
03447447 03649909 clothes: 02669723 02730930 02837789 02883205 02963159 03026506 03404251 03617480 03763968 03770439
03980874 04133789 04254777 04259630 04371430 04532106 building: 02699494 02788148 02791270 02793495 02814860 02927161
03042490 03160309 03837869 04311004 04366367 04417672 04486054 04532670 04562935 food: 07579787 07583066 07614500
07615774 07695742 07711569 07715103 07720875 07734744 07747607 07749582 07753592 07768694 07871810 07873807 07875152
07920052 12267677 landscape: 09193705 09246464 09332890 09428293 device: 02666196 02841315 02977058 02988304 02999410
03085013 03179701 03355925 03424325 03544143 03584254 03706229 03891332 03902125 04070727 04074963 04265275 04328186
04179913 vessel: 02795169 02808440 02815834 02823428 02909870 03400231 03937543 03983396 04398044 04560804 04596742
"""
Images = tuple[np.ndarray, np.ndarray]  # embeddings (N, D), labels (N,)
Score = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Pairing:
    """Embeddings of images of the set `known`, `ids` being the classes of `train`, and of strangers of each set."""

    known: str
    train: np.ndarray
    ids: np.ndarray
    test: np.ndarray
    strangers: dict[str, np.ndarray]


# pairing, method, name of strangers -> (AUROC, share above the limit), false alarms if measured
Measured = tuple[Pairing, str, dict[str, tuple[float, float]], list[float]]


def read_groups() -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for word in GROUPS.split():
        if word.endswith(":"):
            members = groups.setdefault(word[:-1], [])
        else:
            members.append(f"n{word}" if word.isdigit() else word)
    return groups


def write_noise(folder: Path) -> None:
    """Images of random pixels, sharp and blurred."""
    rng = np.random.default_rng(0)
    for number in range(40):
        image = Image.fromarray(rng.integers(0, 256, (256, 320, 3), np.uint8))
        image.save(folder / f"sharp-{number:02}.png")
        blurred = image.filter(ImageFilter.GaussianBlur(rng.uniform(1, 12)))
        ImageOps.autocontrast(blurred).save(folder / f"blurred-{number:02}.png")


def embed(names: Iterable[str], backbone: str) -> dict[str, Images]:
    with tempfile.TemporaryDirectory() as folder:
        roots = {name: (Path(folder) if name == "noise" else DATA) / name for name in names}
        if "noise" in roots:
            roots["noise"].mkdir()
            write_noise(roots["noise"])
        rows = [(p, f"{name}/{Path(p).parent.name}") for name, root in roots.items() for p in find_images([root]).paths]
        manifest = Path(folder) / "images.csv"
        with manifest.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("path", "label"), *rows])
        config = TrainConfig(data=str(manifest), method="features", backbone=backbone, skip_bad=True, threads=1)
        task = prepare_task(config, Silent())
        compute_features(task, Silent())
    sets, labels = np.array([image.label.split("/") for image in task.store.images]).T
    features = task.features_at(range(len(sets)))
    return {name: (features[sets == name], labels[sets == name]) for name in roots}


def draw(rng: np.random.Generator, images: Images, classes: list[list[str]], size: int) -> list[np.ndarray]:
    """Embeddings of training images, as many of each class, their class ids, and other embeddings; [] if too few.

    `classes`: the labels of each class.
    """
    train, test, ids = [], [], np.arange(size) * len(classes) // size
    for class_id, labels in enumerate(classes):
        places = rng.permutation(np.flatnonzero(np.isin(images[1], labels)))
        count = int((ids == class_id).sum())
        if len(places) < count + 4:
            return []
        train.append(places[:count])
        test.append(places[count:])
    return [images[0][np.concatenate(train)], ids, images[0][rng.permutation(np.concatenate(test))]]


def tuning_pairings(sets: dict[str, Images], number: int) -> Iterator[Pairing]:
    groups = read_groups()
    embeddings, labels = sets["tiny-imagenet"]
    kept = np.isin(labels, list(itertools.chain(*groups.values())))
    sets = {**sets, "tiny-imagenet": (embeddings[kept], labels[kept])}
    for size, count in itertools.product(SIZES, (2, 3, 5, 8)):
        rng = np.random.default_rng(zlib.crc32(f"{number}{size}{count}".encode()))
        for name, classes, taken in tuning_cases(rng, {key: set(labels) for key, (_, labels) in sets.items()}, count):
            if drawn := draw(rng, sets[name], classes, size):
                rest = {
                    key: sets[key][0][~np.isin(sets[key][1], list(taken))]
                    for key in dict.fromkeys((*TUNING_STRANGERS, name))
                }
                strangers = {key: rng.permutation(each)[:MOST_IMAGES] for key, each in rest.items() if len(each)}
                yield Pairing(name, drawn[0], drawn[1], drawn[2][:MOST_IMAGES], strangers)


def tuning_cases(
    rng: np.random.Generator, labels: dict[str, set[str]], count: int
) -> Iterator[tuple[str, list[list[str]], set[str]]]:
    """Set, labels of each known class, labels that are no strangers."""
    groups = read_groups()
    group_of = {label: group for group, members in groups.items() for label in members}

    def some(names: Iterable[str]) -> list[str]:
        return [str(name) for name in rng.permutation(sorted(names))[:count]]

    broad, single, objects = some(groups), some(labels["tiny-imagenet"]), some(labels["cifar10"])
    yield "tiny-imagenet", [groups[name] for name in broad], {x for name in broad for x in groups[name]}
    yield "tiny-imagenet", [[x] for x in single], {x for name in single for x in groups[group_of[name]]}
    alike = {x for name in labels["cifar10"] for x in groups[group_of[name]]}
    yield "cifar10", [[x] for x in objects], (alike - labels["cifar10"]) | set(objects)
    if count in (3, 5):
        values = some(labels["coins"])
        yield "coins", [[x] for x in values], set(values)
    if count == 2:
        yield "hymenoptera", [["ants"], ["bees"]], set(groups["arthropod"])
        yield "brain-mri", [["no"], ["yes"]], {"no", "yes"}


def final_pairings(sets: dict[str, Images], number: int) -> Iterator[Pairing]:
    for name in FINAL_KNOWN:
        classes = [[label] for label in sorted(set(sets[name][1]))]
        drawn = draw(np.random.default_rng(1000 + number), sets[name], classes, FINAL_SIZE)
        strangers = {key: sets[key][0] for key in FINAL_STRANGERS}
        if name == "cats-dogs":
            photos, synsets = sets["imagenet-val-500"]
            strangers["imagenet-val-500"] = photos[synsets != SPRINGER]
        yield Pairing(name, *drawn, strangers)


def class_means(embeddings: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return np.stack([embeddings[ids == class_id].mean(axis=0) for class_id in range(ids.max() + 1)])


def fit_full(embeddings: np.ndarray, ids: np.ndarray, centered: float, shrunk: float | None) -> Score:
    unit = unit_length(embeddings.astype(np.float64))
    center = centered * unit.mean(axis=0)
    unit = unit_length(unit - center)
    means = class_means(unit, ids)
    within, freedom = unit - means[ids], max(1, len(unit) - len(means))
    shrunk = ledoit_wolf_shrinkage(within, assume_centered=True) if shrunk is None else shrunk
    _, scales, directions = np.linalg.svd(within, full_matrices=False)
    own, target = (1 - shrunk) * scales**2 / freedom, shrunk * (scales**2).sum() / freedom / unit.shape[1]
    scaled = directions.T * np.sqrt(own / (own + target))

    def score(tested: np.ndarray) -> np.ndarray:
        tested = unit_length(unit_length(tested) - center)
        outside = euclidean_distances(tested @ scaled, means @ scaled, squared=True)
        return (euclidean_distances(tested, means, squared=True) - outside).min(axis=1)

    return score


def fit_subspace(embeddings: np.ndarray, ids: np.ndarray) -> Score:
    unit = unit_length(embeddings.astype(np.float64))
    pca = PCA(min(256, max(1, (len(unit) - ids.max() - 1) // 2)), random_state=0).fit(unit)
    inside = pca.transform(unit)
    means = class_means(inside, ids)
    covariance = LedoitWolf(assume_centered=True).fit(inside - means[ids]).covariance_
    factor = np.linalg.cholesky(np.linalg.inv(covariance + 3e-5 * np.eye(len(covariance))))
    factor /= np.sqrt(len(covariance))  # comparable between folds, which have fewer components
    return lambda tested: euclidean_distances(pca.transform(unit_length(tested)) @ factor, means @ factor).min(axis=1)


def fit_neighbor(embeddings: np.ndarray, ids: np.ndarray) -> Score:
    return lambda tested: -(unit_length(tested) @ unit_length(embeddings).T).max(axis=1)


def fit_energy(embeddings: np.ndarray, ids: np.ndarray) -> Score:
    model = LogisticRegression(C=0.1, max_iter=200, tol=1e-3).fit(embeddings, ids)

    def score(tested: np.ndarray) -> np.ndarray:
        logits = model.decision_function(tested)
        return -logsumexp(np.stack([-logits, logits], axis=1) / 2 if logits.ndim == 1 else logits, axis=1)

    return score


def fit_vim(embeddings: np.ndarray, ids: np.ndarray) -> Score:
    energy, mean = fit_energy(embeddings, ids), embeddings.mean(axis=0)
    basis = np.linalg.svd(embeddings - mean, full_matrices=False)[2][: min(32, len(ids) // 2)]

    def outside(tested: np.ndarray) -> np.ndarray:
        return np.linalg.norm((tested - mean) - (tested - mean) @ basis.T @ basis, axis=1)

    scale = -energy(embeddings).mean() / outside(embeddings).mean()
    return lambda tested: scale * outside(tested) + energy(tested)


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], Score]] = {
    "**tl**": lambda embeddings, ids: fit_ood(embeddings, ids, ids.max() + 1).scores,
    "fully centered": partial(fit_full, centered=1.0, shrunk=0.95),
    "not centered": partial(fit_full, centered=0.0, shrunk=0.95),
    "not centered, Ledoit-Wolf": partial(fit_full, centered=0.0, shrunk=None),
    "subspace (before)": fit_subspace,
    "nearest neighbor": fit_neighbor,
    "ViM": fit_vim,
    "energy": fit_energy,
}


def cross_fitted_limit(method: str, pairing: Pairing) -> float:
    scores, ids = np.empty(len(pairing.ids)), pairing.ids
    for rest, held in find_folds(ids, [str(i) for i in range(len(ids))], [""] * len(ids), 10, seed=0):
        scores[held] = METHODS[method](pairing.train[rest], ids[rest])(pairing.train[held])
    return conformal_limit(scores.tolist(), 1 - FALSE_ALARM)


def measure(names: Iterable[str], pair: Callable[..., Iterator[Pairing]], limited: int) -> Iterator[Measured]:
    """Measure all methods on all pairings; false alarms in the first `limited` draws."""
    for backbone in BACKBONES:
        sets = embed(names, backbone)
        drawn = [(number, pairing) for number in range(DRAWS) for pairing in pair(sets, number)]
        for (number, pairing), method in itertools.product(drawn, METHODS):
            score = METHODS[method](pairing.train, pairing.ids)
            known, found = score(pairing.test), {}
            limit = cross_fitted_limit(method, pairing) if number < limited else math.nan
            for name, strangers in pairing.strangers.items():
                strange = score(strangers)
                value = roc_auc_score([0] * len(known) + [1] * len(strange), np.concatenate([known, strange]))
                found[name] = float(value), float((strange > limit).mean())
            yield pairing, method, found, [float((known > limit).mean())] if number < limited else []


def tune() -> None:
    found, alarms = defaultdict(list), defaultdict(list)
    for pairing, method, values, shares in measure((*TUNING_STRANGERS, "coins", "brain-mri"), tuning_pairings, 1):
        for column in (len(pairing.ids), "all"):
            alarms[method, column] += shares
            for kind in ("far", "near"):
                own = [value for name, (value, _) in values.items() if (name == pairing.known) == (kind == "near")]
                found[method, column, kind] += [np.mean(own)] if own else []
    columns = (*SIZES, "all")
    print_row("AUROC far / near", columns, is_head=True)
    for method in METHODS:
        means = [[np.mean(found[method, column, kind]) for kind in ("far", "near")] for column in columns]
        print_row(method, [f"{far:.3f} / {near:.3f}" for far, near in means])
    print_row("false alarms", columns, is_head=True)
    for method in METHODS:
        print_row(method, [shown_alarms(alarms[method, column]) for column in columns])


def final() -> None:
    found, alarms = defaultdict(list), defaultdict(list)
    for pairing, method, values, shares in measure((*FINAL_KNOWN, *FINAL_STRANGERS), final_pairings, DRAWS):
        alarms[method, pairing.known] += shares
        for name, both in values.items():
            found[method, pairing.known, name].append(both)
    for place in FINAL_KNOWN:
        print_row(place, (*FINAL_STRANGERS, "false alarms"), is_head=True)
        for method in METHODS:
            means = [np.mean(found[method, place, name], axis=0) for name in FINAL_STRANGERS]
            print_row(method, [f"{x:.3f} ({y:.0%})" for x, y in means] + [shown_alarms(alarms[method, place])])


def shown_alarms(shares: list[float]) -> str:
    return f"{np.mean(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"


def print_row(first: str, cells: Iterable[object], is_head: bool = False) -> None:
    row = "| " + " | ".join(map(str, (first, *cells))) + " |"
    print(f"\n{row}\n|" + "---|" * (row.count("|") - 1) if is_head else row, flush=True)


if __name__ == "__main__":
    {"tune": tune, "final": final}[sys.argv[1]]()
