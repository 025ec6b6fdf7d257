from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl
from tests.exporter.adoption.foreign_models import make_foreign, make_huggingface, make_ultralytics
from tests.models import make_model
from tl.runtime.imaging.preprocessing import build_preprocessing


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("red\ngreen\nblue\n", encoding="utf-8")
    return path


@pytest.fixture
def adopted(run_tl: RunTl, photos: Path, tmp_path: Path) -> Path:
    out = tmp_path / "adopted.onnx"
    foreign = make_ultralytics(tmp_path / "yolo.onnx")
    done = run_tl("adopt", foreign, "--preset", "ultralytics", "--images", photos, "-o", out)
    assert done.code == 0, done.err
    return out


def test_adopt__says_what_it_found_and_proved(run_tl: RunTl, photos: Path, labels: Path, tmp_path: Path) -> None:
    foreign, out = make_foreign(tmp_path / "net.onnx"), tmp_path / "adopted.onnx"
    done = run_tl("adopt", foreign, "--preset", "timm", "--labels", labels, "--images", photos, "-o", out, "--json")
    assert done.code == 0
    assert "found: input NCHW 32x32, output logits, 3 classes; timm: resize short_side 36, bicubic" in done.err
    assert "parity with the original file on 6 images: probabilities differ by at most" in done.err
    assert "3 classes, opset 18, verified" in done.err
    assert "embeds 4 of these images" in done.err
    answer = json.loads(done.out)
    assert (answer["path"], answer["parity"]["images"], answer["parity"]["top1_agreement"]) == (str(out), 6, 1.0)


def test_adopt__without_images(run_tl: RunTl, labels: Path, tmp_path: Path) -> None:
    foreign, out = make_foreign(tmp_path / "net.onnx"), tmp_path / "adopted.onnx"
    done = run_tl("adopt", foreign, "--preset", "imagenet", "--labels", labels, "-o", out)
    assert done.code == 0
    assert "no --images: parity is checked on noise" in done.err
    assert "on 8 noise images" in done.err
    assert "embeds" not in done.err


def test_adopt__own_numbers(run_tl: RunTl, photos: Path, labels: Path, tmp_path: Path) -> None:
    foreign, out = make_foreign(tmp_path / "net.onnx", hw=("h", "w"), layout="nhwc"), tmp_path / "adopted.onnx"
    numbers = ["--scale", "1/127.5", "--mean", "1", "--std", "1,1,0.5", "--image-size", "24x32"]
    resize = ["--resize-mode", "squash", "--interpolation", "lanczos", "--golden", "synthetic"]
    done = run_tl(
        "adopt", foreign, "--preset", "imagenet", "--labels", labels, "--images", photos, "-o", out, *numbers, *resize
    )
    assert done.code == 0
    assert "NHWC 32x24" in done.err
    assert "resize squash, lanczos, scale 0.00784314, mean 1,1,1, std 1,1,0.5" in done.err
    contract = json.loads(run_tl("inspect", out, "--json").out)
    assert (contract["preprocessing"]["input_hw"], contract["golden"]["source"]) == ([24, 32], "synthetic")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", "big"], "--scale: expected a number, or a fraction such as 1/255, found 'big'"),
        (["--scale", "1/0"], "--scale: expected a number"),
        (["--mean", "1,2"], "--mean: expected one number, or three"),
        (["--image-size", "32x"], "--image-size: expected pixels"),
        (["--image-size", "0"], "--image-size: expected pixels"),
        (["--preset", "huggingface-folder"], "preprocessor_config.json: No such file"),
        (["--preset", "ultralytics"], "without Ultralytics' metadata; use another preset"),
        (["-o", "adopted.pt"], "expected a file name that ends in .onnx"),
    ],
)
def test_adopt__faults_are_one_line_and_exit_1(
    run_tl: RunTl, labels: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    foreign = make_foreign(tmp_path / "in" / "net.onnx")
    done = run_tl("adopt", foreign, "--preset", "imagenet", "--labels", labels, *words)
    assert done.code == 1
    assert message in done.err


def test_adopt__a_folder_needs_its_preset(run_tl: RunTl, tmp_path: Path) -> None:
    done = run_tl("adopt", make_huggingface(tmp_path / "hf"), "--preset", "timm")
    assert done.code == 1
    assert "is a folder; give the .onnx file in it\nhint: --preset huggingface-folder" in done.err


def test_adopted__predicts_like_our_own(run_tl: RunTl, photos: Path, adopted: Path) -> None:
    done = run_tl("predict", photos, "--model", adopted, "--device", "cpu")
    assert done.code == 0
    assert [row["label"] for row in done.rows()] == ["blue"] * 2 + ["green"] * 2 + ["red"] * 2


def test_adopted__verifies_and_is_inspected(run_tl: RunTl, adopted: Path) -> None:
    assert "verified on the CPU in fp32: 4 samples" in run_tl("verify", adopted, "--device", "cpu").err
    text = run_tl("inspect", adopted).out
    assert "3: red, green, blue" in text
    assert "pytorch, adopted, weights yolo.onnx (sha256 " in text
    assert "short side 32 then center crop" in text


def test_adopted__votes_with_our_own(run_tl: RunTl, photos: Path, adopted: Path, tmp_path: Path) -> None:
    own = make_model(tmp_path / "own.onnx", ("blue", "red", "green"), preprocessing=build_preprocessing((16, 24)))
    votes = run_tl("predict", photos, "--ensemble", adopted, own, "--device", "cpu")
    assert votes.code == 0
    assert {row["agreement"] for row in votes.rows()} == {"1"}
    assert [row["vote:adopted"] for row in votes.rows()] == [row["vote:own"] for row in votes.rows()]
    scores = run_tl("evaluate", photos, "--ensemble", adopted, own, "--device", "cpu")
    assert scores.code == 0
    assert [row["model"] for row in scores.rows()] == ["adopted", "own", *["ensemble"] * 3, "oracle"]
    assert {row["top1_accuracy"] for row in scores.rows()} == {"1.0000"}
