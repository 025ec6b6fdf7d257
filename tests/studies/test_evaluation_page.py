"""The page of one model's evaluation on labeled images."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.models import color_probabilities, make_contract, make_model, solid
from tests.trainer.make import make_class_folders, make_config, make_png
from tl.data.manifests import LabeledImage
from tl.evaluation.evaluate import evaluate
from tl.exporter.export import export_run
from tl.progress import Silent
from tl.runtime.ensembles.selective import conformal_scores
from tl.runtime.imaging.pipeline import load_input
from tl.runtime.model_file.contract import Conformal
from tl.runtime.predictor import load
from tl.runtime.session import Session
from tl.studies.report.class_sections import accuracy_note
from tl.studies.report.evaluation_page import EvaluatedFile, build_evaluation_page
from tl.studies.report.model_map import embed_images
from tl.studies.report.page import Gallery, ImageMap, Matrix, Page, Table
from tl.trainer.train import train

# True class and color; the second looks green but is labeled red.
CASES = (("red", (200, 30, 20)), ("red", (100, 110, 60)), ("green", (20, 180, 60)), ("blue", (10, 60, 90)))
GAIN = 0.02


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i, (label, color) in enumerate(CASES):
        make_png(tmp_path / "photos" / label / f"{i}.png", solid(color))
    return tmp_path / "photos"


def built(model: Path, photos: Path, split: str = "test") -> Page:
    images = [LabeledImage(str(path), path.name, path.parent.name) for path in sorted(photos.rglob("*.png"))]
    with load(model, device="cpu", threads=1) as predictor:
        scored = EvaluatedFile(
            evaluate(predictor, images, Silent()), predictor.ensemble.sessions[0], split, images, str(photos)
        )
        return build_evaluation_page(scored, "tl evaluate", Silent())


def section(page: Page, title: str) -> list[object]:
    return next(list(section.blocks) for section in page.sections if section.title == title)


def test_build_evaluation_page__errors_and_the_images_behind_them(photos: Path, tmp_path: Path) -> None:
    page = built(make_model(tmp_path / "m.onnx", gain=GAIN), photos)
    assert (page.title, dict(page.figures)["images"]) == ("Evaluation of m", "4")
    assert dict(page.figures)["top-1 accuracy (95%)"].startswith("75.0%")
    (matrix,) = section(page, "Confusion")
    assert isinstance(matrix, Matrix)
    assert matrix.counts == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    (wrong,) = section(page, "Misclassified")
    assert isinstance(wrong, Gallery)
    (card,) = wrong.cards
    assert card.lines[:2] == ["red/1.png", "true: red"]
    assert card.image is not None
    assert "Prediction sets" not in [each.title for each in page.sections]  # the file gives none
    assert "right for 3 of 4 test images: 75.0%" in page.headline


def test_build_evaluation_page__coverage_by_hand(photos: Path, tmp_path: Path) -> None:
    """A limit just above the true class's score of the misclassified image covers all four."""
    probabilities = np.stack([color_probabilities(solid(color), GAIN) for _, color in CASES])
    true_ids = [("red", "green", "blue").index(label) for label, _ in CASES]
    worst = float(conformal_scores(probabilities)[range(4), true_ids].max()) + 1e-4
    contract = dataclasses.replace(
        make_contract(gain=GAIN), conformal=Conformal((0.01,) * 200 + (worst,) * 200, "validation split")
    )
    page = built(make_model(tmp_path / "m.onnx", gain=GAIN, contract=contract), photos, "all")
    table, _ = section(page, "Prediction sets")
    assert isinstance(table, Table)
    sizes = (conformal_scores(probabilities) <= worst).sum(axis=1)
    assert [row[:2] for row in table.rows] == [("80%", 1.0), ("90%", 1.0), ("95%", 1.0), ("99%", 1.0)]
    assert table.rows[0][4] == pytest.approx(sizes.mean())
    assert "too optimistic" in page.subtitle


def test_evaluate__report_of_one_model(run_tl: RunTl, photos: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m.onnx", gain=GAIN)
    (photos / "blue" / "x.png").write_bytes(b"")
    page, rows = tmp_path / "p.html", tmp_path / "rows.csv"
    words = ("evaluate", photos, "--model", model, "--device", "cpu", "--report", page)
    done = run_tl(*words, "-o", rows)
    assert (done.code, done.out) == (3, "")
    assert rows.read_text().splitlines()[1].startswith("m,,4,0.7500,")
    text = page.read_text(encoding="utf-8")
    assert all(word in text for word in ("Confusion", "Misclassified", "calibration error", "Unreadable images"))
    refused = run_tl(*words)
    assert (refused.code, f"{page}: exists" in refused.err) == (1, True)
    done = run_tl(*words, "-o", tmp_path / "rows.json", "--json", "--overwrite")
    assert json.loads((tmp_path / "rows.json").read_text())["rows"][0]["n"] == 4
    refused = run_tl(*words, "--tta", "hflip", "--overwrite")
    assert (refused.code, "--report cannot be combined with --tta" in refused.err) == (1, True)


def test_evaluate__a_report_that_fails_does_not_take_the_table(
    run_tl: RunTl, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tl.studies.report.evaluation_page.write_page", full)
    model = make_model(tmp_path / "m.onnx", gain=GAIN)
    done = run_tl("evaluate", photos, "--model", model, "--report", tmp_path / "p.html")
    assert (done.code, done.rows()[0]["n"], "no report: " in done.err) == (3, "4", True)


def test_evaluate__words_on_a_terminal(
    run_tl: RunTl, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [make_model(tmp_path / "m.onnx", gain=GAIN), make_model(tmp_path / "n.onnx", gain=0.01)]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    head, row = run_tl("evaluate", photos, "--model", models[0]).out.splitlines()
    assert head.split("  ")[0] == "model"
    assert all(word in head for word in ("images", "top-1 accuracy", "95% from", "macro F1", "calibration error"))
    assert row.split()[:3] == ["m", "4", "75.0%"]
    table = run_tl("evaluate", photos, "--ensemble", *models).out
    assert all(word in table for word in ("voting", "p against the best member", "oracle"))
    assert "top1_accuracy" in run_tl("evaluate", photos, "--model", models[0], "--json").out


def test_accuracy_note__few_images() -> None:
    def scores(low: float, high: float, **counts: int) -> dict[str, object]:
        per_class = {name: {"n": n} for name, n in counts.items()}
        return {"ci_low": low, "ci_high": high, "n": sum(counts.values()), "per_class": per_class}

    assert accuracy_note(scores(0.9, 0.95, a=200, b=300)) == []
    (note,) = accuracy_note(scores(0.61, 0.93, a=12, b=14))
    assert "only 26 images: the accuracy on further images of this kind lies between 61% and 93%" in note.text
    (note,) = accuracy_note(scores(0.9, 0.95, a=500, rare=3, absent=0))
    assert note.text.endswith("fewer than 10 images mean little: rare.")
    (note,) = accuracy_note(scores(0.6, 0.9, a=30, b=30) | {"groups": 7})
    assert "only 60 images in 7 groups" in note.text


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with the output `embedding`, of a network that was not trained."""
    folder = tmp_path_factory.mktemp("network")
    config = make_config(make_class_folders(folder / "photos"), folder / "run", epochs=1)
    return export_run(train(config, Silent()).run, folder / "m.onnx", Silent()).path


def test_build_evaluation_page__map_by_the_embeddings_of_the_file(network: Path, tmp_path: Path) -> None:
    photos = make_class_folders(tmp_path / "photos", 5)
    shutil.copy(photos / "red" / "0.png", photos / "red" / "again.png")
    page = built(network, photos)
    _, block = section(page, "Map of the images")
    assert isinstance(block, ImageMap)
    (matrix,) = section(page, "Confusion")
    assert isinstance(matrix, Matrix)
    cells = [(dot.true_id, dot.label_id) for dot in block.dots]
    assert [[cells.count((i, j)) for j in range(3)] for i in range(3)] == matrix.counts  # a cell shows its own images
    assert {dot.name for dot in block.dots if "duplicate" in dot.marks} >= {"red/0.png", "red/again.png"}
    assert "that the model finds similar" in str(section(page, "Map of the images")[0])


def test_embed_images__as_the_graph_alone(network: Path, tmp_path: Path) -> None:
    photos = make_class_folders(tmp_path / "photos", 2)
    images = [LabeledImage(str(path), path.name, path.parent.name) for path in sorted(photos.rglob("*.png"))]
    session = Session(network, device="cpu", threads=1)
    assert session.contract is not None
    inputs = np.stack([load_input(image.path, session.contract.preprocessing) for image in images])
    (wanted,) = session.run(inputs, ["embedding"])
    found = embed_images(session, images, Silent())
    lengths = np.linalg.norm(wanted.reshape(len(images), -1), axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted.reshape(len(images), -1) / lengths, atol=1e-5)  # float32, other batches


def test_build_evaluation_page__no_map_of_few_images_or_without_embedding(network: Path, tmp_path: Path) -> None:
    photos = make_class_folders(tmp_path / "photos", 5)
    plain = built(make_model(tmp_path / "m.onnx"), photos)
    few = built(network, make_class_folders(tmp_path / "few", 2))
    assert not any("Map of the images" in [each.title for each in page.sections] for page in (plain, few))
