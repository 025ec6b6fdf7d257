"""Benchmark scratch, frozen and fine-tuned networks with SGD and Adam, on the full and few-shot splits of PACS cartoon,
and SGD, Adam and RMSprop on cats and dogs. Each cell is one `tl train`; finished cells are not run again.

    TL_SHARED=... python benchmarks/methods.py runs/methods
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

SHARED = Path(os.environ["TL_SHARED"])
CARTOONS, PETS = SHARED / "data" / "pacs-cartoon" / "splits.csv", SHARED / "data" / "cats-dogs"
BACKBONES = ("mobilenet_v2", "squeezenet1_0")
# Epochs per split: (fine-tuning, scratch). Small training sets need more epochs.
EPOCHS = {"fewshot_split": (15, 15), "split": (3, 6)}


def main(out: Path) -> None:
    few, full = ([few_and_full(split, backbone) for backbone in BACKBONES] for split in EPOCHS)
    cells = [cell for part in (*few, pets(), *full) for cell in part]
    for name, options in cells:
        if not (out / name / "metrics.json").is_file():
            run(out, name, options)
    print("| cell | val top-1 | test top-1 (95%) | macro F1 | training s |\n|---|---|---|---|---|")
    for name, _ in cells:
        print(row(out, name))


def few_and_full(split: str, *backbones: str):
    fine, scratch = EPOCHS[split]
    data = [str(CARTOONS), "--split-column", split, "--test"]
    stepped = ["--batch-size", "16"]
    for backbone in backbones:
        base = [*data, "--backbone", backbone]
        for head in ("linear", "svm"):
            yield f"{split}-{backbone}-features-{head}", [*base, "--method", "features", "--head", head]
        for optimizer in ("sgd", "adam"):
            chosen = ["--optimizer", optimizer]
            for head in ("linear", "mlp"):
                options = ["--method", "features", "--head", head, *chosen]
                yield f"{split}-{backbone}-features-{head}-{optimizer}", [*base, *options]
            for freeze in ("half", "all-but-bn", "none"):
                if freeze == "all-but-bn" and backbone == "squeezenet1_0":
                    continue  # it has no batch norm
                options = ["--freeze", freeze, "--epochs", str(fine), *stepped, *chosen]
                if (freeze, optimizer) == ("all-but-bn", "adam"):
                    options += ["--lr", "0.001"]  # batch norm and head alone train too slowly at the default of 0.0001
                yield f"{split}-{backbone}-freeze-{freeze}-{optimizer}", [*base, *options]
            options = ["--method", "scratch", "--epochs", str(scratch), *stepped, *chosen]
            yield f"{split}-{backbone}-scratch-{optimizer}", [*base, *options]


def pets():
    for optimizer in ("sgd", "adam", "rmsprop"):
        yield f"pets-mobilenet_v2-{optimizer}", [str(PETS), "--optimizer", optimizer, "--epochs", "6"]


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
        return f"| {name} | failed | | | |"
    metrics = json.loads(path.read_text())
    test = metrics.get("test")
    shown = f"{test['top1_accuracy']:.3f} ({test['ci_low']:.3f} to {test['ci_high']:.3f})" if test else "not scored"
    f1 = f"{(test or metrics['val'])['macro_f1']:.3f}"
    return f"| {name} | {metrics['val']['top1_accuracy']:.3f} | {shown} | {f1} | {metrics['train_seconds']:.0f} |"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
