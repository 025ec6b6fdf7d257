"""Prediction of boxes: one result for each, from the pixels of its own region."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tl.runtime
from tests.models import COLORS, make_contract, make_model, solid
from tl.errors import ConfigError, EnsembleError, ImageReadError
from tl.runtime import Box, BoxedImage, Classification, Failure, NoBox, load
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.runtime.imaging.regions import BoxCrop
from tl.runtime.output.job import Tally, run_job
from tl.runtime.sources.boxed_images import BoxList
from tl.runtime.sources.inputs import MemoryFile, UnreadableFile

RED, GREEN, BLUE = Box((10, 10, 20, 20), number=0), Box((110, 10, 20, 20), number=1), Box((60, 60, 30, 20), number=2)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "boxes.onnx", contract=make_contract(boxes=BoxCrop(0.0, square=False)))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A gray photo with a red, a green and a blue rectangle."""
    image = solid((90, 90, 90), 100, 200).copy()
    for box, rgb in ((RED, (250, 0, 0)), (GREEN, (0, 250, 0)), (BLUE, (0, 0, 250))):
        x, y, w, h = map(int, box.xywh)
        image[y : y + h, x : x + w] = rgb
    Image.fromarray(image).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def labels(found: list[Classification | Failure]) -> list[str]:
    return [each.label if isinstance(each, Classification) else type(each).__name__ for each in found]


def test_predict_iter__one_result_per_box(model: Path, photo: Path) -> None:
    with load(model, boxes={str(photo): [RED, GREEN, BLUE]}, threads=2) as predictor:
        found = list(predictor.predict_iter([photo, photo]))
    assert labels(found) == ["red", "green", "blue"] * 2
    assert [each.box for each in found[:3]] == [RED, GREEN, BLUE]
    assert {each.path for each in found} == {str(photo)}


def test_predict_iter__in_processes(model: Path, photo: Path) -> None:
    boxes = {str(photo): [RED, Box((300, 0, 9, 9)), GREEN, BLUE]}
    sources = [photo, str(photo.with_name("none.png")), photo]
    with load(model, boxes=boxes, threads=2) as threads, load(model, boxes=boxes, decode_processes=1) as processes:
        expected, found = (list(each.predict_iter(sources, batch_size=3)) for each in (threads, processes))
    assert labels(found) == labels(expected) == [*(once := ["red", "Failure", "green", "blue"]), "Failure", *once]
    assert [each.box for each in found] == [each.box for each in expected]
    assert "the box (300, 0, 9, 9) contains no pixel" in found[1].error  # type: ignore[union-attr]


def test_predict_iter__images_without_boxes(model: Path, photo: Path) -> None:
    other, failed = photo.with_name("other.png"), photo.with_name("failed.png")
    boxes = BoxList({str(photo): ()}, {str(failed): "corrupt"}, least=0.2)
    with load(model, boxes=boxes) as predictor:
        found = list(predictor.predict_iter([photo, other, failed]))
    assert [type(each) for each in found] == [NoBox, Failure, Failure]
    assert [each.error for each in found if isinstance(each, Failure)] == [
        "no box of confidence 0.2 or more",
        "the list of boxes contains no entry for this image (paths in it are relative to its folder)",
        "the detector failed on this image: corrupt",
    ]
    assert found[0].as_dict() == {"path": str(photo), "reason": "no box of confidence 0.2 or more"}


def test_predict_iter__streams(model: Path, photo: Path) -> None:
    """A stream with several boxes is read once, although threads predict its boxes."""
    good, bad = MemoryFile("a.png", photo.read_bytes()), UnreadableFile("b.png", "too large")
    boxes = {name: [RED, GREEN, BLUE] for name in ("a.png", "b.png")}
    with load(model, boxes=boxes, threads=2) as predictor:
        found = list(predictor.predict_iter([good, bad]))
    assert labels(found) == ["red", "green", "blue", "Failure"]
    assert [each.path for each in found] == ["a.png"] * 3 + ["b.png"]


def test_predict__one_box(model: Path, photo: Path) -> None:
    with load(model, boxes={str(photo): [GREEN]}) as predictor:
        assert predictor.predict(photo).label == "green"
    with load(model) as predictor:
        found = predictor.predict(BoxedImage(photo, BLUE))
        assert (found.label, found.box) == ("blue", BLUE)
        assert predictor.predict(BoxedImage(np.asarray(Image.open(photo)), RED)).label == "red"
    with load(model, boxes={str(photo): [GREEN, RED]}) as predictor:
        with pytest.raises(ImageReadError, match="has 2 boxes: predict_iter"):
            predictor.predict(photo)
        with pytest.raises(ImageReadError, match="no entry"):
            predictor.predict(photo.with_name("other.png"))


def test_predict__models_without_their_boxes(model: Path, photo: Path, color_model: Path) -> None:
    with load(model) as predictor, pytest.raises(ImageReadError, match="was trained on boxes"):
        predictor.predict(photo)
    with load(color_model) as predictor, pytest.raises(ImageReadError, match="was trained on whole images"):
        predictor.predict(BoxedImage(photo, RED))
    with pytest.raises(EnsembleError, match="was trained on whole images: leave out boxes"):
        load(color_model, boxes={})


def test_load__members_must_use_the_same_part(model: Path, color_model: Path, tmp_path: Path) -> None:
    wide = make_model(tmp_path / "wide.onnx", contract=make_contract(boxes=BoxCrop(0.5, square=True)))
    with pytest.raises(EnsembleError, match=r"uses boxes with margin 0\.5, extended to squares, but .*"):
        load([model, wide])
    with pytest.raises(EnsembleError, match="uses whole images"):
        load([model, color_model])


def test_predict__relative_and_upright(model: Path, photo: Path) -> None:
    """A box is in the upright image: of a photo that is stored sideways, too."""
    turned = photo.with_name("turned.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photo).transpose(Image.Transpose.ROTATE_90).save(turned, quality=95, exif=exif)
    x, y, w, h = GREEN.xywh
    box = Box((x / 200, y / 100, w / 200, h / 100), is_relative=True)
    with load(model) as predictor:
        assert predictor.predict(BoxedImage(turned, box)).label == "green"
        with pytest.raises(ImageReadError, match="states 100x200 pixels"):
            predictor.predict(BoxedImage(turned, Box(GREEN.xywh, stated_hw=(200, 100))))


def test_predict__a_large_jpeg_is_decoded_for_its_crop(tmp_path: Path) -> None:
    """The scale of decoding follows the crop: a small box of a large photo is decoded at full size."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (1600, 2400, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "large.jpg", quality=95)
    decoded = np.asarray(Image.open(tmp_path / "large.jpg"))
    models = [
        make_model(
            tmp_path / f"{scale}.onnx",
            preprocessing=(found := build_preprocessing((32, 32), jpeg_scale=scale)),
            contract=make_contract(preprocessing=found, boxes=BoxCrop(0.0, square=False)),
        )
        for scale in ("2x", "full")
    ]
    with load(models[0]) as fast, load(models[1]) as full:
        small = BoxedImage(tmp_path / "large.jpg", Box((800, 400, 32, 32)))
        wanted = full.predict(BoxedImage(decoded[400:432, 800:832], Box((0, 0, 1, 1), is_relative=True)))
        np.testing.assert_allclose(fast.predict(small).probabilities, wanted.probabilities, atol=0.01)
        prepared = fast.ensemble.prepare(small.source, "", small.box)
    (inputs,) = prepared.values()
    assert np.abs(inputs[0].astype(int) - decoded[400:432, 800:832]).mean() < 2  # libjpeg-turbo and Pillow round apart


def test_predict__tta_looks_at_parts_of_the_box(model: Path, photo: Path) -> None:
    with load(model, tta=["crops", "hflip"], boxes={str(photo): [RED, GREEN]}) as predictor:
        found = list(predictor.predict_iter([photo]))
    assert labels(found) == ["red", "green"]
    assert all(float(each.probabilities.max()) > 0.999 for each in found if isinstance(each, Classification))


def test_run_job__rows_are_kept_by_box(model: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"

    def run(boxes: list[Box], **changes: bool) -> Tally:
        tally = Tally()
        with load(model, boxes={str(photo): boxes}) as predictor:
            run_job(predictor, [str(photo)], out, tally, **changes)
        return tally

    first = run([RED, Box((300, 0, 9, 9), number=1)])
    assert (first.done, first.failed, first.kept) == (2, 1, 0)
    again = run([RED, GREEN, Box(BLUE.xywh, confidence=0.5, number=2)], resume=True)
    assert (again.done, again.failed, again.kept) == (3, 0, 1)
    with out.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["label"] for row in rows] == ["red", "green", "blue"]
    assert [row["box_x"] for row in rows] == ["10", "110", "60"]
    assert [row["box_confidence"] for row in rows] == ["", "", "0.5"]
    moved = run([Box((11, 10, 20, 20)), GREEN, BLUE], resume=True)
    assert moved.kept == 1


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".xlsx"])
def test_run_job__formats(model: Path, photo: Path, tmp_path: Path, suffix: str) -> None:
    if suffix == ".xlsx":
        pytest.importorskip("xlsxwriter", reason="xlsxwriter is not installed")
    boxes = BoxList({str(photo): (RED, Box((300, 0, 9, 9))), str(tmp_path / "empty.png"): ()})
    with load(model, boxes=boxes) as predictor:
        run_job(predictor, [str(photo), str(tmp_path / "empty.png")], tmp_path / f"out{suffix}", Tally())
    if suffix == ".jsonl":
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
        assert lines[0]["box"] == [10, 10, 20, 20]
        assert lines[0]["label"] == "red"
        assert lines[1]["box"] == [300, 0, 9, 9]
        assert "no pixel" in lines[1]["error"]
        assert lines[2] == {"path": str(tmp_path / "empty.png"), "reason": "no box"}
    if suffix == ".csv":
        with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert list(rows[0])[:8] == [
            *("path", "box_x", "box_y", "box_w", "box_h", "box_confidence", "box_category", "label"),
        ]
        assert [(row["label"], row["reason"], row["box_x"]) for row in rows] == [
            ("red", "", "10"),
            ("", "", "300"),
            ("", "no box", ""),
        ]


def test_box_list__one_unit() -> None:
    with pytest.raises(ValueError, match="not both"):
        BoxList({"a": (Box((0, 0, 1, 1)), Box((0, 0, 1, 1), is_relative=True))})


def test_explain__a_box(model: Path, photo: Path) -> None:
    with load(model) as predictor:
        found = tl.runtime.explain(predictor, BoxedImage(photo, RED))
        assert (found.label, found.placement.region_xywh) == ("red", RED.xywh)
        assert found.label in COLORS
        with pytest.raises(ConfigError, match="explain a BoxedImage"):
            tl.runtime.explain(predictor, photo)
