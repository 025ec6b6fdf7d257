"""Compare classifiers of whole images with classifiers of boxes, on small objects in unrelated backgrounds.

Composites: a drawing of PACS (cartoons, seven classes), with a side of 16 to 28% of the shorter side of a photo of
ImageNet, at a random place. Training and test images share neither drawings nor photos. The boxes, in MegaDetector's
JSON, are off by up to 8% of the object's size on every side, as those of a detector are. Method features with the
default backbone; each model is exported, and evaluated by `tl.runtime` on the test images.

    TL_SHARED=... python benchmarks/boxes.py [SEEDS]
"""

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tl.data.boxed import read_labeled_boxes
from tl.data.manifests import USUAL_COLUMNS
from tl.evaluation.evaluate import evaluate
from tl.evaluation.metrics import wilson_interval
from tl.exporter.export import export_run
from tl.exporter.export_source import ExtraOutputs
from tl.progress import Silent
from tl.runtime.predictor import load
from tl.runtime.sources.box_files import read_boxes
from tl.trainer.config import TrainConfig
from tl.trainer.train import train

DATA = Path(os.environ["TL_SHARED"]) / "data"
SPRINGER = "n02102040"  # backgrounds show no animal of the classes
TRAIN, TEST = 50, 30  # drawings of each class
SIDES, JITTER = (0.16, 0.28), 0.08


@dataclass(frozen=True)
class Setting:
    """What a model is trained on."""

    name: str
    options: dict[str, object]

    @property
    def uses_boxes(self) -> bool:
        return bool(self.options)


SETTINGS = (
    Setting("whole images", {}),
    Setting("boxes, margin 0", {"crop_margin": 0.0}),
    Setting("boxes, margin 0.1 (default)", {"crop_margin": 0.1}),
    Setting("boxes, margin 0.25", {"crop_margin": 0.25}),
    Setting("boxes, margin 0.1, stretched", {"crop_margin": 0.1, "crop_square": False}),
)


def compose(folder: Path, seed: int) -> None:
    """Write train/ and test/ of class folders, and boxes.json in each."""
    random = np.random.default_rng(seed)
    photos = [path for path in sorted((DATA / "imagenet-val-500").glob("*/*")) if path.parent.name != SPRINGER]
    photos = [photos[i] for i in random.permutation(len(photos))]
    half = len(photos) * TRAIN // (TRAIN + TEST)
    backgrounds = {"train": photos[:half], "test": photos[half:]}
    images: dict[str, list[dict[str, object]]] = {"train": [], "test": []}
    for kind in sorted(path for path in (DATA / "pacs-cartoon").iterdir() if path.is_dir()):
        drawings = sorted(kind.iterdir())
        chosen = [drawings[i] for i in random.permutation(len(drawings))[: TRAIN + TEST]]
        for n, drawing in enumerate(chosen):
            split = "train" if n < TRAIN else "test"
            photo = backgrounds[split][int(random.integers(len(backgrounds[split])))]
            name = f"{kind.name}/{n:03d}.jpg"
            bbox = paste(drawing, photo, folder / split / name, random)
            images[split].append({"file": name, "detections": [{"category": "1", "conf": 0.9, "bbox": bbox}]})
    for split, listed in images.items():
        file = {"info": {"format_version": "1.6"}, "detection_categories": {"1": "animal"}, "images": listed}
        (folder / split / "boxes.json").write_text(json.dumps(file), encoding="utf-8")


def paste(drawing: Path, photo: Path, out: Path, random: np.random.Generator) -> list[float]:
    """Write a composite, and return a box as a detector would give it, in fractions of the image."""
    canvas, figure = Image.open(photo).convert("RGB"), Image.open(drawing).convert("RGB")
    side = round(min(canvas.size) * random.uniform(*SIDES))
    figure.thumbnail((side, side), Image.Resampling.LANCZOS)
    left, top = (int(random.integers(0, canvas.size[i] - figure.size[i] + 1)) for i in range(2))
    canvas.paste(figure, (left, top))
    out.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(out, quality=92)
    edges = np.array([left, top, left + figure.width, top + figure.height], float)
    edges += random.uniform(-JITTER, JITTER, 4) * np.array([*figure.size, *figure.size])
    edges = np.clip(edges / np.array([*canvas.size, *canvas.size]), 0, 1)
    return [round(float(value), 4) for value in (edges[0], edges[1], edges[2] - edges[0], edges[3] - edges[1])]


def measure(folder: Path, setting: Setting, seed: int) -> tuple[int, int]:
    """Train, export and evaluate. Returns the numbers of right labels and of test images."""
    boxes = {"boxes": str(folder / "train/boxes.json")} if setting.uses_boxes else {}
    out = folder / setting.name.replace(" ", "-")
    config = TrainConfig(
        data=str(folder / "train"), out=str(out), method="features", seed=seed, audit=False, **boxes, **setting.options
    )
    run = train(config, Silent()).run
    model = export_run(run, out / "m.onnx", Silent(), further=ExtraOutputs(unknown=False)).path
    listed = read_boxes(folder / "test/boxes.json") if setting.uses_boxes else None
    images = read_labeled_boxes(folder / "test", USUAL_COLUMNS, listed).images
    with load(model) as predictor:
        scored = evaluate(predictor, images, Silent())
    return int((scored.decided[0].label_ids == scored.true_ids).sum()), len(scored.true_ids)


def main() -> None:
    """Print a table of accuracies, by setting, on the test images of all seeds."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    right: dict[str, list[tuple[int, int]]] = {setting.name: [] for setting in SETTINGS}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as place:
            compose(Path(place), seed)
            for setting in SETTINGS:
                right[setting.name].append(measure(Path(place), setting, seed))
                print(f"seed {seed}, {setting.name}: {right[setting.name][-1]}", file=sys.stderr)
    print("| trained and predicted on | top-1 accuracy | 95% (Wilson) | test n | by seed |\n|---|---|---|---|---|")
    for name, found in right.items():
        hits, n = sum(hit for hit, _ in found), sum(count for _, count in found)
        low, high = wilson_interval(hits, n)
        each = ", ".join(f"{hit / count:.3f}" for hit, count in found)
        print(f"| {name} | {hits / n:.3f} | {low:.3f} to {high:.3f} | {n} | {each} |")


if __name__ == "__main__":
    main()
