"""Benchmark temperature scaling with few held-out images: log loss and calibration error of other images.

Logistic regressions on frozen features with too small, usual and too large C, three draws each. Rows: no temperature;
the fitted one; the fitted one if it lowers the cross-fitted log loss by more than one standard error (as tl does); both
shrunk towards 1 (the power n / (n + 20)). Last columns: share of cases in which the calibration error is worse by more
than 0.02 than without a temperature.

TL_SHARED=... python benchmarks/temperature.py [BACKBONE ...]
"""

import sys
import warnings
from collections import defaultdict

import numpy as np
from heads import embed, fit, scale_of

from tl.evaluation.calibration import fit_temperature, fit_useful_temperature, softmax
from tl.evaluation.metrics import expected_calibration_error

SETS, TRAIN_COUNTS, C_VALUES, DRAWS = ("brain-mri", "coins", "hymenoptera", "pacs-few"), (60, 150), (1e-3, 0.1, 10), 3
HELD_OUT, LEAST_TEST, SHRINKAGE = (12, 24, 48, 100, 200), 60, 20
Case = tuple[float, float]


def main() -> None:
    warnings.simplefilter("ignore")  # a large C converges slowly
    found: dict[tuple[int, str], list[Case]] = defaultdict(list)
    for backbone in sys.argv[1:] or ("efficientnet_lite0", "mobilenet_v2"):
        for name in SETS:
            parts = embed(name, backbone)
            features, ids = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
            for seed in range(DRAWS):
                draw(features, ids, seed, found)
    counts = [f"{n}" for n in HELD_OUT]
    print("| temperature | " + " | ".join(f"{n} images" for n in counts) + " | worse |")
    print("|---|" + "---|" * (len(counts) + 1))
    for way in dict.fromkeys(way for _, way in found):
        means = [np.mean(found[n, way], axis=0) for n in HELD_OUT]
        worse = [
            np.mean([a[1] > b[1] + 0.02 for a, b in zip(found[n, way], found[n, "none"], strict=False)])
            for n in HELD_OUT
        ]
        shown = " | ".join(f"{loss:.3f}, {error:.3f}" for loss, error in means)
        print(f"| {way} | {shown} | {', '.join(f'{share.mean():.0%}' for share in worse)} |")


def draw(features: np.ndarray, ids: np.ndarray, seed: int, found: dict[tuple[int, str], list[Case]]) -> None:
    shift, scale = scale_of(features, "halfway")
    order, features = np.random.default_rng(seed).permutation(len(ids)), (features - shift) / scale
    for count in TRAIN_COUNTS:
        train, rest = order[:count], order[count:]
        if len(set(ids[train])) < len(set(ids)):
            continue
        for c in C_VALUES:
            logits = np.log(np.maximum(fit(features[train], ids[train], c).predict_proba(features[rest]), 1e-12))
            for n in HELD_OUT:
                if n + LEAST_TEST <= len(rest):
                    judge(logits, ids[rest], n, found)


def judge(logits: np.ndarray, ids: np.ndarray, n: int, found: dict[tuple[int, str], list[Case]]) -> None:
    fitted, useful = (way(logits[:n], ids[:n]) for way in (fit_temperature, fit_useful_temperature))
    shrunk = n / (n + SHRINKAGE)
    ways = {
        "none": 1.0,
        "fitted": fitted,
        "useful": useful,
        "fitted, shrunk": fitted**shrunk,
        "useful, shrunk": useful**shrunk,
    }
    for way, temperature in ways.items():
        probabilities, truth = softmax(logits[n:], temperature), ids[n:]
        loss = -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-12)).mean()
        right = probabilities.argmax(axis=1) == truth
        found[n, way].append((float(loss), expected_calibration_error(right, probabilities.max(axis=1))))


if __name__ == "__main__":
    main()
