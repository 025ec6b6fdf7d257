"""Tests on real images and weights, if the optional folder of local test data exists (TL_SHARED)."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import tl.runtime
from tests.models import make_model
from tl.errors import ImageReadError
from tl.runtime.imaging.decode import FORMATS, decode_image
from tl.runtime.imaging.orientation import upright
from tl.runtime.imaging.pipeline import load_input
from tl.runtime.imaging.preprocessing import build_preprocessing

pytestmark = pytest.mark.slow

MAX_SECONDS_A_FILE, MAX_BYTES = 20, 3e9


@pytest.fixture(scope="module")
def imagenet_model(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MobileNetV2 with its ImageNet head, with parity verified on photos of every unusual kind."""
    folder = tmp_path_factory.mktemp("imagenet")
    photos = odd_kinds(shared, folder / "photos")
    words = ["export", "--pretrained", "mobilenet_v2", "--weights", shared / "weights", "--images", photos]
    out = folder / "imagenet.onnx"
    done = subprocess.run(
        [sys.executable, "-m", "tl", *words, "-o", out, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    parity = json.loads(done.stdout)["parity"]
    assert parity["images"] == len(list(photos.iterdir())) == 8
    assert parity["top1_agreement"] == 1
    assert max(parity["pipeline_max_abs_diff"], parity["session_max_abs_diff"]["probabilities"]) < 1e-4
    return out


def odd_kinds(shared: Path, folder: Path) -> Path:
    """A portrait EXIF photo, gray, alpha, CMYK, 16-bit gray and color, palette, and a large photo."""
    folder.mkdir()
    odd = shared / "data" / "odd-images"
    with Image.open(shared / "data" / "imagenet" / "dog.jpg") as dog:
        dog.convert("L").save(folder / "gray.png")
        dog.convert("RGBA").rotate(20).save(folder / "alpha.png")
        dog.convert("CMYK").save(folder / "cmyk.jpg")
        dog.convert("P").save(folder / "palette.png")
        gray16 = np.asarray(dog.convert("L")).astype(np.uint16) * 257
    Image.fromarray(gray16).save(folder / "gray16.png")
    for name, source in {
        "portrait.jpg": odd / "exif-orientation" / "Portrait_6.jpg",
        "color16.png": odd / "pngsuite" / "png" / "basn2c16.png",
        "large.jpg": shared / "data" / "large-photos" / "test_3.jpg",
    }.items():
        (folder / name).write_bytes(source.read_bytes())
    return folder


def test_dog__is_a_samoyed(shared: Path, imagenet_model: Path) -> None:
    with tl.runtime.load(imagenet_model, device="cpu") as model:
        assert model.predict(shared / "data" / "imagenet" / "dog.jpg").label == "Samoyed"


def test_orientations__of_one_photo_give_one_prediction(shared: Path, imagenet_model: Path, tmp_path: Path) -> None:
    photo = decode_image(shared / "data/odd-images/exif-orientation/Landscape_1.jpg", build_preprocessing((8, 8)))
    paths = [store_turned(photo, orientation, tmp_path) for orientation in range(1, 9)]
    with tl.runtime.load(imagenet_model, device="cpu") as model:
        results = [model.predict(path) for path in paths]
    assert all(np.array_equal(results[0].probabilities, result.probabilities) for result in results)


def store_turned(photo: NDArray[np.uint8], orientation: int, folder: Path) -> Path:
    """Store a photo as a rotated camera would: rotated pixels and the matching orientation tag."""
    undo = {5: 5, 6: 8, 7: 7, 8: 6}  # a quarter turn is undone by the opposite one, every other by itself
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder / f"{orientation}.png"
    Image.fromarray(upright(photo, undo.get(orientation, orientation))).save(path, exif=exif, compress_level=1)
    return path


@pytest.mark.parametrize("kind", ["Landscape", "Portrait"])
def test_orientations__of_published_files_are_upright(shared: Path, kind: str) -> None:
    folder = shared / "data" / "odd-images" / "exif-orientation"
    photos = [decode_image(folder / f"{kind}_{n}.jpg", build_preprocessing((8, 8))).astype(int) for n in range(1, 9)]
    # The files differ by one gray level in the center and by JPEG noise; a rotated one differs by 40 or more.
    assert max(np.abs(photo - photos[0]).mean() for photo in photos) < 5


def test_preprocessing__reaches_torchvisions_accuracy(shared: Path, imagenet_model: Path) -> None:
    import torch
    from torchvision import models

    from tl.trainer.models.backbones import build_classifier, find_backbone_info
    from tl.trainer.models.weight_files import find_weights
    from tl.trainer.models.weights import load_into, read_weights

    file = find_weights(find_backbone_info("mobilenet_v2"), str(shared / "weights"))
    assert file is not None
    classifier = build_classifier("mobilenet_v2").eval().to(memory_format=torch.channels_last)
    load_into(classifier, read_weights(file, "mobilenet_v2"))
    transform = models.MobileNet_V2_Weights.IMAGENET1K_V2.transforms()
    synsets = [line.split()[0] for line in (shared / "data/imagenet/synset.txt").read_text().splitlines()]
    images = sorted((shared / "data" / "imagenet-val-500").rglob("*.*"))
    truth = np.array([synsets.index(path.parent.name) for path in images])
    with tl.runtime.load(imagenet_model, device="cpu") as model:
        ours = np.stack([r.probabilities for r in model.predict_iter(images)])  # type: ignore[union-attr]
    with torch.no_grad():
        pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in images])
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        reference = torch.cat([torch.softmax(classifier(batch), 1) for batch in pixels.split(50)]).numpy()
    accuracy = [(p.argmax(axis=1) == truth).mean() for p in (ours, reference)]
    assert len(images) == 500
    assert abs(accuracy[0] - accuracy[1]) <= 0.01
    assert np.abs(ours - reference).max() < 1e-3  # torchvision normalizes in float in another order


def test_bundled_weights__classify_imagenet(shared: Path) -> None:
    """72% of the 500 photos."""
    import torch

    from tl.trainer.models.backbone_info import BUNDLED
    from tl.trainer.models.backbones import build_classifier, find_backbone_info
    from tl.trainer.models.weight_files import find_weights
    from tl.trainer.models.weights import load_into, read_weights

    info = find_backbone_info(BUNDLED)
    file = find_weights(info, "imagenet")
    assert file is not None
    classifier = build_classifier(BUNDLED).eval().to(memory_format=torch.channels_last)
    load_into(classifier, read_weights(file, BUNDLED))
    preprocessing = build_preprocessing((224, 224), "short_side", interpolation=info.interpolation)
    synsets = [line.split()[0] for line in (shared / "data/imagenet/synset.txt").read_text().splitlines()]
    images = sorted((shared / "data" / "imagenet-val-500").rglob("*.*"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (info.mean, info.std))
    hits = 0
    for start in range(0, len(images), 50):
        batch = images[start : start + 50]
        pixels = torch.from_numpy(np.stack([load_input(path, preprocessing) for path in batch])).permute(0, 3, 1, 2)
        with torch.no_grad():
            decided = classifier((pixels / 255 - mean) / std).argmax(dim=1).tolist()
        hits += sum(synsets[i] == path.parent.name for i, path in zip(decided, batch, strict=True))
    assert 0.67 < hits / len(images) < 0.75


@pytest.mark.alone
def test_odd_images__each_gives_a_row_in_bounds(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "odd-images"
    model = make_model(tmp_path / "color.onnx", preprocessing=build_preprocessing((32, 32)))
    files = [path for path in folder.rglob("*") if path.is_file()]
    command = [sys.executable, "-m", "tl", "predict", *map(str, files), "--model", str(model)]
    started = time.perf_counter()
    with (tmp_path / "out.csv").open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream)
        _, status, usage = os.wait4(process.pid, 0)  # its memory only, without other tests' processes
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(encoding="utf-8"))))
    assert process.returncode == 3  # some inputs failed and are listed
    wanted = [str(path) for path in files if path.suffix != ".tar"]
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as archive:
            wanted += [f"{path}/{name}" for name in archive.getnames()]
    assert sorted(row["path"] for row in rows) == sorted(wanted)
    assert [row["path"] for row in rows if bool(row["label"]) == bool(row["error"])] == []
    assert seconds < 120
    assert usage.ru_maxrss * 1024 < MAX_BYTES


@pytest.mark.alone
def test_odd_images__decode_to_the_shape_pillow_finds(shared: Path) -> None:
    folder = shared / "data" / "odd-images"
    preprocessing = build_preprocessing((8, 8))
    decoded, slowest = 0, 0.0
    with (folder / "catalog.csv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            started = time.perf_counter()
            try:
                image = decode_image(folder / row["path"], preprocessing)
            except ImageReadError:
                continue
            finally:
                slowest = max(slowest, time.perf_counter() - started)
            decoded += 1
            if "MAX_TEXT" in row["pil_err"]:  # a PNG that Pillow refuses for its text
                continue
            if not row["fmt"]:  # Pillow alone does not read HEIC
                assert folder.joinpath(row["path"]).read_bytes()[4:8] == b"ftyp", row["path"]
                continue
            size = (int(row["h"]), int(row["w"]))
            # Pillow already reports a TIFF's upright size.
            turned = row["exif_orient"] in ("5", "6", "7", "8") and row["fmt"] != "TIFF"
            assert image.shape == (*(size[::-1] if turned else size), 3), row["path"]
            assert row["fmt"] in (*FORMATS, "MPO")
    assert decoded > 820  # 839 when written (77 others are animations): detects a regression
    assert slowest < MAX_SECONDS_A_FILE
