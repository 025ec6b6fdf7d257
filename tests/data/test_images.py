from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from tests.trainer.make import Listener, make_noise, make_png, make_store
from tl.data import images as images
from tl.data.images import ImageStore, check_readable, load_images
from tl.data.manifests import LabeledImage
from tl.errors import DataError
from tl.progress import Silent
from tl.runtime.imaging.pipeline import load_input, load_working
from tl.runtime.imaging.preprocessing import Preprocessing, build_preprocessing
from tl.runtime.imaging.regions import Region
from tl.trainer.models.backbones import find_backbone_info, torchvision_weights

SIZES_HW = [(256, 256), (300, 500), (500, 300), (257, 999), (101, 77), (40, 333), (232, 231)]


def torchvision_input(path: Path, resize: int, crop: int, interpolation: str) -> np.ndarray:
    """Apply torchvision's ImageClassification preset to a PIL image, up to the conversion to a tensor."""
    mode = transforms.InterpolationMode(interpolation)
    steps: list[Callable[[Image.Image], Image.Image]] = [
        transforms.Resize(resize, interpolation=mode, antialias=True),
        transforms.CenterCrop(crop),
    ]
    image = Image.open(path).convert("RGB")
    for step in steps:
        image = step(image)
    return np.asarray(image)


@pytest.mark.parametrize("hw", SIZES_HW)
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (64, 32), (37, 32)])
def test_load_input__short_side_equals_torchvision(tmp_path: Path, hw: tuple[int, int], resize: int, crop: int) -> None:
    path = make_png(tmp_path / "p.png", make_noise(1, hw=hw))
    preprocessing = build_preprocessing((crop, crop), "short_side", short_side=resize)
    np.testing.assert_array_equal(load_input(path, preprocessing), torchvision_input(path, resize, crop, "bilinear"))


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "inception_v3", "vit_b_16", "swin_t"])
def test_load_input__as_the_preset_of_a_backbone(tmp_path: Path, name: str) -> None:
    path = make_png(tmp_path / "p.png", make_noise(2, hw=(333, 410)))
    info, preset = find_backbone_info(name), torchvision_weights(name).transforms()
    side = info.image_size
    preprocessing = build_preprocessing(
        (side, side), "short_side", short_side=info.short_side, interpolation=info.interpolation
    )
    # The preset ends with a normalized float tensor (C, H, W); undo this to get the exact uint8 values.
    tensor = preset(Image.open(path))
    mean, std = np.array(preset.mean)[:, None, None], np.array(preset.std)[:, None, None]
    pixels = np.rint((tensor.numpy() * std + mean) * 255).astype(np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(load_input(path, preprocessing), pixels)


@pytest.fixture
def preprocessing() -> Preprocessing:
    return build_preprocessing((16, 16), "short_side", short_side=20)


def make_folder(root: Path) -> Path:
    make_png(root / "a" / "wide.png", make_noise(0, hw=(24, 50)))
    make_png(root / "a" / "exact.png", make_noise(1, hw=(16, 16)))
    make_png(root / "b" / "tall.png", make_noise(2, hw=(60, 20)))
    return root


def make_bad(root: Path) -> list[LabeledImage]:
    """One valid image and three bad ones: empty, truncated, and missing."""
    make_png(root / "good.png", make_noise(0))
    (root / "empty.png").touch()
    (root / "cut.png").write_bytes((root / "good.png").read_bytes()[:400])
    return [LabeledImage(str(root / name), name, "a") for name in ("empty.png", "good.png", "cut.png", "gone.png")]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder used by no other test."""
    monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def assert_same_pixels(left: ImageStore, right: ImageStore) -> None:
    assert left.images == right.images
    assert left.hashes == right.hashes
    for i in range(len(left.images)):
        np.testing.assert_array_equal(left.working(i), right.working(i))
        np.testing.assert_array_equal(left.input(i), right.input(i))


@pytest.mark.parametrize("mode", ["squash", "letterbox", "short_side"])
def test_image_store__kept_or_not_the_same_pixels(tmp_path: Path, own_cache: Path, mode: str) -> None:
    preprocessing = build_preprocessing((16, 16), mode)  # type: ignore[arg-type]
    root = make_folder(tmp_path / "d")
    stores = {cache: make_store(root, preprocessing, cache=cache) for cache in ("ram", "none", "disk")}
    later = make_store(root, preprocessing, cache="disk")
    assert sorted(stores["ram"].kept) == [0, 1, 2]
    assert [stores[cache].kept for cache in ("none", "disk")] == [{}, {}]
    assert [stores[cache].is_decoded for cache in ("ram", "none", "disk")] == [True, False, True]
    assert later.is_decoded
    for store in (stores["none"], stores["disk"], later):
        assert_same_pixels(stores["ram"], store)
    for i, image in enumerate(later.images):
        np.testing.assert_array_equal(later.input(i), load_input(image.path, preprocessing))


def test_load_images__a_later_run_decodes_nothing_that_is_on_disk(
    tmp_path: Path, own_cache: Path, preprocessing: Preprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path / "d")
    first = make_store(root, preprocessing, cache="disk")
    make_png(root / "b" / "new.png", make_noise(9))
    decoded = decoded_names(monkeypatch)
    later = make_store(root, preprocessing, cache="disk")
    assert decoded == ["new.png"]
    for name in ("a/exact.png", "a/wide.png", "b/tall.png"):
        i, j = ([p.name for p in store.images].index(name) for store in (first, later))
        np.testing.assert_array_equal(first.working(i), later.working(j))
    assert decoded == ["new.png"]


def decoded_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files decoded from now on."""
    names: list[str] = []
    contents: dict[bytes, str] = {}
    read_file = images._read_file

    def read(path: str) -> bytes:
        content = read_file(path)
        contents[content] = Path(path).name
        return content

    def decode(content: bytes, preprocessing: Preprocessing, region: Region | None) -> NDArray[np.uint8]:
        names.append(contents[content])
        return load_working(content, preprocessing, region)

    monkeypatch.setattr(images, "_read_file", read)
    monkeypatch.setattr(images, "load_working", decode)
    return names


@pytest.mark.parametrize(
    "other",
    [
        build_preprocessing((16, 16), "short_side", short_side=21),
        build_preprocessing((16, 16), "squash"),
        build_preprocessing((16, 16), "short_side", short_side=20, interpolation="bicubic"),
    ],
)
def test_load_images__another_recipe_shares_nothing_on_disk(
    tmp_path: Path, own_cache: Path, preprocessing: Preprocessing, other: Preprocessing
) -> None:
    root = make_folder(tmp_path / "d")
    make_store(root, preprocessing, cache="disk")
    assert_same_pixels(make_store(root, other, cache="disk"), make_store(root, other, cache="none"))


def test_load_images__a_changed_file_of_the_same_name_is_read_anew(
    tmp_path: Path, own_cache: Path, preprocessing: Preprocessing
) -> None:
    root = make_folder(tmp_path / "d")
    before = make_store(root, preprocessing, cache="disk").working(0)
    make_png(root / "a" / "exact.png", make_noise(8, hw=(16, 16)))
    after = make_store(root, preprocessing, cache="disk")
    assert not np.array_equal(after.working(0), before)
    assert_same_pixels(after, make_store(root, preprocessing, cache="none"))


def test_load_images__damaged_files_on_disk_are_made_again(
    tmp_path: Path, own_cache: Path, preprocessing: Preprocessing
) -> None:
    root = make_folder(tmp_path / "d")
    make_store(root, preprocessing, cache="disk")
    for path in own_cache.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:20])
    assert_same_pixels(make_store(root, preprocessing, cache="disk"), make_store(root, preprocessing, cache="none"))


def test_load_images__a_disk_that_takes_nothing_is_said_and_stops_nobody(
    tmp_path: Path, own_cache: Path, preprocessing: Preprocessing
) -> None:
    own_cache.touch()  # a file at the path of the folder
    root = make_folder(tmp_path / "d")
    images = [LabeledImage(str(path), path.name, path.parent.name, "train") for path in sorted(root.rglob("*.png"))]
    listener = Listener()
    store, bad = load_images(images, preprocessing, "disk", listener)
    assert bad == []
    assert [line.split(":")[0] for line in listener.lines] == ["images cannot be cached on disk"]
    assert not store.is_decoded
    np.testing.assert_array_equal(store.input(0), load_input(images[0].path, preprocessing))


def test_load_images__auto_keeps_a_few_small_ones(
    tmp_path: Path, own_cache: Path, preprocessing: Preprocessing
) -> None:
    assert len(make_store(make_folder(tmp_path / "d"), preprocessing, cache="auto").kept) == 3
    assert not own_cache.exists()


def test_load_images__auto_takes_the_rest_to_disk_where_memory_ends(
    tmp_path: Path, own_cache: Path, preprocessing: Preprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path / "d")
    sizes = [array.nbytes for array in make_store(root, preprocessing, cache="ram").kept.values()]
    monkeypatch.setattr("tl.data.images._memory_budget", lambda: float(sizes[0] + sizes[1] - 1))
    store = make_store(root, preprocessing, cache="auto")
    assert sorted(store.kept) == [0]
    assert store.disk is not None
    assert [digest in store.disk for digest in store.hashes] == [False, True, True]
    assert store.is_decoded
    assert_same_pixels(store, make_store(root, preprocessing, cache="none"))


@pytest.mark.parametrize("free", [0, 1000])
def test_load_images__auto_decodes_again_where_there_is_no_room(
    tmp_path: Path, own_cache: Path, preprocessing: Preprocessing, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    monkeypatch.setattr("tl.data.images._memory_budget", lambda: 0.0)
    monkeypatch.setattr("tl.data.images._free_disk_bytes", lambda: free)  # four times an image is 4.8 kB or more
    store = make_store(make_folder(tmp_path / "d"), preprocessing, cache="auto")
    assert (store.kept, store.disk, store.is_decoded) == ({}, None, False)
    assert not own_cache.exists()


def test_load_images__what_is_done_is_not_decoded_but_still_there(
    tmp_path: Path, preprocessing: Preprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_store(make_folder(tmp_path), preprocessing)
    decoded = decoded_names(monkeypatch)
    done = whole.hashes[1]
    store, bad = load_images(whole.images, preprocessing, "ram", Silent(), is_done=lambda image, digest: digest == done)
    assert bad == []
    assert sorted(decoded) == ["exact.png", "tall.png"]
    assert sorted(store.kept) == [0, 2]
    assert_same_pixels(store, whole)
    assert decoded[2:] == ["wide.png"] * 2  # once per request


def test_load_images__what_is_done_and_gone_is_still_bad(tmp_path: Path, preprocessing: Preprocessing) -> None:
    store, bad = load_images(make_bad(tmp_path), preprocessing, "ram", Silent(), is_done=lambda image, digest: True)
    assert [image.name for image, _ in bad] == ["gone.png"]
    assert len(store.images) == 3  # anything cached was readable earlier


def test_load_images__hashes_are_of_the_files(tmp_path: Path, preprocessing: Preprocessing) -> None:
    store = make_store(make_folder(tmp_path), preprocessing)
    assert [p.name for p in store.images] == ["a/exact.png", "a/wide.png", "b/tall.png"]
    assert store.hashes == tuple(hashlib.sha256(Path(p.path).read_bytes()).hexdigest() for p in store.images)


def test_load_images__bad_ones_are_told_apart(tmp_path: Path, preprocessing: Preprocessing) -> None:
    images = make_bad(tmp_path)
    for cache in ("ram", "none"):
        store, bad = load_images(images, preprocessing, cache, Silent())  # type: ignore[arg-type]
        assert [p.name for p in store.images] == ["good.png"]
        assert [p.name for p, _ in bad] == ["empty.png", "cut.png", "gone.png"]
        assert bad[0][1] == "empty file"
        assert bad[2][1] == "No such file or directory"
        np.testing.assert_array_equal(store.input(0), load_input(tmp_path / "good.png", preprocessing))


def test_load_images__a_pipe_is_not_waited_for(tmp_path: Path, preprocessing: Preprocessing) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    images = [LabeledImage(str(tmp_path / name), name, "a") for name in ("pipe.png", "folder.png")]
    store, bad = load_images(images, preprocessing, "ram", Silent())
    assert store.images == ()
    assert [reason for _, reason in bad] == ["not a regular file"] * 2


def test_load_images__reports_each_image(tmp_path: Path, preprocessing: Preprocessing) -> None:
    listener = Listener()
    load_images(make_bad(tmp_path), preprocessing, "ram", listener)
    assert listener.tasks == ["reading images"]


def test_image_store__indices_of_a_split(tmp_path: Path, preprocessing: Preprocessing) -> None:
    make_folder(tmp_path)
    names = (("a/exact.png", "val"), ("a/wide.png", "train"), ("b/tall.png", "val"))
    images = [LabeledImage(str(tmp_path / name), name, "a", split) for name, split in names]
    store, _ = load_images(images, preprocessing, "ram", Silent())
    assert (store.indices("train"), store.indices("val"), store.indices("test")) == ([1], [0, 2], [])


def test_check_readable__lists_all(tmp_path: Path, preprocessing: Preprocessing) -> None:
    _, bad = load_images(make_bad(tmp_path), preprocessing, "ram", Silent())
    with pytest.raises(DataError) as caught:
        check_readable(bad, "mend them")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("3 images cannot be read")
    assert "mend them" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["empty.png", "cut.png", "gone.png"]


def test_check_readable__nothing_bad() -> None:
    check_readable([], "mend them")
