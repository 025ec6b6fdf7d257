from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.make import (
    Listener,
    forbid_decoding,
    make_class_folders,
    make_config,
    make_manifest,
    make_noise,
    make_png,
)
from tl.data import images as image_module
from tl.errors import ConfigError, DataError
from tl.progress import Progress, Silent
from tl.trainer.classification import compute_features
from tl.trainer.features.extraction import extract_features
from tl.trainer.task import Task, network_card, prepare_task

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("fresh_cache")
# Work on cached features starts fast because none of these loads a large library.
LIGHT = (
    *("data.array_cache", "data.audit", "data.features", "data.images", "data.manifests"),
    *("evaluation.calibration", "evaluation.evaluate", "evaluation.landmarks", "evaluation.metrics"),
    *("trainer.heads.solvers", "trainer.heads.training", "trainer.task", "trainer.train"),
)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file that is only a name: no network is built here."""
    path = tmp_path_factory.mktemp("weights") / "some.pth"
    path.write_bytes(b"some weights")
    return path


def prepare(data: Path, progress: Progress | None = None, **changes: Any) -> Task:
    return prepare_task(make_config(data, Path("unused"), **{"epochs": None, **changes}), progress or Silent())


def folder_of(data: Path, given: Path, **changes: Any) -> Path:
    """The feature cache folder of such a run."""
    task = prepare(data, **{"method": "features", "weights": str(given), "batch_size": None, **changes})
    assert task.features is not None
    return task.features.folder


def test_prepare_task__classes_images_and_preprocessing(tmp_path: Path, weights: Path) -> None:
    data = make_class_folders(tmp_path / "Übung 1", 5, ("Käfer", "zikade", "Ameise", "甲虫"))
    task = prepare(data, method="features", weights=str(weights), image_size=40)
    assert task.class_names == ("Ameise", "Käfer", "zikade", "甲虫")  # by code point
    assert [task.class_names[i] for i in task.ids] == [image.label for image in task.store.images]
    assert (len(task.store.indices("train")), len(task.store.indices("val"))) == (16, 4)
    for split in ("train", "val"):
        wanted = [task.class_names.index(task.store.images[i].label) for i in task.store.indices(split)]
        assert task.true_ids(split).tolist() == wanted
        assert task.true_ids(split).dtype == np.int64
    assert task.true_ids("test").shape == (0,)
    assert task.preprocessing.input_hw == (40, 40)
    assert task.preprocessing.pad_rgb == (128, 128, 128)  # smallcnn's mean 0.5, which normalizes to 0
    assert task.bad == []
    card = network_card(task, 1.5)
    digest = hashlib.sha256(b"some weights").hexdigest()[:16]
    assert (card.class_names, card.preprocessing, card.temperature) == (task.class_names, task.preprocessing, 1.5)
    assert card.weights == f"some.pth (smallcnn, sha256 {digest})"


def test_prepare_task__from_scratch_keeps_no_features(photos: Path) -> None:
    task = prepare(photos)
    assert (task.features, task.weights, network_card(task, 1.0).weights) == (None, None, "none")
    assert not task.uses_kept_features
    with pytest.raises(ValueError, match="no features"):
        task.split_features("val")


@pytest.mark.parametrize(
    ("changes", "is_kept", "views"),
    [
        ({"method": "features"}, True, (0,)),
        ({"method": "features", "augment": "flip", "views": 3}, True, (1, 2, 3)),
        ({"method": "features", "augment": "flip"}, False, (0,)),
        ({"method": "finetune"}, False, (0,)),
    ],
)
def test_task__which_features_train_the_head(
    photos: Path, weights: Path, changes: dict[str, Any], is_kept: bool, views: tuple[int, ...]
) -> None:
    task = prepare(photos, weights=str(weights), **changes)
    assert (task.uses_kept_features, task.train_views) == (is_kept, views)
    assert task.features is not None  # the audit always uses them


def test_split_features__in_view_order_of_the_split(photos: Path, weights: Path) -> None:
    task = prepare(photos, method="features", weights=str(weights), augment="flip", views=2)
    assert task.features is not None
    for i, digest in enumerate(task.store.hashes):
        for view in range(3):
            task.features.cache.put(task.features.key(digest, view), np.array([i, view], np.float32))
    train, val = task.store.indices("train"), task.store.indices("val")
    assert task.split_features("val").tolist() == [[i, 0] for i in val]
    assert task.split_features("train", (1, 2)).tolist() == [[i, view] for view in (1, 2) for i in train]


def test_prepare_task__feature_cache_key_covers_relevant_options(photos: Path, weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(b"other weights")
    matters: list[dict[str, Any]] = [
        {},
        {"weights": str(other)},
        {"image_size": 33},
        {"resize_mode": "letterbox"},
        {"bit_depth_max": 4095},
        {"pooling": "flatten"},
        {"head": "conv"},
        {"trunk_until": "block2"},
        {"backbone": "vgg_cnn_s"},
        {"normalize": "dataset"},
        {"augment": "flip", "views": 2},
        {"augment": "light", "views": 2},
        {"augment": "flip", "views": 2, "seed": 1},
    ]
    folders = [folder_of(photos, weights, **changes) for changes in matters]
    assert len(set(folders)) == len(matters)


def test_prepare_task__feature_cache_key_ignores_irrelevant_options(photos: Path, weights: Path) -> None:
    base = folder_of(photos, weights)
    for changes in (
        {"head": "svm"},
        {"head": "mlp", "seed": 3, "epochs": 7, "val_fraction": 0.4},
        {"optimizer": "sgd", "batch_size": 2, "c_values": None, "cache": "none", "per_class": 2},
        {"augment": "strong"},  # augmented anew in each epoch; the audit's features are of unaugmented images
        {"method": "finetune", "head": "conv", "pooling": "flatten", "augment": "light"},
        {"weights": str(weights.parent / "some.pth")},
    ):
        assert folder_of(photos, weights, **changes) == base
    few, many = (folder_of(photos, weights, augment="flip", views=views) for views in (1, 5))
    assert few == many  # more views are added to the existing ones


def test_prepare_task__pipelines_are_compared_by_content_not_file_name(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    albumentations = pytest.importorskip("albumentations")
    folders = []
    for name, p in (("a.json", 0.5), ("b.json", 0.5), ("a.json", 0.25)):
        albumentations.save(albumentations.Compose([albumentations.VerticalFlip(p=p)]), tmp_path / name)
        folders.append(folder_of(photos, weights, augment=str(tmp_path / name), views=1))
    assert folders[0] == folders[1] != folders[2]


@pytest.mark.parametrize(
    ("backbone", "package"), [("timm:test_resnet", "timm"), ("squeezenet1_0", "torchvision"), ("smallcnn", "pillow")]
)
def test_prepare_task__feature_cache_key_covers_library_versions(
    photos: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, backbone: str, package: str
) -> None:
    if package == "timm":
        pytest.importorskip("timm")
    before = folder_of(photos, weights, backbone=backbone)
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99.0" if name == package else version(name))
    assert folder_of(photos, weights, backbone=backbone) != before


def test_prepare_task__colors_of_the_training_images(photos: Path, weights: Path) -> None:
    listener = Listener()
    task = prepare(photos, listener, method="features", weights=str(weights), normalize="dataset")
    pixels = np.concatenate([task.store.input(i).reshape(-1, 3) for i in task.store.indices("train")]) / 255
    assert task.info.mean == pytest.approx(tuple(pixels.mean(axis=0)), abs=1e-12)  # float64
    assert task.info.std == pytest.approx(tuple(pixels.std(axis=0)), abs=1e-12)
    (line,) = (line for line in listener.lines if line.startswith("colors"))
    assert f"{pixels.mean(axis=0)[2]:.4f}" in line


def test_prepare_task__other_training_images_have_other_colors_and_features(photos: Path, weights: Path) -> None:
    folders = {folder_of(photos, weights, normalize="dataset", seed=seed) for seed in (0, 1)}
    assert len(folders) == 2  # different images are held out, so the mean differs


def test_prepare_task__default_batch_size_shrinks_to_small_data(photos: Path) -> None:
    assert prepare(photos, batch_size=None).config.batch_size == 15
    assert prepare(photos, batch_size=15).config.batch_size == 15
    with pytest.raises(ConfigError) as caught:
        prepare(photos, batch_size=16)
    assert str(caught.value) == "batch_size 16 is larger than the 15 training images"


@pytest.mark.parametrize(
    ("changes", "epochs", "drop_epochs"),
    [
        ({"batch_size": None}, 12, 4),  # 15 images in one step, and no more than MAX_EPOCHS
        ({"batch_size": 1, "drop_epochs": 5}, 12, 5),
        ({"batch_size": 1, "epochs": 3}, 3, 1),
        ({"batch_size": 1, "optimizer": "sgd"}, 10, 3),
        ({"batch_size": 1, "patience": 2}, 7, 2),  # selects an epoch, so the number may stay
    ],
)
def test_prepare_task__fine_tuning_takes_more_epochs_for_few_images(
    photos: Path, weights: Path, changes: dict[str, Any], epochs: int, drop_epochs: int
) -> None:
    config = prepare(photos, method="finetune", weights=str(weights), **changes).config
    assert (config.epochs, config.drop_epochs) == (epochs, drop_epochs)


def test_prepare_task__enough_images_take_the_default_epochs(tmp_path: Path, weights: Path) -> None:
    # 24 training images: 10 epochs of 24 steps are MIN_STEPS. 36: 7 epochs are more.
    for count, epochs in ((10, 10), (15, 7)):
        data = make_class_folders(tmp_path / str(count), count)
        assert prepare(data, method="finetune", weights=str(weights), batch_size=1).config.epochs == epochs


@pytest.mark.parametrize(
    ("has_own_split", "changes", "refit"),
    [
        (False, {}, True),
        (False, {"refit": False}, False),
        (False, {"optimizer": "sgd"}, False),
        (True, {}, False),
        (True, {"refit": True}, True),
    ],
)
def test_prepare_task__fine_tuning_is_refitted_unless_the_data_has_its_own_split(
    tmp_path: Path, weights: Path, has_own_split: bool, changes: dict[str, Any], refit: bool
) -> None:
    for folder in ("train", "val") if has_own_split else (".",):
        make_class_folders(tmp_path / "d" / folder, 2)
    config = prepare(tmp_path / "d", method="finetune", weights=str(weights), batch_size=None, **changes).config
    assert config.refit is refit


def test_prepare_task__fewer_of_each_class(photos: Path) -> None:
    task = prepare(photos, per_class=2, batch_size=None)
    assert np.bincount(task.true_ids("train")).tolist() == [2, 2, 2]
    assert np.bincount(task.true_ids("val")).tolist() == [1, 1, 1]


def test_prepare_task__two_images_of_two_classes_are_enough(tmp_path: Path) -> None:
    task = prepare(make_class_folders(tmp_path / "d", 2, ("a", "b")), batch_size=None)
    assert (task.true_ids("train").tolist(), task.true_ids("val").tolist()) == ([0, 1], [0, 1])


def make_split_manifest(root: Path, splits: dict[str, int], classes: str = "ab") -> Path:
    rows = []
    for split, count in splits.items():
        for i in range(count):
            for name in classes:
                make_png(root / f"{split}-{name}{i}.png", make_noise(len(rows)))
                rows.append((f"{split}-{name}{i}.png", name, split))
    return make_manifest(root / "list.csv", rows, ("path", "label", "split"))


def test_prepare_task__requested_test_split_must_exist(tmp_path: Path) -> None:
    manifest = make_split_manifest(tmp_path, {"train": 2, "val": 1})
    assert prepare(manifest, batch_size=None).true_ids("test").size == 0
    with pytest.raises(DataError, match="no images in its test split"):
        prepare(manifest, batch_size=None, test=True)


@pytest.mark.parametrize("spoilt", ["val-a0.png val-b0.png", "train-a0.png train-a1.png"])
def test_prepare_task__too_few_images_after_skipping(tmp_path: Path, spoilt: str) -> None:
    manifest = make_split_manifest(tmp_path, {"train": 2, "val": 1})
    for name in spoilt.split():
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        prepare(manifest, batch_size=None)
    with pytest.raises(DataError) as caught:
        prepare(manifest, batch_size=None, skip_bad=True)
    assert len(str(caught.value).splitlines()) == 1


def test_prepare_task__skipped_images_leave_every_label_in_place(tmp_path: Path) -> None:
    manifest = make_split_manifest(tmp_path, {"train": 3, "val": 2}, "abc")
    for name in ("train-a0.png", "val-b1.png"):
        (tmp_path / name).write_bytes(b"")
    task = prepare(manifest, batch_size=None, skip_bad=True)
    assert [image.name for image, _ in task.bad] == ["train-a0.png", "val-b1.png"]
    assert [task.class_names[i] for i in task.ids] == [image.label for image in task.store.images]
    assert len(task.ids) == len(task.store.hashes) == 13


@pytest.mark.parametrize(
    "changes", [{}, {"augment": "flip", "views": 2}, {"head": "conv", "head_sizes": (4,)}, {"head": "svm"}]
)
def test_prepare_task__images_whose_features_are_kept_are_not_decoded(
    photos: Path, finished_run: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    changes = {"method": "features", "weights": str(finished_run.folder), **changes}
    compute_features(prepare(photos, **changes), Silent())
    forbid_decoding(monkeypatch)
    task = prepare(photos, **changes)
    compute_features(task, Silent())
    assert len(task.split_features("train", task.train_views)) == 15 * len(task.train_views)


def test_prepare_task__one_changed_image_alone_is_decoded(
    tmp_path: Path, finished_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_class_folders(tmp_path / "d", 4)
    changes = {"method": "features", "weights": str(finished_run.folder)}
    compute_features(prepare(data, **changes), Silent())
    make_png(data / "red" / "2.png", make_noise(999))
    decode: Callable[..., Any] = image_module.load_working
    decoded = []

    def remember(content: bytes, preprocessing: Any, region: Any) -> Any:
        decoded.append(next(path for path in data.rglob("*.png") if path.read_bytes() == content))
        return decode(content, preprocessing, region)

    monkeypatch.setattr(image_module, "load_working", remember)
    task = prepare(data, **changes)
    assert task.features is not None
    extract_features(task, task.features.missing(task.store, range(12), (0,)), Silent())
    assert set(decoded) == {data / "red" / "2.png"}


def test_trainer__what_needs_no_torch_does_not_import_it() -> None:
    names = ", ".join(f"tl.{name}" for name in LIGHT)
    code = f"import json, sys, {names}; print(json.dumps(sorted(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(ran.stdout)}
    assert not loaded & {"torch", "torchvision", "albumentations", "sklearn", "scipy", "onnx", "onnxruntime"}


def test_prepare_task__landmarks_are_told_from_classes(tmp_path: Path) -> None:
    (tmp_path / "wings.csv").write_text("path,x0,y0\na.png,1,2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"wings\.csv contains landmarks, but this command requires classes"):
        prepare(tmp_path / "wings.csv")
