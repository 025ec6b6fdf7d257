from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl
from tests.models import COLORS, make_model


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [make_model(tmp_path / f"{name}.onnx", gain=gain) for name, gain in (("a", 0.05), ("b", 0.02), ("c", 0.1))]


def test_predict__model_to_stdout(run_tl: RunTl, photos: Path, color_model: Path) -> None:
    done = run_tl("predict", photos, "--model", color_model, "--device", "cpu")
    table = done.rows()
    assert done.code == 0
    assert list(table[0]) == ["path", "label", "confidence", "p:red", "p:green", "p:blue", "error"]
    assert [row["label"] for row in table] == ["blue"] * 2 + ["green"] * 2 + ["red"] * 2
    assert table[0]["path"] == f"{photos}/blue/0.png"
    assert "CPUExecutionProvider" in done.err


def test_predict__ensemble_as_written(run_tl: RunTl, photos: Path, three: list[Path]) -> None:
    done = run_tl("predict", f"{photos}/", "--ensemble", *three)
    table = done.rows()
    assert done.code == 0
    assert list(table[0])[-6:] == ["agreement", "entropy", "vote:a", "vote:b", "vote:c", "error"]
    assert {row["agreement"] for row in table} == {"1"}
    assert table[-1]["vote:b"] == "red"


def test_predict__ensemble_before_images(run_tl: RunTl, photos: Path, three: list[Path]) -> None:
    assert run_tl("predict", "--ensemble", *three, photos).out == run_tl("predict", photos, "--ensemble", *three).out


def test_predict__unreadable_picture_gets_a_row_and_exit_3(run_tl: RunTl, photos: Path, color_model: Path) -> None:
    (photos / "green" / "0.png").write_bytes(b"nothing like a picture")
    done = run_tl("predict", photos, "--model", color_model)
    bad = done.rows()[2]
    assert done.code == 3
    assert bad["path"].endswith("green/0.png")
    assert bad["label"] == "" == bad["p:red"]
    assert "not a picture" in bad["error"]
    assert "5 pictures predicted, 1 could not be read" in done.err


def test_predict__json_lines_file(run_tl: RunTl, photos: Path, three: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.jsonl"
    done = run_tl("predict", photos, "--ensemble", *three, "-o", out, "--vote", "hard", "--vote-weights", "2,1,1")
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert done.code == 0
    assert done.out == ""
    assert lines[0]["votes"] == ["blue"] * 3
    assert lines[0]["probabilities"] == {"red": 0.0, "green": 0.0, "blue": 1.0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["PHOTOS"], "give either --model"),
        (["PHOTOS", "--model", "MODEL", "--ensemble", "MODEL"], "give either --model"),
        (["PHOTOS", "--model", "gone.onnx"], "gone.onnx: no such file"),
        (["gone/", "--model", "MODEL"], "gone/: no such file or folder"),
        (["PHOTOS", "--model", "MODEL", "-o", "out.xlsx"], "ends in .csv or .jsonl"),
        (["PHOTOS", "--ensemble", "MODEL", "--vote-weights", "1,x"], "expected numbers such as 2,1,1"),
        (["PHOTOS", "--ensemble", "MODEL", "--vote-weights", "1,2"], "vote weights"),
        (["PHOTOS", "--model", "MODEL", "--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_predict__faults_are_one_line_and_exit_1(
    run_tl: RunTl, photos: Path, color_model: Path, words: list[str], message: str
) -> None:
    placed = [{"PHOTOS": str(photos), "MODEL": str(color_model)}.get(word, word) for word in words]
    done = run_tl("predict", *placed)
    assert done.code == 1
    assert message in done.err.splitlines()[-1]
    assert done.out == ""


def test_predict__cuda_without_cuda_is_an_error_with_its_cause(run_tl: RunTl, photos: Path, color_model: Path) -> None:
    from tl.runtime.session import cuda_fault

    if cuda_fault() is None:
        pytest.skip("CUDA works here")
    done = run_tl("predict", photos, "--model", color_model, "--device", "cuda")
    assert done.code == 1
    assert "device 'cuda' cannot be used: " in done.err
    assert cuda_fault() in done.err  # type: ignore[operator]  # not None, as asked above


def test_predict__classes_must_match_or_be_joined(
    run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other.onnx", ("red", "green", "cyan"))
    refused = run_tl("predict", photos, "--ensemble", color_model, other)
    joined = run_tl("predict", photos, "--ensemble", color_model, other, "--classes", "union")
    assert refused.code == 1
    assert "lacks 'blue' and adds 'cyan'" in refused.err
    assert [name for name in joined.rows()[0] if name.startswith("p:")] == [f"p:{c}" for c in (*COLORS, "cyan")]
