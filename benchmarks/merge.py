"""Compare three heads on one frozen MobileNetV2, separate and merged into one file: size, time, and output differences.

    TL_SHARED=... TL_WEIGHTS_DIR=$TL_SHARED/weights python benchmarks/merge.py OUT

Trains, exports and merges with the user-facing commands, then times onnxruntime on the files in alternation.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from tl.runtime.devices import processor_model
from tl.runtime.predictor import load
from tl.runtime.session import Session
from tl.runtime.sources.paths import find_images

DATA = Path(os.environ["TL_SHARED"]) / "data" / "pacs-cartoon"
HEADS = {"steps": (), "lbfgs": ("--optimizer", "lbfgs"), "svm": ("--head", "svm")}
ROUNDS, BATCH, THREADS = 9, 8, 2


def tl(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "tl", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def build(out: Path) -> tuple[list[Path], Path]:
    models = []
    for name, options in HEADS.items():
        run, model = out / name, out / f"{name}.onnx"
        if not model.is_file():
            tl("train", DATA / "splits.csv", "--method", "features", *options, "--out", run, "--no-report")
            tl("export", run, "-o", model)
        models.append(model)
    tl("merge", *models, "-o", out / "merged.onnx")
    return models, out / "merged.onnx"


def milliseconds(sessions: list[Session], images: np.ndarray, outputs: list[str]) -> float:
    started = time.perf_counter()
    for session in sessions:
        session.run(images, outputs)
    return (time.perf_counter() - started) * 1000


def main() -> None:
    out = Path(sys.argv[1])
    models, merged = build(out)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3)).astype(np.uint8)
    open_as = {"one model": models[:1], "three apart": models, "merged": [merged]}
    sessions = {
        name: [Session(path, device="cpu", threads=THREADS) for path in paths] for name, paths in open_as.items()
    }
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(ROUNDS + 1):  # the first round is a warm-up
        for name, own in sessions.items():
            outputs = ["probabilities", "label"] if name == "merged" else ["probabilities"]
            times[name].append(milliseconds(own, images, outputs))
    one = median(times["one model"][1:])
    print(f"{processor_model()}, {THREADS} threads, batches of {BATCH}, {ROUNDS} rounds in turns")
    for name, paths in open_as.items():
        taken = sorted(times[name][1:])
        size = sum(path.stat().st_size for path in paths) / 1e6
        shown = f"{median(taken):6.1f} ms ({taken[0]:.1f} to {taken[-1]:.1f}), {median(taken) / one:.2f} x"
        print(f"{name:12} {shown}, {size:.1f} MB")
    paths = find_images([DATA]).paths[::10]
    with load(models, device="cpu") as apart, load([merged], device="cpu") as together:
        pairs = list(zip(apart.predict_batch(paths), together.predict_batch(paths), strict=True))
    worst = max(float(np.abs(a.probabilities - b.probabilities).max()) for a, b in pairs)
    alike = sum(a.label == b.label for a, b in pairs)
    print(f"{len(pairs)} images: probabilities differ by {worst:.1e} at most, {alike} labels alike")


if __name__ == "__main__":
    main()
