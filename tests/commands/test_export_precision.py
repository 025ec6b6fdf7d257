from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl
from tests.trainer.make import make_class_folders, train_here
from tl.exporter import speed_comparison


def test_export__lower_precision_needs_a_run(run_tl: RunTl) -> None:
    done = run_tl("export", "--pretrained", "mobilenet_v2", "--images", ".", "--precision", "int8")
    assert (done.code, done.out) == (1, "")
    assert "tl: --precision int8 requires a run" in done.err


@pytest.mark.slow
def test_export__fp16_is_shown_inspected_verified_and_predicts(
    run_tl: RunTl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed_comparison, "_SECONDS_A_ROUND", 0.02)
    photos = make_class_folders(tmp_path / "photos", 10)
    train_here(photos, tmp_path / "run", epochs=4)
    words = ("--precision", "fp16", "--keep-slower", "--device", "cpu", "--json")
    done = run_tl("export", tmp_path / "run", "-o", tmp_path / "half.onnx", *words)
    assert done.code == 0, done.err
    found = json.loads(done.out)["quantization"]
    share = f"{round(6 * found['top1_agreement'])} of 6 validation images"
    assert f"fp16: top-1 agreement with fp32 {found['top1_agreement']:.1%} ({share}" in done.err
    assert f"speed {found['speedup']:.2f} x fp32" in done.err

    shown = run_tl("inspect", tmp_path / "half.onnx").out
    assert "classification, fp16" in shown
    assert f"agrees with fp32 on {found['top1_agreement']:.1%} of 6 images" in shown
    assert ("kept although it is not faster" in shown) == found["kept_slower"]
    assert "(allowed 2e-02)" in run_tl("verify", tmp_path / "half.onnx", "--device", "cpu").err
    predicted = run_tl("predict", photos / "red", "--model", tmp_path / "half.onnx", "--device", "cpu")
    assert predicted.code == 0
    assert [row["label"] for row in predicted.rows()] == ["red"] * 10
