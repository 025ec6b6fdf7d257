"""evaluate, inspect and verify: the commands that look at a model file."""

from __future__ import annotations

import json
from pathlib import Path

from tests.commands.conftest import RunTl
from tests.models import make_contract, make_model


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


def test_evaluate__unreadable_pictures_are_listed(run_tl: RunTl, photos: Path, color_model: Path) -> None:
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
    assert contract["recipe"]["resize_mode"] == "squash"


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
