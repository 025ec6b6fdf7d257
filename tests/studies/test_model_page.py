from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.models import COLORS, color_probabilities, make_model, solid
from tests.trainer.make import make_png
from tl.exporter.export import export_run
from tl.progress import Silent
from tl.runtime.model_file.contract import Contract
from tl.runtime.session import Session
from tl.studies.report.model_page import build_model_page
from tl.studies.report.page import Facts, Gallery, render
from tl.trainer.run_folder.run import Run


@pytest.fixture(scope="module")
def model(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(finished_run, tmp_path_factory.mktemp("model") / "beetles.onnx", Silent()).path


def contract_of(path: Path) -> Contract:
    contract = Session(path, device="cpu").contract
    assert contract is not None
    return contract


def test_build_model_page__says_what_the_contract_says(model: Path) -> None:
    contract = contract_of(model)
    page = build_model_page(model, contract)
    assert page.title == "beetles.onnx"
    assert dict(page.figures)["classes"] == "3"
    accuracy = contract.provenance.val_metrics["top1_accuracy"]
    assert dict(page.figures)["validation top-1 accuracy"] == f"{accuracy:.4g}"
    titles = [section.title for section in page.sections]
    assert titles == ["Summary", "Self-test", "Training options", "Classes"]
    (summary,) = page.sections[0].blocks
    assert isinstance(summary, Facts)
    assert summary.rows["outputs"] == ", ".join(contract.outputs)
    (samples,) = page.sections[1].blocks
    assert isinstance(samples, Gallery)
    assert len(samples.cards) == len(contract.golden.samples)
    options = page.sections[2].blocks[0]
    assert isinstance(options, Facts)
    assert options.rows["backbone"] == "smallcnn"
    text = render(page)
    assert all(name in text for name in contract.class_names)


def test_inspect__page_with_all_of_it(run_tl: RunTl, model: Path, photos: Path, tmp_path: Path) -> None:
    photo = sorted(photos.rglob("*.png"))[0]
    page = tmp_path / "page.html"
    done = run_tl("inspect", model, "--html", page, "--filters", "--activations", photo, "--top", "2", photo)
    assert done.code == 0, done.err
    shown = [float(row["probability"]) for row in done.rows()]
    assert shown == sorted(shown, reverse=True)
    text = page.read_text(encoding="utf-8")
    assert all(f">{title}</h2>" in text for title in ("Most probable", "Filters", "Activations", "Self-test"))
    assert str(tmp_path) not in text
    assert str(photos) not in text
    assert list(tmp_path.iterdir()) == [page]


def test_inspect__images_as_files(run_tl: RunTl, model: Path, photos: Path, tmp_path: Path) -> None:
    photo = sorted(photos.rglob("*.png"))[0]
    done = run_tl("inspect", model, "--filters", "--activations", photo, "--layer", "2", "--out", tmp_path / "new")
    assert (done.code, done.out) == (0, "")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["beetles-activations.png", "beetles-filters.png"]
    assert "number 2 of " in done.err


def test_inspect__top(run_tl: RunTl, tmp_path: Path) -> None:
    photo = make_png(tmp_path / "p.png", solid((60, 90, 20)))
    path = make_model(tmp_path / "m.onnx")
    done = run_tl("inspect", path, "--top", "2", photo)
    red, green, blue = color_probabilities(solid((60, 90, 20)))
    assert [(row["label"], float(row["probability"])) for row in done.rows()] == [
        (COLORS[1], pytest.approx(green, abs=1e-6)),
        (COLORS[0], pytest.approx(red, abs=1e-6)),
    ]
    rows = json.loads(run_tl("inspect", path, "--top", "9", photo, "--json").out)
    assert [row["label"] for row in rows] == ["green", "red", "blue"]
    assert rows[2]["probability"] == pytest.approx(blue, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--top", "0", "{photo}"), "--top requires a number of at least 1"),
        (("--top", "3", "missing.png"), "missing.png: No such file"),
        (("--activations", "{photo}"), "this graph has no supported non-linearity on feature maps"),
        (("--layer", "2"), "--layer requires --activations IMAGE"),
        (("--out", "x", "--top", "1", "{photo}"), "--out requires --filters or --activations"),
        (("--filters",), "its first layer is not a convolution"),
    ],
)
def test_inspect__refused(run_tl: RunTl, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    photo = make_png(tmp_path / "p.png", solid((60, 90, 20)))
    given = [word.format(photo=photo) for word in options]
    done = run_tl("inspect", make_model(tmp_path / "m.onnx"), *given)
    assert (done.code, message in done.err) == (1, True), done.err
