"""Compare ways to ship a fine-tuned network: which weights, and which position between initial and final ones.

Uses training images alone: some are drawn for training, the others are the test set. Each case trains three networks:
two that hold out different fifths, and one on all images. At five positions between initial and final weights:

- mean: the mean of the first two networks (what `tl train` ships);
- refit: the one trained on all images, which costs a network more.

The position is chosen by the log loss of held-out images: `lowest` of the first network's fifth or of both, raw or
after scaling by a temperature, `farthest` within a standard error of the lowest of both (what `tl train` does), or
`fixed`. Where frozen features have the lower loss on the held-out images, they are used instead.

    TL_SHARED=... TL_WEIGHTS_DIR=... python benchmarks/averaging.py run OUT BACKBONE SET:IMAGES_PER_CLASS:SEED...
    python benchmarks/averaging.py table OUT BACKBONE
"""

import csv
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from defaults import list_images

CLASSES_OF_TINY = 12
MOST_TEST_IMAGES = 500


def list_rows(name: str, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """The training images of a set, with labels; some classes only of one with 200."""
    if name not in ("cifar10", "tiny-imagenet"):
        yield from ((path, label) for path, label, split in list_images(name) if split == "train")
        return
    folders = sorted((Path(os.environ["TL_SHARED"]) / "data" / name / "train").iterdir())
    if name == "tiny-imagenet":
        folders = [folders[i] for i in sorted(rng.permutation(len(folders))[:CLASSES_OF_TINY])]
    for folder in folders:
        yield from ((str(path), folder.name) for path in sorted(folder.iterdir()))


def draw(name: str, size: int, seed: int) -> list[tuple[str, str, str]]:
    rng = np.random.default_rng([seed, 77])
    rows = list(list_rows(name, rng))
    kept, rest = [], []
    for label in sorted({label for _, label in rows}):
        own = [row for row in rows if row[1] == label]
        order = rng.permutation(len(own))
        kept += [(*own[i], "train") for i in order[:size]]
        rest += [(*own[i], "test") for i in order[size:]]
    return kept + [rest[i] for i in rng.permutation(len(rest))[:MOST_TEST_IMAGES]]


def run(out: Path, backbone: str, case: str) -> None:
    path = out / f"{backbone}-{case.replace(':', '-')}.npz"
    if path.is_file():
        return
    name, size, seed = case.split(":")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TL_CACHE_DIR"] = f"{folder}/cache"
        manifest = Path(folder) / "images.csv"
        with manifest.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("path", "label", "split"), *draw(name, int(size), int(seed))])
        np.savez(path, **train_case(manifest, Path(folder) / "run", backbone, int(seed)))
    print(path.stem, flush=True)


def train_case(manifest: Path, folder: Path, backbone: str, seed: int) -> dict[str, np.ndarray]:
    from tl.progress import Silent
    from tl.trainer.classification import check_network, compute_features
    from tl.trainer.config import TrainConfig
    from tl.trainer.fit import image_training as training
    from tl.trainer.fit.distributed import Ranks
    from tl.trainer.fit.interpolation import SHARES, average, interpolate
    from tl.trainer.heads.training import solve
    from tl.trainer.options import candidates
    from tl.trainer.run_folder.run import Run
    from tl.trainer.task import prepare_task

    config = TrainConfig(data=str(manifest), method="auto", backbone=backbone, seed=seed, threads=1, skip_bad=True)
    first, second = candidates(config)
    task = prepare_task(first, Silent())
    compute_features(task, Silent())
    folder.mkdir()
    run = Run(folder)
    features = solve(task, run, Silent(), False)
    task = prepare_task(second, Silent(), check_network)
    tuned = training.prepare_image_training(task, Ranks())
    bench = training._Bench(task, tuned.network, tuned.machine, tuned.ranks, run, Silent())
    every, test = sorted([*task.store.indices("train"), *task.store.indices("val")]), task.store.indices("test")
    pretrained, lines = training.copy_state(tuned.network), []
    for number, (places, scored) in enumerate([*tuned.folds, (every, tuned.folds[0][1])], 1):
        tuned.network.load_state_dict(pretrained)
        start = training._start_network(bench, places, f"_{number}")
        training._fit_network(bench, task.config, places, scored, f"_{number}")
        lines.append(training._score_line(bench, start, scored))
    ends = {"mean": lines[:2], "refit": lines[2:]}
    found = {"test_ids": np.array([task.ids[i] for i in test]), "features_test": features.logits("test")}
    for name, own in ends.items():
        start, end = (average([getattr(line, side) for line in own]) for side in ("start", "end"))
        logits = []
        for share in SHARES:
            tuned.network.load_state_dict(interpolate(start, end, share))
            logits.append(training._gather_logits(bench, tuned.network, test))
        found[name] = np.array(logits)
    scored = [place for line in lines[:2] for place in line.held_out]
    at = {place: i for i, place in enumerate(features.held_out.places)}
    return {
        **found,
        "first": len(lines[0].held_out),
        "ids": np.array([task.ids[i] for i in scored]),
        "held_out": np.concatenate([line.logits for line in lines[:2]], axis=1),
        "features_held_out": features.held_out.logits[[at[place] for place in scored]],
    }


def table(out: Path, backbone: str) -> None:
    from tl.evaluation.calibration import fit_temperature
    from tl.trainer.fit.interpolation import choose_share
    from tl.trainer.heads.solvers import log_losses

    def scaled(logits: np.ndarray, ids: np.ndarray) -> float:
        return float(log_losses(logits / fit_temperature(logits, ids), ids).mean())

    rows = {}
    for path in sorted(out.glob(f"{backbone}-*.npz")):
        data = np.load(path)
        ids, held_out, first = data["ids"], data["held_out"], int(data["first"])
        raw = np.array([log_losses(each, ids) for each in held_out])
        losses = [scaled(each, ids) for each in held_out]
        rules = {
            "lowest of one fifth": int(raw[:, :first].mean(axis=1).argmin()),
            "lowest": int(raw.mean(axis=1).argmin()),
            "lowest scaled": int(np.argmin(losses)),
            "farthest": choose_share(held_out, ids, [""] * len(ids), [])[0],
            "fixed 1/2": 2,
            "fixed 1": 4,
        }
        of_features = accuracy(data["features_test"], data["test_ids"])
        has_gain = {rule: losses[chosen] < scaled(data["features_held_out"], ids) for rule, chosen in rules.items()}
        rows[path.stem.removeprefix(f"{backbone}-")] = {
            "features": of_features,
            **{
                f"{rule}, {name}": accuracy(data[name][chosen], data["test_ids"]) if has_gain[rule] else of_features
                for name in ("mean", "refit")
                for rule, chosen in rules.items()
            },
        }
    columns = list(next(iter(rows.values())))
    print("| images | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    rows["**mean**"] = {name: float(np.mean([row[name] for row in rows.values()])) for name in columns}
    for case, row in rows.items():
        print(f"| {case} | " + " | ".join(f"{row[name]:.3f}" for name in columns) + " |")


def accuracy(logits: np.ndarray, ids: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == ids).mean())


if __name__ == "__main__":
    command, out, backbone, *cases = sys.argv[1:]
    Path(out).mkdir(exist_ok=True, parents=True)
    if command == "table":
        table(Path(out), backbone)
    for case in cases:
        run(Path(out).absolute(), backbone, case)
