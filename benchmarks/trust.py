"""Evaluate out-of-distribution scores and prediction sets of model files, on images that were not used to fit them.

    TL_SHARED=... python benchmarks/trust.py MODEL.onnx ...

Expects model files exported from runs on PACS cartoon (`split`). Out-of-distribution: its test images against those of
tiny-imagenet and of cats and dogs, by the file's `ood_score` and by one minus the largest probability. Coverage: on the
test split.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from tl.data.manifests import read_images
from tl.evaluation.metrics import wilson_interval
from tl.runtime.ensembles.selective import SelectivePrediction
from tl.runtime.predictor import load
from tl.runtime.results import Classification
from tl.runtime.sources.paths import find_images

DATA = Path(os.environ["TL_SHARED"]) / "data"
STRANGERS = {"tiny-imagenet": ("tiny-imagenet/val", 4), "cats-dogs": ("cats-dogs/val", 1)}  # every 4th, every image
COVERAGES = (0.9, 0.95, 0.99)


def predict(model: str, paths: list[str], coverage: float) -> list[Classification]:
    with load(model, device="cpu", selective=SelectivePrediction(coverage=coverage, reject_unknown=True)) as predictor:
        return [result for result in predictor.predict_iter(paths) if isinstance(result, Classification)]


def main() -> None:
    images = [p for p in read_images(str(DATA / "pacs-cartoon" / "splits.csv"), say=print) if p.split == "test"]
    strangers = {name: find_images([DATA / place]).paths[::step] for name, (place, step) in STRANGERS.items()}
    for model in sys.argv[1:]:
        print(model)
        paths = [image.path for image in images]
        known = predict(model, paths, COVERAGES[0])
        alarms = sum("unknown" in result.reason for result in known)
        print(f"  own test images called unknown: {alarms / len(known):.1%} of {len(known)}")
        for name, theirs in strangers.items():
            found = predict(model, theirs, COVERAGES[0])
            is_strange = [0] * len(known) + [1] * len(found)
            both = [*known, *found]
            by_score = roc_auc_score(is_strange, [result.ood_score for result in both])
            by_confidence = roc_auc_score(is_strange, [1 - result.confidence for result in both])
            caught = np.mean([result.label == "?" for result in found])
            shown = (
                f"AUROC {by_score:.3f}, by confidence {by_confidence:.3f}; {caught:.1%} of {len(found)} called unknown"
            )
            print(f"  {name}: {shown}")
        for coverage in COVERAGES:
            results = predict(model, paths, coverage)
            held = [p.label in (r.class_set or ()) for p, r in zip(images, results, strict=True)]
            low, high = wilson_interval(sum(held), len(held))
            size = np.mean([len(result.class_set or ()) for result in results])
            print(f"  coverage {coverage}: {np.mean(held):.1%} ({low:.1%} to {high:.1%}), {size:.2f} classes a set")


if __name__ == "__main__":
    main()
