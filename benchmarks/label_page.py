"""How many labels `tl label` needs: a labeler in Chromium at the real page, beside random choice and all labels.

The images that are not for testing become a folder without labels, under meaningless names. For each seed, a session
labels a share of them through the page and makes a model there; beside it, as many labels of randomly chosen images.
Both models, and the one of all labels, are scored on the test images by `tl evaluate`. All heads are linear, on frozen
features of the default backbone.

    TL_SHARED=... python benchmarks/label_page.py OUT [--share 0.2] [--seeds 5] [--shots FOLDER] pacs-cartoon cats-dogs

Needs node, npm and chromium. Prints one CSV row a model; `OUT` keeps folders, tables and runs.
"""

import argparse
import csv
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from defaults import list_images

TL = [sys.executable, "-m", "tl"]
COLUMNS = ("set", "method", "seed", "labels", "share", "top1_accuracy", "estimate", "low", "high", "random_labels",
           "press_p50_ms", "press_p95_ms", "seconds")  # fmt: skip


def run(*args: object) -> str:
    """Run `tl` and return its stdout."""
    return subprocess.run([*TL, *map(str, args)], check=True, stdout=subprocess.PIPE, text=True).stdout


def write_table(path: Path, rows: list[tuple[Path, str]]) -> Path:
    """Write a CSV of labels with absolute paths."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("path", "label"), *rows])
    return path


def copy_pool(name: str, folder: Path) -> dict[str, tuple[Path, str]]:
    """Copy the images that are not for testing to `folder`; returns file name -> (path, label)."""
    folder.mkdir(parents=True, exist_ok=True)
    pool = {}
    for path, label, split in list_images(name):
        if split != "test":
            copy = folder / (hashlib.sha256(path.encode()).hexdigest()[:12] + Path(path).suffix.lower())
            shutil.copyfile(path, copy)
            pool[copy.name] = (copy, label)
    return pool


def score(model: Path, test: Path) -> float:
    """The accuracy of a model file on the test images."""
    found = json.loads(run("evaluate", test, "--model", model, "--json"))
    rows = found if isinstance(found, list) else [found]
    return float(rows[0].get("top1_accuracy", rows[0].get("test", {}).get("top1_accuracy")))


def train_on(table: Path, folder: Path) -> Path:
    """Train a head on a table's labels; returns the model file."""
    run("train", table, "--method", "features", "--out", folder / "run", "--no-report")
    run("export", folder / "run", "-o", folder / "model.onnx", "--no-unknown")
    return folder / "model.onnx"


def label_by_page(
    folder: Path, pool: dict[str, tuple[Path, str]], budget: int, seed: int, npm: Path, shots: str
) -> Any:
    """Label `budget` images through the page; returns what label_page.mjs prints."""
    classes = sorted({label for _, label in pool.values()})
    photos = next(iter(pool.values()))[0].parent
    command = ["label", photos, "--classes", ",".join(classes), "-o", folder / "labels.csv", "--seed", seed]
    server = subprocess.Popen(
        [*TL, *map(str, command), "--no-browser", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["link"]
        answers = {name: classes.index(label) + 1 for name, (_, label) in pool.items()}
        job = {"npm": str(npm), "chromium": shutil.which("chromium"), "url": url, "answers": answers, "budget": budget,
               "pace": 10, "shots": shots}  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        driver = ["node", str(Path(__file__).with_name("label_page.mjs")), str(folder / "job.json")]
        return json.loads(subprocess.run(driver, check=True, stdout=subprocess.PIPE, text=True).stdout)
    finally:
        server.terminate()
        server.wait()


def measure(name: str, out: Path, share: float, seeds: int, npm: Path, shots: str) -> None:
    """Print the rows of one data set."""
    base = out / name
    pool = copy_pool(name, base / "photos")
    test = write_table(
        base / "test.csv", [(Path(p), label) for p, label, split in list_images(name) if split == "test"]
    )
    budget = int(share * len(pool))
    print_row = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n").writerow
    whole = write_table(base / "all.csv", sorted(pool.values()))
    full = {"set": name, "method": "all labels", "labels": len(pool), "share": 1.0}
    print_row(full | {"top1_accuracy": round(score(train_on(whole, base / "all"), test), 4)})
    for seed in range(seeds):
        folder = base / f"page-{seed}"
        folder.mkdir()
        found = label_by_page(folder, pool, budget, seed, npm, shots and f"{shots}/{name}-{seed}")
        estimate = found["estimate"] or {}
        row = {"set": name, "method": "tl label", "seed": seed, "labels": found["labels"], "share": share}
        row |= {
            "top1_accuracy": round(score(Path(found["model"]["file"]), test), 4),
            "seconds": round(found["seconds"]),
        }
        row |= {"press_p50_ms": found["press_ms"][0], "press_p95_ms": found["press_ms"][1]}
        row |= {"estimate": estimate.get("accuracy"), "low": estimate.get("low"), "high": estimate.get("high")}
        print_row(row | {"random_labels": estimate.get("n")})
        chosen = np.random.default_rng(seed).permutation(sorted(pool))[:budget]
        drawn = write_table(base / f"random-{seed}.csv", [pool[str(one)] for one in chosen])
        row = {"set": name, "method": "random", "seed": seed, "labels": budget, "share": share}
        print_row(row | {"top1_accuracy": round(score(train_on(drawn, base / f"random-{seed}"), test), 4)})
        sys.stdout.flush()


def main() -> None:
    """Read the arguments and measure each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="new folder for everything that is made")
    parser.add_argument("sets", nargs="+", help="data sets below $TL_SHARED/data")
    parser.add_argument("--share", type=float, default=0.2, help="share of the images that is labeled")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--npm", type=Path, help="folder in which playwright-core was installed by npm")
    parser.add_argument("--shots", default="", help="folder for screenshots while labeling")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    npm = args.npm or args.out / "npm"
    if args.npm is None:
        npm.mkdir()
        subprocess.run(["npm", "install", "--prefix", npm, "playwright-core@1.65.1"], check=True, stdout=sys.stderr)
    csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n").writeheader()
    for name in args.sets:
        measure(name, args.out.resolve(), args.share, args.seeds, npm.resolve(), args.shots)


if __name__ == "__main__":
    main()
