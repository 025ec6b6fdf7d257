"""Benchmark the default of `tl train` beside its own methods and beside what people use instead, with the same weights.

Sets of $TL_SHARED/data, whole and with 10, 20 and 50 images per class, three seeds. Methods:

- default, features, finetune: `tl train`, without `--method` and with it;
- before: `tl train --method finetune` of the checkout in $TL_BEFORE;
- sklearn: logistic regression on features of the frozen backbone, C by 5-fold cross-validation, fitted to all images;
- plain: a bare loop, AdamW at 2e-4 for 10 epochs over all images, random resized crops and flips;
- fastai: fine_tune(10) with its defaults and a fifth held out (run with the Python of benchmarks/peers.sh).

Every result is one file in OUT; finished ones are not run again. Two processes run at once, with one thread each.

    TL_SHARED=... TL_BEFORE=... python benchmarks/defaults.py run OUT BACKBONE SEEDS METHOD...
    python benchmarks/defaults.py table OUT BACKBONE
"""

import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

SIZES = {"brain-mri": (10, 20, 50), "cats-dogs": (10, 20, 50), "coins": (10, 20), "hymenoptera": (10, 20, 50)}
SIZES |= {"pacs": (10, 20, 50), "pacs-few": ()}
OURS = ("default", "features", "finetune", "before")
Row = tuple[str, str, str]  # path, label, split
Case = tuple[str, int | None, int]  # set, images per class (None: all), seed


def cases(seeds: int) -> Iterator[Case]:
    """Small cases first; the whole cartoons, which take the longest, with one seed."""
    for seed in range(seeds):
        for name, sizes in SIZES.items():
            for size in (*sizes, *((None,) if name not in ("pacs", "cats-dogs") else ())):
                yield name, size, seed
    yield "pacs", None, 0


def shown(case: Case) -> str:
    name, size, seed = case
    return f"{name}-{size or 'all'}-{seed}"


def list_images(name: str) -> Iterator[Row]:
    root = Path(os.environ["TL_SHARED"]) / "data" / name
    if name.startswith("pacs"):
        root = root.parent / "pacs-cartoon"
        column = "fewshot_split" if name.endswith("-few") else "split"
        for row in csv.DictReader((root / "splits.csv").open(encoding="utf-8")):
            yield str(root / row["path"]), row["label"], "test" if row[column] == "test" else "train"
        return
    test = "test" if (root / "test").is_dir() else "val"
    for folder, split in (("train", "train"), (test, "test")):
        for path in sorted((root / folder).glob("*/*")):
            yield str(path), path.parent.name, split


def draw(case: Case) -> list[Row]:
    """The test images and some training images of each class."""
    name, size, seed = case
    rows = list(list_images(name))
    if size is None:
        return rows
    rng, kept = np.random.default_rng(seed), [row for row in rows if row[2] == "test"]
    for label in sorted({label for _, label, _ in rows}):
        own = [row for row in rows if row[1:] == (label, "train")]
        kept += [own[i] for i in rng.permutation(len(own))[:size]]
    return kept


def run(out: Path, backbone: str, seeds: int, methods: Sequence[str]) -> None:
    wanted = [(method, case) for case in cases(seeds) for method in methods]
    with ThreadPoolExecutor(int(os.environ.get("JOBS", "2"))) as pool:
        list(pool.map(lambda pair: run_one(out / backbone, backbone, *pair), wanted))


def run_one(out: Path, backbone: str, method: str, case: Case) -> None:
    path = out / method / f"{shown(case)}.json"
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    default = out / "default" / path.name
    if method in ("features", "finetune") and default.is_file():
        result = json.loads(default.read_text())
        if result["method"] == method:  # the same run, apart from the time of the comparison
            path.write_text(json.dumps({**result, "seconds": math.nan}))
            return
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "images.csv"
        with manifest.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("path", "label", "split"), *draw(case)])
        started = time.perf_counter()
        command = (ours if method in OURS else peer)(method, manifest, Path(folder), backbone, case[2])
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TL_CACHE_DIR": f"{folder}/cache"}
        env["TL_WEIGHTS_DIR"] = os.environ["TL_SHARED"] + "/weights"
        if method == "before":
            env["PYTHONPATH"] = os.environ["TL_BEFORE"]
        done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode:
            print(f"{method} {shown(case)}: {done.stderr.strip().splitlines()[-1]}", flush=True)
            return
        rows = list(csv.DictReader((Path(folder) / "run" / "predictions_test.csv").open(encoding="utf-8")))
        result = {"seconds": seconds, "hits": [int(row["true_label"] == row["label"]) for row in rows]}
        result["confidence"] = [float(row["confidence"]) for row in rows]
        config = Path(folder) / "run" / "config.yaml"
        lines = config.read_text().splitlines() if config.is_file() else []
        result["method"] = next((line.split()[1] for line in lines if line.startswith("method:")), method)
        compared = Path(folder) / "run" / "methods.csv"
        if compared.is_file():
            result["compared"] = list(csv.DictReader(compared.read_text().splitlines()))
        path.write_text(json.dumps(result))
    print(f"{method} {shown(case)}: {np.mean(result['hits']):.3f}, {seconds:.0f} s, {result['method']}", flush=True)


def ours(method: str, manifest: Path, folder: Path, backbone: str, seed: int) -> list[str]:
    chosen = {"default": [], "before": ["--method", "finetune"]}.get(method, ["--method", method])
    options = ["--backbone", backbone, "--seed", str(seed), "--threads", "1", "--skip-bad", "--no-report", "--test"]
    return [sys.executable, "-m", "tl", "train", str(manifest), *options, *chosen, "--out", str(folder / "run")]


def peer(method: str, manifest: Path, folder: Path, backbone: str, seed: int) -> list[str]:
    return [sys.executable, os.path.abspath(__file__), method, str(manifest), str(folder / "run"), backbone, str(seed)]


def load_task(manifest: str, backbone: str):
    """The images of a manifest, prepared for the backbone, and their features."""
    from tl.progress import Silent
    from tl.trainer.classification import compute_features
    from tl.trainer.config import TrainConfig
    from tl.trainer.task import prepare_task

    task = prepare_task(
        TrainConfig(data=manifest, method="features", backbone=backbone, skip_bad=True, threads=1), Silent()
    )
    return task, lambda: compute_features(task, Silent())


def save(task, probabilities: np.ndarray, out: str) -> None:
    from tl.trainer.run_folder.run import Run

    Path(out).mkdir()
    images = [task.store.images[i] for i in task.store.indices("test")]
    Run(Path(out)).save_predictions("test", images, probabilities, task.class_names)


def sklearn(manifest: str, out: str, backbone: str, seed: int) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    task, compute = load_task(manifest, backbone)
    compute()
    train = sorted([*task.store.indices("train"), *task.store.indices("val")])
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": np.logspace(-4, 2, 7)}, cv=folds)
    search.fit(task.features_at(train), np.array(task.ids)[train])
    save(task, search.predict_proba(task.split_features("test")), out)


def plain(manifest: str, out: str, backbone: str, seed: int) -> None:
    import torch
    from torchvision import transforms

    task, _ = load_task(manifest, backbone)
    network = build_plain(task, backbone, seed)
    change = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()])
    train = sorted([*task.store.indices("train"), *task.store.indices("val")])
    images = torch.from_numpy(np.stack([task.store.input(i) for i in train])).permute(0, 3, 1, 2)
    ids = torch.tensor([task.ids[i] for i in train])
    optimizer = torch.optim.AdamW(network.parameters(), 2e-4)
    for _ in range(10):
        network.train()
        for places in torch.randperm(len(train)).split(32):
            if len(places) > 1:
                batch = torch.stack([change(images[i]) for i in places]).permute(0, 2, 3, 1)
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(network(batch), ids[places]).backward()
                optimizer.step()
    save(task, predict(network, task), out)


def build_plain(task, backbone: str, seed: int):
    """The pretrained network with a random linear head: uint8 (N, H, W, 3) -> logits (N, C)."""
    import dataclasses

    from tl.trainer.models.build import build_network
    from tl.trainer.models.weights import read_weights

    config = dataclasses.replace(task.config, method="finetune", seed=seed)
    return build_network(config, task.info, len(task.class_names), read_weights(task.weights, backbone))


def predict(network, task) -> np.ndarray:
    import torch

    network.eval()
    test = task.store.indices("test")
    with torch.no_grad():
        parts = [
            network(torch.from_numpy(np.stack([task.store.input(i) for i in test[first : first + 32]])))
            for first in range(0, len(test), 32)
        ]
    return torch.softmax(torch.cat(parts), dim=1).numpy()


def fastai(manifest: str, out: str, backbone: str, seed: int) -> None:
    import pandas
    import torch
    from fastai.vision.all import (
        ImageDataLoaders,
        Learner,
        Normalize,
        Resize,
        apply_init,
        aug_transforms,
        create_head,
        params,
        set_seed,
    )

    from tl.trainer.models.backbones import feature_shape

    task, _ = load_task(manifest, backbone)
    set_seed(seed)
    readable = {image.path for image in task.store.images}
    rows = list(csv.DictReader(Path(manifest).read_text(encoding="utf-8").splitlines()))
    rows = [row for row in rows if row["path"] in readable]
    frame = pandas.DataFrame([row for row in rows if row["split"] == "train"])
    loaders = ImageDataLoaders.from_df(
        frame, path="/", valid_pct=0.2, seed=seed, fn_col=0, label_col=1, bs=min(64, len(frame) // 2), num_workers=0,
        item_tfms=Resize(224, method="squish"), batch_tfms=[*aug_transforms(), Normalize.from_stats(
            [float(v) for v in task.info.mean], [float(v) for v in task.info.std])],
    )  # fmt: skip

    # As vision_learner, which takes only architectures that fastai knows: its head on the trunk, two parameter groups.
    trunk = build_plain(task, backbone, seed).trunk
    model = torch.nn.Sequential(trunk, create_head(feature_shape(trunk, (224, 224))[0], loaders.c))
    apply_init(model[1])
    learner = Learner(loaders, model, splitter=lambda model: [params(part) for part in model], metrics=[])
    learner.freeze()
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(10)
        test = [row["path"] for row in rows if row["split"] == "test"]
        probabilities, _ = learner.get_preds(dl=loaders.test_dl(test, num_workers=0))
    names = [str(name) for name in loaders.vocab]
    save(task, probabilities.numpy()[:, [names.index(name) for name in task.class_names]], out)


PEERS = {"sklearn": sklearn, "plain": plain, "fastai": fastai}


def read(out: Path, backbone: str) -> dict[str, dict[str, dict]]:
    """Method -> case -> result."""
    return {
        folder.name: {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
        for folder in sorted((out / backbone).iterdir())
    }


def table(out: Path, backbone: str) -> None:
    found = read(out, backbone)
    methods = [name for name in ("default", "features", "finetune", "before", *PEERS) if name in found]
    print("| images | " + " | ".join(methods) + " |\n|---|" + "---|" * len(methods))
    groups = sorted({case.rpartition("-")[0] for name in methods for case in found[name]})
    for group in groups:
        own = [[r for case, r in found[name].items() if case.rpartition("-")[0] == group] for name in methods]
        cells = [f"{np.mean([accuracy(r) for r in each]):.3f} ({len(each)})" if each else "-" for each in own]
        print(f"| {group} | " + " | ".join(cells) + " |")
    print("\n| default against | runs | difference | ECE | seconds |\n|---|---|---|---|---|")
    for method in methods[1:]:
        print(compare(found["default"], found[method], method))


def accuracy(result: dict) -> float:
    return float(np.mean(result["hits"]))


def calibration(result: dict) -> float:
    from tl.evaluation.metrics import expected_calibration_error

    return expected_calibration_error(np.array(result["hits"], bool), np.array(result["confidence"]))


def compare(ours: dict, theirs: dict, method: str) -> str:
    """A row: mean differences over the runs of both, with a 95% interval, and McNemar's test on each set (Holm)."""
    common = sorted(set(ours) & set(theirs))
    differences = np.array([accuracy(ours[case]) - accuracy(theirs[case]) for case in common])
    # Runs on the same set share test images: the bootstrap draws sets of images, then runs of each.
    groups = list(dict.fromkeys(case.split("-")[0] for case in common))
    rng = np.random.default_rng(0)
    by_set = {group: differences[[case.startswith(group) for case in common]] for group in groups}
    drawn = [np.concatenate([rng.choice(d, len(d)) for d in by_set.values()]).mean() for _ in range(5000)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    p_values = {}
    for group in groups:
        pairs = [(ours[c]["hits"], theirs[c]["hits"]) for c in common if c.startswith(group)]
        a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
        p_values[group] = mcnemar(int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum()))
    holm = min(1.0, len(groups) * min((p for p, is_worse in p_values.values() if is_worse), default=1.0))
    worse = f"; smallest p of a set where it is worse {holm:.2f}" if holm < 1 else "; worse on no set"
    calibrations = [np.mean([calibration(each[c]) for c in common]) for each in (ours, theirs)]
    seconds = [np.nanmean([each[c]["seconds"] for c in common]) for each in (ours, theirs)]
    return (
        f"| {method} | {len(common)} | {100 * differences.mean():+.1f} points (95% {100 * low:+.1f} to "
        f"{100 * high:+.1f}){worse} | {calibrations[0]:.3f}, {calibrations[1]:.3f} | "
        f"{seconds[0]:.0f}, {seconds[1]:.0f} |"
    )


def mcnemar(wins: int, losses: int) -> tuple[float, bool]:
    """Exact two-sided p-value, and whether there are more losses."""
    n, k = wins + losses, min(wins, losses)
    p = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0
    return p, losses > wins


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "run":
        run(Path(rest[0]).absolute(), rest[1], int(rest[2]), rest[3:])
    elif command == "table":
        table(Path(rest[0]), rest[1])
    else:
        PEERS[command](rest[0], rest[1], rest[2], int(rest[3]))
