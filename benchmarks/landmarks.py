"""Benchmark landmarks on three sets of photos: heatmap against regression, full training against a frozen backbone;
epoch times on large photos; a set with missing points. Each cell is one `tl train`; finished cells are not run again.

    TL_SHARED=... python benchmarks/landmarks.py runs/landmarks [flywing] [mollusk] [reaching]
"""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

SHARED = Path(os.environ["TL_SHARED"])
DATA = SHARED / "data"
WINGS, SHELLS = DATA / "flywing-landmarks" / "landmarks.csv", DATA / "mollusk-landmarks" / "landmarks.csv"
HEADS = {"heatmap": ["--head", "heatmap"], "regress": ["--head", "linear"], "regress-mlp": ["--head", "mlp"]}
SIZE = ["--image-size", "256"]
FREEZE = {"unfrozen": [], "half": ["--freeze", "half"], "frozen": ["--freeze", "all"]}


def flywing():
    for head, chosen in HEADS.items():
        for freeze, how in FREEZE.items():
            if (head, freeze) == ("regress-mlp", "half"):
                continue
            yield f"flywing-{head}-{freeze}", [str(WINGS), "--test", *SIZE, "--epochs", "60", *chosen, *how]
    yield "flywing-heatmap-default", [str(WINGS), "--test", *SIZE]


def mollusk():
    yield "mollusk-heatmap", [str(SHELLS), "--test", *SIZE]


def reaching():
    (labels,) = DATA.glob("dlc-reaching/**/CollectedData*.csv")
    yield "reaching-heatmap", [str(labels), *SIZE]


def main(out: Path, parts: list[str]) -> None:
    sets = {"flywing": flywing, "mollusk": mollusk, "reaching": reaching}
    cells = [cell for part in parts for cell in sets[part]()]
    for name, options in cells:
        if not (out / name / "metrics.json").is_file():
            run(out, name, options)
    print("| cell | val, px | test, px (95%) | input px | mse of a coordinate | of extent | PCK 5% | epochs, s |")
    print("|---|---|---|---|---|---|---|---|")
    for name, _ in cells:
        print(row(out, name))


def run(out: Path, name: str, options: list[str]) -> None:
    env = {**os.environ, "TL_WEIGHTS_DIR": str(SHARED / "weights")}
    started = time.perf_counter()
    command = [sys.executable, "-m", "tl", "train", *options, "--out", str(out / name)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    print(f"{name}: {time.perf_counter() - started:.0f} s, exit {done.returncode}, {last[:150]}", file=sys.stderr)


def row(out: Path, name: str) -> str:
    path = out / name / "metrics.json"
    if not path.is_file():
        return f"| {name} | failed | | | | | | |"
    metrics = json.loads(path.read_text())
    scored = metrics.get("test") or metrics["val"]
    with (out / name / "history.csv").open() as stream:
        seconds = [float(line["seconds"]) for line in csv.DictReader(stream)]
    error = f"{scored['error_px']:.2f} ({scored['ci_low']:.2f} to {scored['ci_high']:.2f})"
    inner = f"{scored['error_input_px']:.2f} | {scored['mse_input_px']:.2f} | {scored['extent_error']:.2%}"
    inner += f" | {scored['pck']['0.05']:.3f}"
    times = f"{seconds[0]:.1f} first, {seconds[1]:.1f} second"
    return f"| {name} | {metrics['val']['error_px']:.2f} | {error} | {inner} | {times}, {len(seconds)} epochs |"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or ["flywing", "mollusk", "reaching"])
