from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from tests.trainer.make import Listener, make_noise, make_png, make_store
from tl.errors import DataError
from tl.runtime.geometry import load_input
from tl.runtime.recipe import Recipe, build_recipe
from tl.trainer.backbones import backbone_info, torchvision_weights
from tl.trainer.data import Picture
from tl.trainer.pictures import check_readable, load_pictures
from tl.trainer.progress import Silent

SIZES_HW = [(256, 256), (300, 500), (500, 300), (257, 999), (101, 77), (40, 333), (232, 231)]


def torchvision_input(path: Path, resize: int, crop: int, interpolation: str) -> np.ndarray:
    """What torchvision's ImageClassification preset does to a PIL picture before it becomes a tensor."""
    mode = transforms.InterpolationMode(interpolation)
    steps: list[Callable[[Image.Image], Image.Image]] = [
        transforms.Resize(resize, interpolation=mode, antialias=True),
        transforms.CenterCrop(crop),
    ]
    picture = Image.open(path).convert("RGB")
    for step in steps:
        picture = step(picture)
    return np.asarray(picture)


@pytest.mark.parametrize("hw", SIZES_HW)
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (64, 32), (37, 32)])
def test_load_input__short_side_equals_torchvision(tmp_path: Path, hw: tuple[int, int], resize: int, crop: int) -> None:
    path = make_png(tmp_path / "p.png", make_noise(1, hw=hw))
    recipe = build_recipe((crop, crop), "short_side", short_side=resize)
    np.testing.assert_array_equal(load_input(path, recipe), torchvision_input(path, resize, crop, "bilinear"))


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "inception_v3", "vit_b_16", "swin_t"])
def test_load_input__as_the_preset_of_a_backbone(tmp_path: Path, name: str) -> None:
    path = make_png(tmp_path / "p.png", make_noise(2, hw=(333, 410)))
    info, preset = backbone_info(name), torchvision_weights(name).transforms()
    side = info.image_size
    recipe = build_recipe((side, side), "short_side", short_side=info.short_side, interpolation=info.interpolation)
    # The preset ends in a float tensor (C, H, W) that is normalised; undone here, to the exact uint8 value.
    tensor = preset(Image.open(path))
    mean, std = np.array(preset.mean)[:, None, None], np.array(preset.std)[:, None, None]
    pixels = np.rint((tensor.numpy() * std + mean) * 255).astype(np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(load_input(path, recipe), pixels)


@pytest.fixture
def recipe() -> Recipe:
    return build_recipe((16, 16), "short_side", short_side=20)


def make_folder(root: Path) -> Path:
    make_png(root / "a" / "wide.png", make_noise(0, hw=(24, 50)))
    make_png(root / "a" / "exact.png", make_noise(1, hw=(16, 16)))
    make_png(root / "b" / "tall.png", make_noise(2, hw=(60, 20)))
    return root


def make_bad(root: Path) -> list[Picture]:
    """One good picture and three bad ones: empty, cut short, and not there."""
    make_png(root / "good.png", make_noise(0))
    (root / "empty.png").touch()
    (root / "cut.png").write_bytes((root / "good.png").read_bytes()[:400])
    return [Picture(str(root / name), name, "a") for name in ("empty.png", "good.png", "cut.png", "gone.png")]


@pytest.mark.parametrize("mode", ["squash", "letterbox", "short_side"])
def test_picture_store__kept_or_not_the_same_pixels(tmp_path: Path, mode: str) -> None:
    recipe = build_recipe((16, 16), mode)  # type: ignore[arg-type]
    kept = make_store(make_folder(tmp_path), recipe, cache="ram")
    fresh = make_store(tmp_path, recipe, cache="none")
    assert kept.kept is not None
    assert fresh.kept is None
    for i, picture in enumerate(kept.pictures):
        np.testing.assert_array_equal(kept.working(i), fresh.working(i))
        np.testing.assert_array_equal(kept.input(i), fresh.input(i))
        np.testing.assert_array_equal(kept.input(i), load_input(picture.path, recipe))


def test_load_pictures__auto_keeps_a_few_small_ones(tmp_path: Path, recipe: Recipe) -> None:
    assert make_store(make_folder(tmp_path), recipe, cache="auto").kept is not None


def test_load_pictures__hashes_are_of_the_files(tmp_path: Path, recipe: Recipe) -> None:
    store = make_store(make_folder(tmp_path), recipe)
    assert [p.name for p in store.pictures] == ["a/exact.png", "a/wide.png", "b/tall.png"]
    assert store.hashes == tuple(hashlib.sha256(Path(p.path).read_bytes()).hexdigest() for p in store.pictures)


def test_load_pictures__bad_ones_are_told_apart(tmp_path: Path, recipe: Recipe) -> None:
    pictures = make_bad(tmp_path)
    for cache in ("ram", "none"):
        store, bad = load_pictures(pictures, recipe, cache, Silent())  # type: ignore[arg-type]
        assert [p.name for p in store.pictures] == ["good.png"]
        assert [p.name for p, _ in bad] == ["empty.png", "cut.png", "gone.png"]
        assert bad[0][1] == "empty file"
        assert bad[2][1] == "No such file or directory"
        np.testing.assert_array_equal(store.input(0), load_input(tmp_path / "good.png", recipe))


def test_load_pictures__reports_each_picture(tmp_path: Path, recipe: Recipe) -> None:
    listener = Listener()
    load_pictures(make_bad(tmp_path), recipe, "ram", listener)
    assert listener.tasks == ["reading pictures"]


def test_picture_store__indices_of_a_split(tmp_path: Path, recipe: Recipe) -> None:
    make_folder(tmp_path)
    names = (("a/exact.png", "val"), ("a/wide.png", "train"), ("b/tall.png", "val"))
    pictures = [Picture(str(tmp_path / name), name, "a", split) for name, split in names]
    store, _ = load_pictures(pictures, recipe, "ram", Silent())
    assert (store.indices("train"), store.indices("val"), store.indices("test")) == ([1], [0, 2], [])


def test_check_readable__lists_all(tmp_path: Path, recipe: Recipe) -> None:
    _, bad = load_pictures(make_bad(tmp_path), recipe, "ram", Silent())
    with pytest.raises(DataError) as caught:
        check_readable(bad, "mend them")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("3 pictures cannot be read")
    assert "mend them" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["empty.png", "cut.png", "gone.png"]


def test_check_readable__nothing_bad() -> None:
    check_readable([], "mend them")
