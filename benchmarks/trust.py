"""Evaluate out-of-distribution scores and prediction sets of model files, on images that were not used to fit them.

    TL_SHARED=... python benchmarks/trust.py draw OUT
    TL_SHARED=... python benchmarks/trust.py MANIFEST MODEL.onnx [MANIFEST MODEL.onnx ...]

`draw` writes three manifests each of cats and dogs and of PACS cartoon: 200 training images, the same number of each
class, and up to 100 test images of each. Known are the test images of a manifest. Out-of-distribution: the file's
`ood_score` and one minus the largest probability, against images of other sets, without classes that are also known.
Coverage: on the test images. Last, the mean and the range over all models.
"""

import csv
import os
import random
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from ood import SPRINGER, read_groups, write_noise
from sklearn.metrics import roc_auc_score

from tl.data.manifests import read_images
from tl.errors import ModelFileError
from tl.evaluation.metrics import wilson_interval
from tl.runtime.ensembles.selective import SelectivePrediction
from tl.runtime.predictor import load
from tl.runtime.results import Classification
from tl.runtime.sources.paths import find_images

DATA = Path(os.environ["TL_SHARED"]) / "data"
# Set -> folder, every how many images.
STRANGERS = {
    "imagenet-val-500": ("imagenet-val-500", 2),
    "flywing-landmarks": ("flywing-landmarks", 1),
    "coins": ("coins/test", 1),
    "brain-mri": ("brain-mri", 1),
    "tiny-imagenet": ("tiny-imagenet/val", 4),
}
COVERAGES = (0.9, 0.95, 0.99)


def draw(out: Path) -> None:
    out.mkdir(exist_ok=True, parents=True)
    for name in ("cats-dogs", "pacs-cartoon"):
        by_label = defaultdict(list)
        for path in sorted((DATA / name).rglob("*.jpg")):
            by_label[path.parent.name].append(path)
        count = 200 // len(by_label)
        for seed in range(3):
            rng, rows = random.Random(seed), [("path", "label", "split")]
            for label, paths in sorted(by_label.items()):
                drawn = [str(path) for path in paths]
                rng.shuffle(drawn)
                rows += [(path, label, "train") for path in drawn[:count]]
                rows += [(path, label, "test") for path in drawn[count : count + 100]]
            with (out / f"{name}-{seed}.csv").open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows(rows)


def list_strangers(labels: set[str], noise: Path) -> dict[str, list[str]]:
    """Images of other sets, without dogs, cats and elephants if they are known."""
    groups = read_groups()
    groups |= {"dog": [*groups["dog"], SPRINGER], "elephant": ["n02504458"]}
    known = {synset for label in labels for synset in groups.get(label.removesuffix("s"), ())}
    found = {}
    for name, (place, step) in STRANGERS.items():
        paths = find_images([DATA / place]).paths
        found[name] = [path for path in paths if Path(path).parent.name not in known][::step]
    return {**found, "noise": find_images([noise]).paths}


def predict(model: str, paths: list[str], coverage: float) -> list[Classification]:
    with load(model, device="cpu", selective=SelectivePrediction(coverage=coverage, reject_unknown=True)) as predictor:
        return [result for result in predictor.predict_iter(paths) if isinstance(result, Classification)]


def evaluate(manifest: str, model: str, noise: Path) -> dict[str, list[float]]:
    """Print a model's figures, and return them."""
    print(model)
    images = [image for image in read_images(manifest) if image.split == "test"]
    labels, paths = {image.label for image in images}, [image.path for image in images]
    known = predict(model, paths, COVERAGES[0])
    alarms = float(np.mean([result.label == "?" for result in known]))
    figures = {"false alarms": [alarms]}
    print(f"  own test images called unknown: {alarms:.1%} of {len(known)}")
    for name, theirs in list_strangers(labels, noise).items():
        found = predict(model, theirs, COVERAGES[0])
        is_strange, both = [0] * len(known) + [1] * len(found), [*known, *found]
        by_score = float(roc_auc_score(is_strange, [result.ood_score for result in both]))
        by_confidence = float(roc_auc_score(is_strange, [1 - result.confidence for result in both]))
        caught = float(np.mean([result.label == "?" for result in found]))
        figures[name] = [by_score, by_confidence, caught]
        shown = f"AUROC {by_score:.3f}, by confidence {by_confidence:.3f}"
        print(f"  {name}: {shown}; {caught:.1%} of {len(found)} called unknown", flush=True)
    for coverage in COVERAGES:
        try:
            results = predict(model, paths, coverage)
        except ModelFileError as error:  # too few held-out images
            print(f"  {error}")
            continue
        held = [p.label in (r.class_set or ()) for p, r in zip(images, results, strict=True)]
        low, high = wilson_interval(sum(held), len(held))
        size = float(np.mean([len(result.class_set or ()) for result in results]))
        print(f"  coverage {coverage}: {np.mean(held):.1%} ({low:.1%} to {high:.1%}), {size:.2f} classes a set")
        figures[f"coverage {coverage}"] = [float(np.mean(held)), size]
    return figures


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as noise:
        write_noise(Path(noise))
        pairs = zip(arguments[::2], arguments[1::2], strict=True)
        figures = [evaluate(manifest, model, Path(noise)) for manifest, model in pairs]
    print("mean and range of all models")
    for name in [name for name in figures[0] if all(name in each for each in figures)]:
        columns = zip(*(each[name] for each in figures), strict=True)
        print(f"  {name}: " + "; ".join(f"{np.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in columns))


if __name__ == "__main__":
    if sys.argv[1] == "draw":
        draw(Path(sys.argv[2]))
    else:
        main(sys.argv[1:])
