from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.models import make_model, solid
from tests.trainer.make import make_png
from tl.data.manifests import LabeledImage
from tl.evaluation.evaluate import evaluate
from tl.progress import Silent
from tl.runtime.predictor import load
from tl.studies.report.ensemble_page import build_ensemble_page
from tl.studies.report.page import Gallery, Page

# True class and color; the second looks green but is labeled red.
CASES = (("red", (200, 30, 20)), ("red", (100, 110, 60)), ("green", (20, 180, 60)), ("blue", (10, 60, 90)))


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    for i, (label, color) in enumerate(CASES):
        make_png(tmp_path / "photos" / label / f"{i}.png", solid(color))
    return tmp_path / "photos"


def galleries(page: Page) -> dict[str, int]:
    """Section -> number of images in it."""
    return {
        section.title: sum(len(block.cards) for block in section.blocks if isinstance(block, Gallery))
        for section in page.sections
        if section.title.startswith("Where")
    }


def test_build_ensemble_page__where_voting_helps_and_hurts(tmp_path: Path, labels: Path) -> None:
    # Two members see the true colors, the third sees the opposite: its vote outweighs both.
    members = [make_model(tmp_path / "a.onnx", gain=0.02), make_model(tmp_path / "b.onnx", gain=0.01)]
    members.append(make_model(tmp_path / "wrong.onnx", gain=-0.5))
    images = [LabeledImage(str(path), path.name, path.parent.name) for path in sorted(labels.rglob("*.png"))]
    with load(members, device="cpu", threads=1, weights=[1, 1, 9]) as predictor:
        evaluation = evaluate(predictor, images, Silent())
        preprocessing = predictor.ensemble.sessions[0].contract.preprocessing
    page = build_ensemble_page(evaluation, preprocessing, "all", "tl evaluate photos")
    truth, members_ids = evaluation.true_ids, evaluation.members.argmax(axis=2)
    assert galleries(page) == {
        "Where voting hurts": int((members_ids[:, 0] == truth).sum()),
        "Where no member is correct": int((members_ids != truth[:, None]).all(axis=1).sum()),
    }
    assert dict(page.figures)["best member, a"] == "75.0%"


def test_evaluate__report(tmp_path: Path, labels: Path, run_tl: RunTl) -> None:
    members = [make_model(tmp_path / f"{name}.onnx", gain=gain) for name, gain in (("a", 0.02), ("b", -0.1))]
    done = run_tl("evaluate", labels, "--ensemble", *members, "--report", tmp_path / "r.html", "--device", "cpu")
    assert done.code == 0, done.err
    rows = list(csv.DictReader(done.out.splitlines()))
    assert [row["model"] for row in rows] == ["a", "b", "ensemble", "ensemble", "ensemble", "oracle"]
    assert (rows[-1]["macro_f1"], rows[0]["mcnemar_p"]) == ("", "1.0000")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    titles = ("Members and votes", "Agreement", "Where voting hurts", "p against the best member", "top-1 accuracy")
    assert all(title in text for title in titles)
    text = re.sub(r'title="[^"]*"', "", text)  # what the pointer shows on a title
    assert not any(name in text for name in ("mcnemar_p", "top1_accuracy"))
