"""Groups of classes from export to prediction, merging and evaluation; lists of the classes that can occur."""

from __future__ import annotations

import csv
import json
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
    fitted = ("--fit-vote-weights", tmp_path / "votes.json", "--split", "all")
    voted = run_tl("evaluate", photos, "--ensemble", model, tmp_path / "copy.onnx", *fitted)
    assert voted.code == 0, voted.err
    (fit,) = [row for row in voted.rows() if row["voting"] == "soft, fitted"]
    assert float(fit["warmth_top1_accuracy"]) >= float(fit["top1_accuracy"])
    assert run_tl("merge", model, tmp_path / "copy.onnx", "-o", merged).code == 0
    together = run_tl("predict", photos, "--model", merged, "--min-confidence", "0.9").rows()
    assert [row["rank_label"] for row in together] == [row["rank_label"] for row in table]


def test_train__taxonomy_is_checked_scored_and_exported(run_tl: RunTl, tmp_path: Path) -> None:
    photos = make_class_folders(tmp_path / "photos", 12, hw=(20, 26))
    given = tmp_path / "t.csv"
    words = ["train", photos, "--backbone", "smallcnn", "--weights", "none", "--method", "scratch", "--epochs", "1"]
    words += ["--image-size", "16", "--device", "cpu", "--taxonomy", given]
    for text, fault in {
        "color,warmth\nblue,cold\nred,warm\n": "has no row for class 'green'",
        "color,warmth\nblue,cold\ngreen,\nred,warm\n": "t.csv row 3: class 'green' has no warmth",
        "color\nblue\n": "expected a column of classes and one for each rank",
    }.items():
        given.write_text(text)
        refused = run_tl(*words, "--out", tmp_path / "run")
        assert (refused.code, (tmp_path / "run").exists()) == (1, False)
        assert fault in refused.err
    given.write_text("color,warmth,kind\nblue,cold,color\ngreen,cold,color\nred,warm,color\n")
    done = run_tl(*words, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())["val"]
    assert metrics["kind_top1_accuracy"] == metrics["kind_macro_f1"] == 1
    assert metrics["warmth_top1_accuracy"] >= metrics["top1_accuracy"]
    assert 0 <= metrics["warmth_macro_f1"] <= 1
    assert "Ranks" in (tmp_path / "run/report.html").read_text()
    given.unlink()
    model = tmp_path / "m.onnx"
    assert run_tl("export", tmp_path / "run", "-o", model, "--no-unknown").code == 0
    contract = load(model, device="cpu").ensemble.sessions[0].contract
    assert contract.taxonomy == Taxonomy(("color", "warmth", "kind"), (("cold", "cold", "warm"), ("color",) * 3))
    assert contract.provenance.config["taxonomy"] == "t.csv"
    (row,) = run_tl("evaluate", photos, "--model", model, "--report", tmp_path / "page.html").rows()
    assert float(row["kind_macro_f1"]) == 1
    assert "Ranks" in (tmp_path / "page.html").read_text()


def test_train__sequences_stay_together_and_are_scored(run_tl: RunTl, tmp_path: Path) -> None:
    photos = make_class_folders(tmp_path / "photos", 12)
    rows = [f"photos/{name}/{i}.png,{name},{name}{i // 3}" for name in ("blue", "green", "red") for i in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,specimen", *rows]) + "\n")
    words = ["train", tmp_path / "labels.csv", "--backbone", "smallcnn", "--weights", "none", "--method", "scratch"]
    words += ["--epochs", "1", "--image-size", "16", "--device", "cpu", "--no-report", "--out", tmp_path / "run"]
    assert "has no column 'specimens'" in run_tl(*words, "--sequence", "specimens").err
    done = run_tl(*words, "--sequence", "specimen")
    assert done.code == 0, done.err
    with (tmp_path / "run/manifest.csv").open() as stream:
        table = list(csv.DictReader(stream))
    homes = {
        row["sequence"]: {other["split"] for other in table if other["sequence"] == row["sequence"]} for row in table
    }
    assert (len(homes), {len(home) for home in homes.values()}) == (12, {1})
    assert all(row["group"] == row["sequence"] for row in table)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())["val"]
    assert metrics["sequences"] == metrics["groups"] == sum(home == {"val"} for home in homes.values())
    model = tmp_path / "m.onnx"
    assert run_tl("export", tmp_path / "run", "-o", model, "--no-unknown").code == 0
    again = run_tl(
        "evaluate", tmp_path / "run/manifest.csv", "--split", "val", "--model", model, "--sequence", "sequence"
    )
    assert float(again.rows()[0]["sequence_top1_accuracy"]) == pytest.approx(
        metrics["sequence_top1_accuracy"], abs=1e-4
    )
    assert photos.is_dir()
