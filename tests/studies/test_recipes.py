"""Every recipe is a runnable study: here with a small backbone, small images and one epoch."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.studies.make import make_labels
from tests.trainer.landmarks.make import make_spots
from tl.data.class_folders import SPLITS
from tl.data.manifests import LabeledImage, read_images
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.studies.study import read_study
from tl.trainer.fit.augment import build_augment
from tl.trainer.models.backbones import build_classifier

RECIPES = Path(__file__).parents[2] / "recipes"
# Options, besides the data, that make a study small enough for a test.
SMALL = {"backbone": "squeezenet1_0", "image_size": 64, "epochs": 1, "batch_size": 8, "threads": 1, "cache": "ram"}
FORCED = {
    "backbones": {},
    "landmarks": {"batch_size": 4},
    "optimizers": {"per_class": 6},
    "transfer-lab": {"per_class": 6, "head_sizes": "null"},
    "ensemble": {"weights": "imagenet", "backbone": "mobilenet_v2"},
    "cartoons": {"lr": 0.001, "optimizer": "sgd"},
    "cartoons-augment": {"split_column": "split"},
}


@pytest.fixture
def _weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random tensors in place of ImageNet's."""
    torch.manual_seed(0)
    (tmp_path / "weights").mkdir()
    for name in ("squeezenet1_0", "mobilenet_v2"):
        torch.save(build_classifier(name).state_dict(), tmp_path / "weights" / f"{name}.pth")
    monkeypatch.setenv("TL_WEIGHTS_DIR", str(tmp_path / "weights"))
    monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path / "cache"))


def test_recipes__all_are_tested() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(FORCED)


@pytest.mark.parametrize("name", FORCED)
def test_recipe__is_a_study(name: str, tmp_path: Path) -> None:
    study = read_study(RECIPES / f"{name}.yaml", {"data": str(tmp_path)})
    assert study.plan.about
    assert not study.doubled


def test_recipe__augmentations_change_images(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    for cell in read_study(RECIPES / "cartoons-augment.yaml", {"data": str(tmp_path)}).cells:
        augment = build_augment(str(cell.config.augment), build_preprocessing((32, 32)))
        if cell.config.augment != "none":
            assert any((augment(image, seed) != image[4:36, 4:36]).any() for seed in range(6)), cell.setting


# The quickest of five whole studies, short enough to run before a commit; the sixth has 27 runs of the same kind.
QUICK = "optimizers"


@pytest.mark.usefixtures("_weights")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == QUICK else [pytest.mark.slow]) for n in FORCED if n != "cartoons-augment"],
)
def test_recipe__runs_to_the_end(name: str, tmp_path: Path, run_tl: RunTl) -> None:
    data = make_spots(tmp_path / "d", 8, whole=True) if name == "landmarks" else make_labels(tmp_path)
    words = [word for key, value in {**SMALL, **FORCED[name]}.items() for word in ("--set", f"{key}={value}")]
    run_recipe(RECIPES / f"{name}.yaml", data, words, tmp_path / "out", run_tl)


# The image source of each recipe's study, or the closest available, and the options that shorten it.
REAL = {
    "landmarks": ("flywing-landmarks/landmarks.csv", {"batch_size": 8}),
    "optimizers": ("cats-dogs", {"per_class": 10}),
    "transfer-lab": ("cats-dogs", {"per_class": 10, "head_sizes": "null"}),
    "ensemble": ("tiny-imagenet", {"per_class": 2}),
    "cartoons": ("pacs-cartoon/splits.csv", {"lr": 0.001, "optimizer": "sgd", "per_class": 10}),
    "cartoons-augment": ("pacs-cartoon/splits.csv", {"augment": "standard", "split_column": "split", "per_class": 10}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_recipe__runs_on_real_images_with_real_weights(
    name: str, shared: Path, tmp_path: Path, run_tl: RunTl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TL_WEIGHTS_DIR", str(shared / "weights"))
    monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path / "cache"))
    data, own = REAL[name]
    options = {**SMALL, **own}
    recipe = RECIPES / f"{name}.yaml"
    if name == "ensemble":
        # Its members differ in their backbones; one is transferred from a run on other images.
        small = ("--method", "scratch", "--backbone", "smallcnn", "--per-class", "10", "--epochs", "1", "--no-report")
        assert run_tl("train", shared / "data" / "cifar10", *small, "--out", tmp_path / "cifar10").code == 0
        text = recipe.read_text(encoding="utf-8").replace("runs/cifar10", str(tmp_path / "cifar10"))
        recipe = tmp_path / "ensemble.yaml"
        recipe.write_text(text.replace("resnet50", "mobilenet_v2"), encoding="utf-8")
        del options["backbone"]
    words = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    images = shared / "data" / data
    if name != "landmarks":
        images = few_of(images, tmp_path / "few.csv")
    run_recipe(recipe, images, words, tmp_path / "out", run_tl)


def few_of(data: Path, manifest: Path) -> Path:
    """At most ten classes, and ten images per class and split: evaluation should not take longer than training."""
    found = read_images(data)
    labels = sorted({image.label for image in found})[:10]
    few = [p for label in labels for split in SPLITS for p in _of(found, label, split)[:10]]
    rows = "".join(f"{os.path.abspath(p.path)},{p.label},{p.split}\n" for p in few)
    manifest.write_text("path,label,split\n" + rows, encoding="utf-8")
    return manifest


def _of(images: list[LabeledImage], label: str, split: str) -> list[LabeledImage]:
    return [image for image in images if (image.label, image.split) == (label, split)]


def run_recipe(recipe: Path, data: Path, words: list[str], out: Path, run_tl: RunTl) -> None:
    done = run_tl("sweep", recipe, "--data", data, "--out", out, *words)
    assert done.code == 0, done.err
    with (out / "leaderboard.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows
    assert all(row["seeds"] == "1" for row in rows)
    assert (out / "report.html").is_file()
    if recipe.stem == "ensemble":
        text = (out / "ensemble.csv").read_text(encoding="utf-8")
        assert all(f"ensemble,{rule}" in text for rule in ("soft", "hard", "max"))
