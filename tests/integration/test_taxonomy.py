"""Groups of classes from export to prediction, merging and evaluation; lists of the classes that can occur."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import RunTl
from tests.commands.conftest import photos as photos
from tests.commands.conftest import run_tl as run_tl
from tests.models import make_contract, make_model, solid
from tests.trainer.make import make_class_folders, make_config
from tl.errors import EnsembleError
from tl.progress import Silent
from tl.runtime import SelectivePrediction, load
from tl.runtime.ensembles.taxonomy import Taxonomy
from tl.trainer.train import train

TAXONOMY = Taxonomy(("color", "warmth"), (("warm", "cold", "cold"),))
MUDDY = solid((60, 98, 100))  # green or blue, but not red


def warm_model(path: Path, **changes: object) -> Path:
    return make_model(path, contract=make_contract(taxonomy=TAXONOMY, **changes), gain=0.05)


def test_load__gives_the_most_special_sure_rank(tmp_path: Path) -> None:
    path = warm_model(tmp_path / "m.onnx")
    with load(path, device="cpu", selective=SelectivePrediction(min_confidence=0.8)) as predictor:
        clear, muddy, grey = predictor.predict_batch([solid((200, 20, 20)), MUDDY, solid((100, 100, 80))])
    assert (clear.label, clear.ranked.rank, clear.ranked.name) == ("red", "color", "red")
    assert (muddy.label, muddy.ranked.rank, muddy.ranked.name) == ("?", "warmth", "cold")
    assert muddy.ranked.confidence == pytest.approx(float(muddy.probabilities[1:].sum()), abs=1e-6)
    assert (grey.ranked.rank, grey.ranked.name) == ("", "?")
    with load(path, device="cpu") as predictor:
        assert predictor.predict(MUDDY).ranked is None


def test_load__ensembles_share_one_taxonomy(tmp_path: Path) -> None:
    same, other = warm_model(tmp_path / "a.onnx"), make_model(tmp_path / "b.onnx")
    selective = SelectivePrediction(min_confidence=0.8)
    with load([same, same], device="cpu", selective=selective) as predictor:
        assert predictor.predict(MUDDY).ranked.name == "cold"
    with load([same, other], device="cpu", selective=selective) as predictor:
        assert predictor.predict(MUDDY).ranked is None


def test_load__only_classes_that_can_occur(tmp_path: Path) -> None:
    path = warm_model(tmp_path / "m.onnx")
    with load(path, device="cpu") as whole, load(path, device="cpu", only=["red", "blue"]) as part:
        before, after = whole.predict(MUDDY), part.predict(MUDDY)
    assert after.label == "blue"
    kept = before.probabilities * np.array([1, 0, 1])
    np.testing.assert_allclose(after.probabilities, kept / kept.sum(), rtol=1e-6)
    with load([path, path], device="cpu", only=["red"], vote="hard") as part:
        impossible = part.predict(solid((0, 255, 0)))
    assert (impossible.label, impossible.confidence) == ("?", 0)
    assert impossible.reason == "no class of the list has any probability"
    with pytest.raises(EnsembleError, match=r"'blu' is not a class of the models \(nearest: 'blue'\)"):
        load(path, only=["blu"])


def test_export__taxonomy_to_prediction_and_evaluation(run_tl: RunTl, tmp_path: Path) -> None:
    photos = make_class_folders(tmp_path / "photos", 12, hw=(20, 26))
    run = train(make_config(photos, tmp_path / "run", epochs=2), Silent()).run
    (tmp_path / "t.csv").write_text("color,warmth\nblue,cold\ngreen,cold\nred,warm\n")
    model = tmp_path / "m.onnx"
    words = ["export", run.folder, "-o", model, "--no-unknown"]
    missing = run_tl(*words, "--taxonomy", tmp_path / "gone.csv")
    assert missing.code == 1
    done = run_tl(*words, "--taxonomy", tmp_path / "t.csv")
    assert done.code == 0, done.err
    assert "taxonomy  " in run_tl("inspect", model).out
    table = run_tl("predict", photos, "--model", model, "--min-confidence", "0.9").rows()
    assert list(table[0])[-5:] == ["reason", "rank", "rank_label", "rank_confidence", "error"]
    assert all(row["label"] in (row["rank_label"], "?") for row in table)
    only = run_tl("predict", photos, "--model", model, "--only", "red,blue")
    assert "--only leaves out 1 of 3 classes: green" in only.err
    assert {row["p:green"] for row in only.rows()} == {"0.0"}
    (row,) = run_tl("evaluate", photos, "--model", model).rows()
    assert float(row["warmth_top1_accuracy"]) >= float(row["top1_accuracy"])
    merged = tmp_path / "merged.onnx"
    (tmp_path / "copy.onnx").write_bytes(model.read_bytes())
    assert run_tl("merge", model, tmp_path / "copy.onnx", "-o", merged).code == 0
    together = run_tl("predict", photos, "--model", merged, "--min-confidence", "0.9").rows()
    assert [row["rank_label"] for row in together] == [row["rank_label"] for row in table]
