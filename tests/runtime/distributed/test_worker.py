"""A worker gives the answers of the process that sent it the models, or refuses to open them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.models import make_contract, make_model, solid
from tests.runtime.distributed.agreement import assert_worker_agrees, make_recipe, open_worker
from tests.runtime.ensembles.test_selective import make_careful_model
from tests.spots import USUAL_XY, make_spot_model, save_spots
from tl.errors import ModelFileError, WorkerError
from tl.runtime import Box, load, load_landmarks
from tl.runtime.distributed.worker import Digested
from tl.runtime.ensembles.selective import SelectivePrediction
from tl.runtime.imaging.regions import BoxCrop
from tl.runtime.sources.memory_files import MemoryFile, UnreadableFile


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Four images, the third of which is none."""
    rng = np.random.default_rng(0)
    names = [str(tmp_path / f"{i}.png") for i in range(4)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (12, 14, 3), np.uint8)).save(name)
    Path(names[2]).write_bytes(b"no image")
    return names


def test_answer__ensemble_with_votes(images: list[str], tmp_path: Path) -> None:
    models = [make_model(tmp_path / f"{gain}.onnx", gain=gain) for gain in (0.05, 0.02)]
    others = [
        *(MemoryFile("a.zip/b.png", Path(images[0]).read_bytes()), UnreadableFile("a.zip/c.png", "is damaged")),
        solid((9, 8, 7)),
    ]
    with load(
        models, device="cpu", threads=1, vote="hard", weights=[2, 1], tta=["hflip", "crops"], only=["red", "blue"]
    ) as predictor:
        assert_worker_agrees(predictor, [*images, *others])


def test_answer__sets_and_rejected_labels(images: list[str], tmp_path: Path) -> None:
    model = make_careful_model(tmp_path / "m.onnx")
    selective = SelectivePrediction(coverage=0.5, min_confidence=0.5)
    with load(model, device="cpu", threads=1, selective=selective) as predictor:
        assert_worker_agrees(predictor, images)


def test_answer__boxes(images: list[str], tmp_path: Path) -> None:
    model = make_model(tmp_path / "m.onnx", contract=make_contract(boxes=BoxCrop(0.0, square=False)))
    boxes = {images[0]: [Box((1, 1, 5, 5), number=0), Box((3, 2, 6, 6), number=1)], images[1]: []}
    with load(model, device="cpu", threads=1, boxes=boxes) as predictor:
        assert_worker_agrees(predictor, images)


def test_answer__landmarks_with_a_locator_and_scales(tmp_path: Path) -> None:
    names = [str(save_spots(tmp_path / f"{i}.png", USUAL_XY + i)) for i in range(3)]
    model = make_spot_model(tmp_path / "fine.onnx", region="points", region_margin=0.2)
    coarse = make_spot_model(tmp_path / "coarse.onnx", shift=1.0)
    with load_landmarks([model, model], device="cpu", threads=1, locator=coarse, mm_per_px={names[0]: 0.1}) as found:
        assert_worker_agrees(found, names)


def test_answer__digests_alone_or_nothing_but_results(images: list[str], color_model: Path) -> None:
    with load(color_model, device="cpu", threads=1) as predictor:
        worker = open_worker(make_recipe(predictor))
        digests = worker.answer(images, None, hashes=True, only_digests=True)
        plain = worker.answer(images, None, hashes=False, only_digests=False)
        expected = list(predictor.predict_iter(images))
    assert [answer for _, answer in digests] == [Digested(name) for name in images]  # all could be read
    assert all(len(digest) == 64 for digest, _ in digests)
    assert [(digest, one.as_dict()) for digest, one in plain] == [("", one.as_dict()) for one in expected]


def test_open__model_file_missing_or_another_one(color_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(color_model.read_bytes())
    with load(path, device="cpu", threads=1) as predictor:
        recipe = make_recipe(predictor)
    make_model(path, gain=0.01)
    with pytest.raises(ModelFileError, match=r"^node \S+: .*m\.onnx: another model file than the one of"):
        open_worker(recipe)
    path.unlink()
    with pytest.raises(ModelFileError, match=r"^node \S+: .*m\.onnx: No such file or directory: model files must"):
        open_worker(recipe)


def test_open__folder_or_version_of_another_machine(color_model: Path, tmp_path: Path) -> None:
    with load(color_model, device="cpu", threads=1) as predictor:
        recipe = make_recipe(predictor)
    folder = str(tmp_path / "elsewhere")
    with pytest.raises(WorkerError, match=re.escape(f"{folder}: No such file or directory: images and models")):
        open_worker(dataclasses.replace(recipe, folder=folder))
    with pytest.raises(WorkerError, match=r"but the command runs 0\.0\.1: install the same"):
        open_worker(dataclasses.replace(recipe, version="0.0.1"))
