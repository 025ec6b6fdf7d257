"""Several labels at once, on collages of four cartoons: `tl` against scikit-learn's OneVsRestClassifier.

    TL_SHARED=... python benchmarks/multilabel.py OUT [--finetune]

Trains and exports with the user-facing commands. Training collages are made of training images, the others of other
images. A share of the training labels is unknown; scikit-learn has to take these for absent.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import average_precision_score, f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tl.data.label_sets import label_matrix, read_label_sets
from tl.data.manifests import ManifestColumns
from tl.evaluation.multilabel import missed_share
from tl.runtime.imaging.pipeline import load_input
from tl.runtime.predictor import load_multilabel
from tl.runtime.session import Session
from tl.trainer.defaults import C_VALUES

DATA = Path(os.environ["TL_SHARED"]) / "data" / "pacs-cartoon"
COUNTS, TILE, UNKNOWN = {"train": 320, "test": 400}, 150, 0.15


def write_collages(folder: Path) -> tuple[Path, list[str]]:
    """Collages of 2x2 images of one to four classes. Returns the table of labels and their names."""
    rng = np.random.default_rng(0)
    rows = list(csv.DictReader((DATA / "splits.csv").open(encoding="utf-8")))
    names = sorted({row["label"] for row in rows})
    folder.mkdir(parents=True, exist_ok=True)
    lines = [["path", "split", *names]]
    for split, count in COUNTS.items():
        own = {name: [r["path"] for r in rows if (r["split"] == "train") == (split == "train") and r["label"] == name]
               for name in names}  # fmt: skip
        shares = np.array([len(paths) for paths in own.values()], float)
        for number in range(count):
            chosen = rng.choice(len(names), rng.integers(1, 5), replace=False, p=shares / shares.sum())
            page = Image.new("RGB", (2 * TILE, 2 * TILE))
            for place, c in enumerate(rng.permutation(np.resize(chosen, 4))):
                with Image.open(DATA / rng.choice(own[names[c]])) as image:
                    tile = image.convert("RGB").resize((TILE, TILE))
                page.paste(tile, (place % 2 * TILE, place // 2 * TILE))
            page.save(folder / f"{split}{number:03}.png")
            cells = [str(int(c in chosen)) for c in range(len(names))]
            if split == "train":
                cells = ["" if rng.random() < UNKNOWN else cell for cell in cells]
                cells = cells if any(cells) else ["1" if c in chosen else "" for c in range(len(names))]
            lines.append([f"{split}{number:03}.png", split, *cells])
    table = folder / "labels.csv"
    with table.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(lines)
    return table, names


def tl(*words: object) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "tl", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def scores(probabilities: NDArray[np.floating], decided: NDArray[np.bool_], true: NDArray[np.floating]) -> str:
    average = average_precision_score(true, probabilities, average="macro")
    macro, micro = (f1_score(true, decided, average=how, zero_division=0) for how in ("macro", "micro"))
    return f"mAP {average:.3f}, macro F1 {macro:.3f}, micro F1 {micro:.3f}"


def embeddings(model: Path, paths: list[str]) -> NDArray[np.float32]:
    session = Session(model, device="cpu", threads=2)
    contract = session.contract
    assert contract is not None
    inputs = np.stack([load_input(path, contract.preprocessing) for path in paths])
    parts = [session.run(inputs[i : i + 16], ["embedding"])[0] for i in range(0, len(inputs), 16)]
    return np.concatenate(parts)


def report(model: Path, what: str, paths: list[str], true: NDArray[np.floating]) -> None:
    with load_multilabel(model, device="cpu", coverage=0.9) as predictor:
        found = predictor.predict_batch(paths)
    names = found[0].class_names
    probabilities = np.stack([result.probabilities for result in found])
    decided, sets = (
        np.array([[name in getattr(result, field) for name in names] for result in found])
        for field in ("labels", "label_set")
    )
    print(f"{what}, own thresholds: {scores(probabilities, decided, true)}")
    print(f"{what}, threshold 0.5: {scores(probabilities, probabilities >= 0.5, true)}")
    missed, size = missed_share(sets, true), sets.sum(axis=1).mean()
    shown = f"{missed:.1%} of the labels missed, {size:.2f} labels a set"
    print(f"{what}, sets for 0.9: {shown}, {true.sum(axis=1).mean():.2f} true")


def main() -> None:
    out = Path(sys.argv[1])
    table, names = write_collages(out / "collages")
    targets = [word for name in names for word in ("--target", name)]
    _, images = read_label_sets(str(table), ManifestColumns(targets=tuple(names)), print)
    test = [image for image in images if image.split == "test"]
    paths, true = [image.path for image in test], label_matrix(test, names)
    methods = ("features", "finetune") if "--finetune" in sys.argv else ("features",)
    for method in methods:
        run, model = out / method, out / f"{method}.onnx"
        if not model.is_file():
            seconds = tl(
                "train", table, "--task", "multilabel", *targets, "--method", method, "--out", run, "--no-report"
            )
            print(f"{method}: {seconds:.0f} s")
            tl("export", run, "-o", model)
        report(model, f"tl {method}", paths, true)
    train = [image for image in images if image.split == "train"]
    known = label_matrix(train, names)
    own = embeddings(out / "features.onnx", [image.path for image in train])
    others = embeddings(out / "features.onnx", paths)
    for what, base in {
        "raw features": LogisticRegression(max_iter=1000),
        "standardized features": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        "raw features, C by cross-validation": LogisticRegressionCV(
            Cs=list(C_VALUES["linear"]), cv=5, scoring="neg_log_loss", max_iter=1000
        ),
    }.items():
        judged = OneVsRestClassifier(base).fit(own, np.nan_to_num(known)).predict_proba(others)
        print(f"scikit-learn, {what}, threshold 0.5: {scores(judged, judged >= 0.5, true)}")


if __name__ == "__main__":
    main()
