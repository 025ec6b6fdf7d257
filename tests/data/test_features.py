from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.trainer.make import Listener, make_class_folders, make_noise, make_png, make_store
from tl.data import array_cache
from tl.data.array_cache import ArrayCache
from tl.data.features import BATCH, FeatureSet, compute_missing, open_features, view_seed
from tl.data.images import ImageStore
from tl.progress import Silent
from tl.runtime.imaging.preprocessing import Preprocessing, build_preprocessing
from tl.trainer.fit.augment import build_augment


@pytest.fixture
def preprocessing() -> Preprocessing:
    return build_preprocessing((16, 16), "short_side", short_side=20)


def make_features(folder: Path) -> FeatureSet:
    return FeatureSet(ArrayCache(folder, keeps_unwritten=True), folder)


class Counting:
    """An embedder that returns its input pixels as float32 and records the size of each batch."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert images.dtype == np.uint8
        self.batches.append(len(images))
        return images.reshape(len(images), -1).astype(np.float32)


def compute(
    features: FeatureSet, store: ImageStore, views: Sequence[int] = (0,), change: Any = None, seed: int = 0
) -> list[int]:
    """Compute all missing features; returns the batch sizes."""
    embed = Counting()
    places = features.missing(store, range(len(store.images)), views)
    compute_missing(features, store, places, embed, change, seed, Silent())
    return embed.batches


def by_name(features: FeatureSet, store: ImageStore, view: int) -> dict[str, NDArray[np.float32]]:
    rows = features.get(store, range(len(store.images)), (view,))
    return {image.name.rsplit("/")[-1]: row for image, row in zip(store.images, rows, strict=True)}


def test_compute_missing__the_clean_view_is_the_input_image(tmp_path: Path, preprocessing: Preprocessing) -> None:
    store = make_store(make_class_folders(tmp_path / "d", 3, hw=(24, 30)), preprocessing)
    features = make_features(tmp_path / "c")
    compute(features, store, change=build_augment("flip", preprocessing))  # augmentation must not affect view 0
    wanted = np.stack([store.input(i).reshape(-1) for i in range(9)]).astype(np.float32)
    np.testing.assert_array_equal(features.get(store, range(9)), wanted)


def test_compute_missing__each_content_once_and_never_again(tmp_path: Path, preprocessing: Preprocessing) -> None:
    data = make_class_folders(tmp_path / "d", 2)
    for i in range(3):  # copies with other names and labels
        make_png(data / "red" / f"copy{i}.png", make_noise(0, (40, 60, 190)))
    store = make_store(data, preprocessing)
    assert (len(store.images), len(set(store.hashes))) == (9, 6)
    features = make_features(tmp_path / "c")
    assert compute(features, store) == [6]
    assert compute(features, store) == []
    assert compute(make_features(tmp_path / "c"), store) == []
    found = by_name(features, store, 0)
    np.testing.assert_array_equal(found["copy0.png"], found["copy2.png"])


@pytest.mark.parametrize("count", [1, BATCH, BATCH + 1])
@pytest.mark.parametrize("cache", ["ram", "none"])
def test_compute_missing__every_row_belongs_to_its_image(
    tmp_path: Path, preprocessing: Preprocessing, count: int, cache: str
) -> None:
    # With "none", threads decode the images; their order must not affect the result.
    for i in range(count):
        make_png(tmp_path / "d" / "a" / f"{i}.png", make_noise(i, hw=(20 + i % 7, 20)))
    store = make_store(tmp_path / "d", preprocessing, cache=cache)
    features = make_features(tmp_path / "c")
    batches = compute(features, store)
    assert (sum(batches), max(batches)) == (count, min(count, BATCH))
    wanted = np.stack([store.input(i).reshape(-1) for i in range(count)]).astype(np.float32)
    np.testing.assert_array_equal(features.get(store, range(count)), wanted)


def test_compute_missing__nothing_to_do(tmp_path: Path, preprocessing: Preprocessing) -> None:
    store = make_store(make_class_folders(tmp_path / "d", 1), preprocessing)
    compute_missing(make_features(tmp_path / "c"), store, [], Counting(), None, 0, Silent())
    assert not (tmp_path / "c").exists()


def test_compute_missing__views_differ_from_each_other_and_from_the_clean_one(
    tmp_path: Path, preprocessing: Preprocessing
) -> None:
    store = make_store(make_class_folders(tmp_path / "d", 2, hw=(24, 24)), preprocessing)
    features = make_features(tmp_path / "c")
    compute(features, store, range(4), build_augment("standard", preprocessing))
    rows = features.get(store, range(6), range(4))
    assert rows.shape == (24, 16 * 16 * 3)
    assert len(np.unique(rows, axis=0)) == 24


def test_compute_missing__a_view_is_the_change_of_its_own_seed(tmp_path: Path, preprocessing: Preprocessing) -> None:
    store = make_store(make_class_folders(tmp_path / "d", 1, hw=(24, 24)), preprocessing)
    features, change = make_features(tmp_path / "c"), build_augment("standard", preprocessing)
    compute(features, store, (2,), change, seed=5)
    assert change is not None
    wanted = [change(store.working(i), view_seed(5, 2, store.hashes[i])).reshape(-1) for i in range(3)]
    np.testing.assert_array_equal(features.get(store, range(3), (2,)), np.stack(wanted).astype(np.float32))


def test_compute_missing__views_stay_whatever_other_images_there_are(
    tmp_path: Path, preprocessing: Preprocessing
) -> None:
    many = make_store(make_class_folders(tmp_path / "many", 4), preprocessing)
    # Only the first image of each class, under other names and so in another order; decoded again.
    for i, name in enumerate(("red", "green", "blue")):
        source = tmp_path / "many" / name / "0.png"
        (tmp_path / "few" / name).mkdir(parents=True)
        (tmp_path / "few" / name / f"{9 - i}.png").write_bytes(source.read_bytes())
    few = make_store(tmp_path / "few", preprocessing, cache="none")
    change = build_augment("strong", preprocessing)
    of_many, of_few = make_features(tmp_path / "a"), make_features(tmp_path / "b")
    compute(of_many, many, range(3), change)
    for view in (2, 0, 1):  # one at a time, out of order
        compute(of_few, few, (view,), change)
    for view in range(3):
        for i, digest in enumerate(few.hashes):
            wanted = of_many.get(many, [many.hashes.index(digest)], (view,))
            np.testing.assert_array_equal(of_few.get(few, [i], (view,)), wanted)


def test_get__all_images_in_view_order(tmp_path: Path, preprocessing: Preprocessing) -> None:
    store = make_store(make_class_folders(tmp_path / "d", 1), preprocessing)
    features = make_features(tmp_path / "c")
    for i, digest in enumerate(store.hashes):
        for view in range(3):
            features.cache.put(features.key(digest, view), np.array([view, i], np.float32))
    assert features.get(store, [2, 0], (1, 0)).tolist() == [[1, 2], [1, 0], [0, 2], [0, 0]]
    with pytest.raises(KeyError):
        features.get(store, [0], (3,))


def test_missing__what_is_kept_is_left_out(tmp_path: Path, preprocessing: Preprocessing) -> None:
    store = make_store(make_class_folders(tmp_path / "d", 1), preprocessing)
    features = make_features(tmp_path / "c")
    features.cache.put(features.key(store.hashes[1], 0), np.zeros(1))
    features.cache.put(features.key(store.hashes[2], 1), np.zeros(1))
    assert features.missing(store, [0, 1, 2], (0, 1)) == [(0, 0), (2, 0), (0, 1), (1, 1)]
    assert features.missing(store, [1], (0,)) == []
    assert features.has(store.hashes[1], (0,))
    assert not features.has(store.hashes[1], (0, 1))
    assert not features.has(store.hashes[0], (0,))


def test_missing__changed_pixels_are_another_image(tmp_path: Path, preprocessing: Preprocessing) -> None:
    data = make_class_folders(tmp_path / "d", 2)
    features = make_features(tmp_path / "c")
    compute(features, make_store(data, preprocessing))
    image = make_noise(0, (40, 60, 190))
    image[0, 0, 0] ^= 1
    make_png(data / "blue" / "0.png", image)
    store = make_store(data, preprocessing)
    missing = features.missing(store, range(6), (0,))
    assert [store.images[i].name for i, _ in missing] == ["blue/0.png"]
    (data / "blue" / "1.png").rename(data / "red" / "renamed.png")  # its content is already cached
    assert len(features.missing(make_store(data, preprocessing), range(6), (0,))) == 1


def test_open_features__every_thing_it_depends_on_counts() -> None:
    base = {"weights": "a", "preprocessing": "b", "pooling": "gap", "until": ""}
    folders = {open_features(**base).folder}
    for name in base:
        folders.add(open_features(**{**base, name: "other"}).folder)
    folders.add(open_features(**base, seed="0").folder)
    folders.add(
        open_features(**{**base, "weights": "b", "preprocessing": "a"}).folder
    )  # the same words in other positions
    assert len(folders) == 7
    assert open_features(**dict(reversed(base.items()))).folder == open_features(**base).folder


def test_open_features__is_shared_by_later_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path / "Größe 大"))
    first = open_features(weights="ä")
    first.keep_network({"trunk.a": np.arange(3.0), "trunk.count": np.array(7)})
    assert first.folder.is_relative_to(tmp_path / "Größe 大" / "features")
    again = open_features(weights="ä")
    assert {name: tensor.tolist() for name, tensor in again.network.items()} == {
        "trunk.a": [0.0, 1.0, 2.0],
        "trunk.count": 7,
    }
    assert open_features(weights="a").network == {}


def test_network__half_of_it_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A large network takes several shards. If one is missing, the network must be cached again and not written into a
    # run.
    monkeypatch.setattr(array_cache, "_SHARD_BYTES", 100)
    folder = tmp_path / "c"
    tensors = {f"trunk.{i}": np.full(30, i) for i in range(4)}
    make_features(folder).keep_network(tensors)
    shards = sorted(folder.iterdir())
    assert len(shards) > 1
    shards[0].write_bytes(shards[0].read_bytes()[:50])
    assert make_features(folder).network == {}
    make_features(folder).keep_network(tensors)
    assert make_features(folder).network.keys() == tensors.keys()


def test_compute_missing__full_disk_is_reported_and_features_are_returned(
    tmp_path: Path, preprocessing: Preprocessing
) -> None:
    store = make_store(make_class_folders(tmp_path / "d", 2), preprocessing)
    (tmp_path / "c").write_text("in the way", encoding="utf-8")
    features, listener = make_features(tmp_path / "c"), Listener()
    places = features.missing(store, range(6), (0,))
    compute_missing(features, store, places, Counting(), None, 0, listener)
    assert len(listener.lines) == 1
    assert listener.lines[0].startswith("features cannot be cached for later runs: ")
    assert str(tmp_path / "c") in listener.lines[0]
    assert features.get(store, range(6)).shape == (6, 16 * 16 * 3)
    assert features.missing(store, range(6), (0,)) == []


def test_view_seed__depends_on_seed_view_and_content_alone() -> None:
    digests = [hashlib.sha256(bytes([i])).hexdigest() for i in range(20)]
    seeds = {view_seed(seed, view, digest) for seed in range(4) for view in range(1, 6) for digest in digests}
    assert len(seeds) == 4 * 5 * 20
    assert all(0 <= seed < 2**32 for seed in seeds)  # the range that albumentations accepts
    assert view_seed(1, 2, digests[3]) == view_seed(1, 2, digests[3])
