"""Benchmark cached features: the cold pass against its bound, a second head on a warm cache, and thirty heads at once.

TL_SHARED=... python benchmarks/features.py
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tl.data.manifests import read_images
from tl.progress import Silent
from tl.runtime.devices import usable_cores
from tl.runtime.imaging.pipeline import load_working
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.runtime.prefetch import prefetch_map
from tl.runtime.session import Session
from tl.trainer.config import TrainConfig
from tl.trainer.train import train

SHARED = Path(os.environ["TL_SHARED"])
os.environ["TL_WEIGHTS_DIR"] = str(SHARED / "weights")
CARTOONS = str(SHARED / "data" / "pacs-cartoon" / "splits.csv")
ROUNDS = 5
# Thirty heads: ten logistic regressions, eight SVMs, twelve linear heads trained by steps.
TRIES = (
    "head=linear c=0.0003,0.001,0.003,0.01,0.03,0.1,0.3,1,3,10",
    "head=svm c=0.00003,0.0001,0.0002,0.0003,0.0005,0.001,0.002,0.003",
    "head=linear optimizer=adamw,adam,sgd lr=0.0003,0.001,0.003,0.01",
)


class Clock(Silent):
    """Records the seconds of each task."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, float]] = []

    def start(self, task: str, total: int, unit: str) -> None:
        self.begun.append((task, time.perf_counter()))

    def seconds(self, task: str) -> float:
        ends = [moment for _, moment in self.begun[1:]]
        return sum(end - start for (name, start), end in zip(self.begun, ends, strict=False) if name == task)


def cold(folder: Path) -> None:
    preprocessing = build_preprocessing((224, 224))
    paths = [image.path for image in read_images(CARTOONS)]
    decodes, forwards, passes, prepared = [], [], [], 0.0
    for i in range(3):
        started = time.perf_counter()
        decoded = prefetch_map(lambda path: load_working(path, preprocessing), paths, workers=usable_cores(), ahead=16)
        inputs = np.stack(list(decoded))
        decodes.append(time.perf_counter() - started)
        os.environ["TL_CACHE_DIR"] = str(folder / f"cold{i}")
        clock = Clock()
        config = TrainConfig(data=CARTOONS, method="features", out=str(folder / f"run{i}"))
        train(config, clock)
        passes.append(clock.seconds("reading images") + clock.seconds("computing features"))
        prepared = clock.seconds("preparing the backbone")
        graph = next((folder / f"cold{i}").rglob("trunk.onnx"))
        session = Session(graph, device="cpu", require_contract=False)
        started = time.perf_counter()
        for start in range(0, len(inputs), 32):
            session.run(inputs[start : start + 32], ("features",))
        forwards.append(time.perf_counter() - started)
    n = len(paths)
    for name, seconds in (("decode and resize", decodes), ("bare forward, onnxruntime", forwards)):
        middle, least, most = (n / s for s in (statistics.median(seconds), max(seconds), min(seconds)))
        print(f"{name}: {middle:.0f} images/s ({least:.0f} to {most:.0f})")
    bounds = [d + f for d, f in zip(decodes, forwards, strict=True)]
    ratios = [b / p for b, p in zip(bounds, passes, strict=True)]
    print(f"cold pass: {n / statistics.median(passes):.0f} images/s, {statistics.median(passes):.1f} s")
    print(f"cold pass / bound: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"once for each backbone: {prepared:.1f} s to make its graph")


def warm(folder: Path) -> None:
    tl = [sys.executable, "-m", "tl"]
    for head in ("linear", "svm", "mlp"):
        seconds = []
        for i in range(ROUNDS):
            command = [*tl, "train", CARTOONS, "--method", "features", "--head", head]
            seconds.append(wall([*command, "--test", "--out", str(folder / f"{head}{i}")]))
        middle, least, most = statistics.median(seconds), min(seconds), max(seconds)
        print(f"warm, head {head}, whole command: {middle:.2f} s ({least:.2f} to {most:.2f})")
    tries = [part for text in TRIES for part in ("--try", text)]
    print(f"thirty heads: {wall([*tl, 'probe', CARTOONS, '--folds', '0', *tries]):.1f} s")


def wall(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        cold(Path(name))
        warm(Path(name))
