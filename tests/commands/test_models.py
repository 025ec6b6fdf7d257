"""evaluate, inspect and verify: the commands that examine a model file."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl
from tests.models import make_contract, make_model
from tl.runtime.model_file.contract import Conformal, OodFacts, dump_contract, parse_contract
from tl.runtime.model_file.summary import summarize_contract


def test_evaluate__one_row_a_model_and_rule(run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path) -> None:
    wrong = make_model(tmp_path / "wrong.onnx", ("green", "red", "blue"), gain=-0.05)  # the darkest channel wins
    done = run_tl("evaluate", photos, "--ensemble", color_model, wrong)
    table = done.rows()
    assert done.code == 0
    assert list(table[0]) == [
        "model",
        "voting",
        "n",
        "top1_accuracy",
        "ci_low",
        "ci_high",
        "macro_f1",
        "ece",
        "mcnemar_p",
    ]
    assert [(row["model"], row["voting"]) for row in table] == [
        ("color", ""),
        ("wrong", ""),
        ("ensemble", "soft"),
        ("ensemble", "hard"),
        ("ensemble", "max"),
        ("oracle", ""),
    ]
    assert table[0]["top1_accuracy"] == "1.0000"
    assert table[1]["top1_accuracy"] == "0.0000"
    assert "split 'all'" in done.err


def test_evaluate__json_has_per_class_scores(run_tl: RunTl, photos: Path, color_model: Path) -> None:
    answer = json.loads(run_tl("evaluate", photos, "--model", color_model, "--json").out)
    assert answer["rows"][0]["per_class"]["red"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "n": 2}
    assert answer["failures"] == []


def test_evaluate__unreadable_images_are_listed(run_tl: RunTl, photos: Path, color_model: Path) -> None:
    (photos / "red" / "1.png").write_bytes(b"")
    done = run_tl("evaluate", photos, "--model", color_model)
    assert done.code == 3
    assert "red/1.png: empty file" in done.err
    assert done.out.splitlines()[1].startswith("color,,5,1.0000")


def test_evaluate__unknown_class_is_named(run_tl: RunTl, photos: Path, color_model: Path) -> None:
    (photos / "red").rename(photos / "reed")
    done = run_tl("evaluate", photos, "--model", color_model)
    assert done.code == 1
    assert "class 'reed'" in done.err
    assert "(nearest: 'red')" in done.err


def test_inspect__text_and_json(run_tl: RunTl, color_model: Path) -> None:
    text = run_tl("inspect", color_model).out
    contract = json.loads(run_tl("inspect", color_model, "--json").out)
    assert "3: red, green, blue" in text
    assert "uint8 (N, 8, 8, 3)" in text
    assert contract["class_names"] == ["red", "green", "blue"]
    assert contract["preprocessing"]["resize_mode"] == "squash"


def test_inspect__what_a_file_knows_of_its_doubts(run_tl: RunTl, color_model: Path, tmp_path: Path) -> None:
    unknown = OodFacts(30, 12, 1.25, 0.05, 20)
    changes = {"conformal": Conformal((0.25, 0.5), "validation split"), "ood": unknown}
    contract = make_contract(outputs=("probabilities", "ood_score"), **changes)
    assert parse_contract(dump_contract(contract), "x") == contract
    other = make_model(tmp_path / "other.onnx", gain=0.01)
    assert run_tl("merge", color_model, other, "-o", tmp_path / "both.onnx").code == 0
    text = run_tl("inspect", tmp_path / "both.onnx").out
    assert "soft: color (weight 1), other (weight 1)" in text
    shown = dict(summarize_contract(contract))
    assert shown["coverage"] == "prediction sets, from 2 scores of the validation split"
    assert shown["unknown"].startswith("score above 1.25, exceeded by 5.0% of 20 validation images")


def test_inspect__foreign_model(run_tl: RunTl, tmp_path: Path) -> None:
    done = run_tl("inspect", make_model(tmp_path / "foreign.onnx", contract=None))
    assert done.code == 1
    assert "not a tl model file" in done.err


def test_verify__passes(run_tl: RunTl, color_model: Path) -> None:
    done = run_tl("verify", color_model, "--device", "cpu", "--json")
    assert done.code == 0
    assert json.loads(done.out)["samples"] == 2


def test_verify__a_changed_file_fails(run_tl: RunTl, tmp_path: Path) -> None:
    other = make_model(tmp_path / "changed.onnx", gain=0.06, contract=make_contract(gain=0.05))
    done = run_tl("verify", other, "--device", "cpu")
    assert done.code == 1
    assert "golden samples differ by" in done.err


def test_evaluate__fitted_votes_are_written_and_read(
    run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path
) -> None:
    wrong = make_model(tmp_path / "wrong.onnx", gain=-0.05)
    many = tmp_path / "many"
    for folder in sorted(photos.iterdir()):
        for copy in range(4):  # enough images to fit weights
            shutil.copytree(folder, many / folder.name, dirs_exist_ok=True, copy_function=partial(copy_as, copy))
    out = tmp_path / "weights.json"
    done = run_tl("evaluate", many, "--ensemble", color_model, wrong, "--fit-vote-weights", out)
    assert done.code == 0, done.err
    weights = json.loads(out.read_text(encoding="utf-8"))["vote_weights"]
    assert weights["color"] > 0.99 > 0.01 > weights["wrong"] > 0
    assert [(row["model"], row["voting"]) for row in done.rows()][-2:] == [("ensemble", "soft, fitted"), ("oracle", "")]
    voted = run_tl("predict", photos, "--ensemble", color_model, wrong, "--vote-weights", out)
    assert {Path(row["path"]).parent.name == row["label"] for row in voted.rows()} == {True}

    chosen = run_tl(
        "evaluate", many, "--ensemble", color_model, wrong, "--fit-vote-weights", out, "--select", "--overwrite"
    )
    assert json.loads(out.read_text(encoding="utf-8"))["vote_weights"] == {"color": 1.0}
    assert "left out: wrong" in chosen.err
    refused = run_tl("predict", photos, "--ensemble", color_model, wrong, "--vote-weights", out)
    assert (refused.code, "contains no weight for wrong; remove it from --ensemble" in refused.err) == (1, True)
    alone = run_tl("predict", photos, "--ensemble", color_model, "--vote-weights", out)
    assert alone.code == 0


def copy_as(copy: int, source: str, target: str) -> str:
    return str(shutil.copy(source, Path(target).with_stem(f"{Path(target).stem}-{copy}")))


def test_outputs__do_not_replace_what_they_are_made_of(
    run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path
) -> None:
    model, other = tmp_path / "m.onnx", make_model(tmp_path / "other.onnx", gain=0.01)
    shutil.copy(color_model, model)
    data = shutil.copytree(photos, tmp_path / "data")
    before = model.read_bytes()
    for words, message in (
        (("merge", model, other, "-o", model), "m.onnx: exists"),
        (("merge", model, other, "-o", model, "--overwrite"), "would overwrite a member"),
        (("inspect", model, "--html", model), "m.onnx: exists"),
        (("inspect", model, "--html", model, "--overwrite"), "expected a file name that ends in .html"),
        (("predict", data, "--model", model, "--explain", data), "the drawings would be read as images"),
    ):
        done = run_tl(*words)
        assert (done.code, message in done.err) == (1, True), done.err
    assert model.read_bytes() == before
    assert not list(data.rglob("*.why.jpg"))


def test_evaluate__merged_is_a_merged_file(run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other.onnx", gain=0.01)
    done = run_tl("evaluate", photos, "--ensemble", color_model, other, "--merged", other)
    assert (done.code, "other: not a merged file" in done.err) == (1, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("export", "run", "--precision", "int8", "--false-alarm", "0.1"), "--false-alarm requires a run and fp32"),
        (("export", "run", "--no-unknown", "--false-alarm", "0.1"), "--false-alarm requires a run and fp32"),
        (("merge", "a.onnx", "b.onnx", "--false-alarm", "0.1"), "--false-alarm requires --calibrate"),
    ],
)
def test_false_alarm__is_refused_where_it_would_be_ignored(run_tl: RunTl, words: tuple[str, ...], message: str) -> None:
    done = run_tl(*words)
    assert (done.code, message in done.err) == (1, True), done.err


def test_predict__explain(run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path) -> None:
    why = tmp_path / "why"
    done = run_tl("predict", photos, "--model", color_model, "--explain", why, "--min-confidence", "0.9999")
    assert done.code == 0
    assert {row["label"] for row in done.rows()} == {"?"}  # explains the label before rejection
    drawn = sorted(path.name for path in why.rglob("*.why.jpg"))
    assert drawn == sorted(f"{path.name}.why.jpg" for path in photos.rglob("*.png"))
    refused = run_tl("predict", photos, "--model", color_model, "--explain", why, "--tta", "hflip")
    assert (refused.code, "--tta: --explain explains images without augmentation" in refused.err) == (1, True)


def test_tta__predict_and_evaluate(run_tl: RunTl, photos: Path, color_model: Path) -> None:
    rows = run_tl("predict", photos, "--model", color_model, "--tta", "hflip,crops").rows()
    assert {Path(row["path"]).parent.name == row["label"] for row in rows} == {True}
    done = run_tl("evaluate", photos, "--model", color_model, "--tta", "hflip,crops")
    before, after = done.rows()
    assert [row["tta"] for row in (before, after)] == ["", "hflip,crops"]
    assert (before["gain"], after["gain"], after["gain_p"]) == ("", "0.0000", "1.0000")
    assert float(before["images_per_s"]) > 0 < float(after["images_per_s"])
    for options, message in (
        (("predict", "--tta", "flip"), "--tta must contain each of hflip, vflip, crops at most once, got 'flip'"),
        (("evaluate", "--tta", "hflip", "--merged", color_model), "--merged: cannot be combined with --tta"),
    ):
        refused = run_tl(options[0], photos, "--model", color_model, *options[1:])
        assert (refused.code, message in refused.err) == (1, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--select",), "--select requires --fit-vote-weights FILE"),
        (("--fit-vote-weights", "w.json"), "at least two members and 10 images"),
        (("--vote-weights", "{folder}/faulty.json"), "not a file of tl evaluate --fit-vote-weights"),
        (("--vote-weights", "{folder}/other.json"), "contains weights for x, not among the members of --ensemble"),
    ],
)
def test_evaluate__faulty_vote_options(
    options: tuple[str, ...], message: str, run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "faulty.json").write_text("[1, 2]", encoding="utf-8")
    (tmp_path / "other.json").write_text('{"vote_weights": {"color": 1, "x": 2}}', encoding="utf-8")
    given = [option.format(folder=tmp_path) for option in options]
    done = run_tl("evaluate", photos, "--ensemble", color_model, *given)
    assert (done.code, message in done.err) == (1, True), done.err
