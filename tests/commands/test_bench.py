"""bench and doctor: the commands that examine this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl

BENCH = ("--device", "cpu", "--threads", "2", "--seconds", "0.5", "--image-size", "160x120")


def test_bench__table_and_advice(run_tl: RunTl, color_model: Path) -> None:
    done = run_tl("bench", color_model, *BENCH)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith(f"{color_model}: input 8x8, onnxruntime")
    assert lines[1].startswith("images: generated, 160x120 JPEG, 4 of 0.0")
    assert re.split(r"  +", lines[3])[:5] == ["part", "device", "hint", "threads", "batch"]
    assert re.match(r"network +cpu +throughput +2 +1 +\d+\.\d +\d+\.\d to \d+\.\d( +\d+\.?\d*){3} +\d+$", lines[4])
    assert re.search(r"^many images: load\(model, device=\"cpu\", threads=", done.out, re.MULTILINE)
    assert re.search(r"^one image at a time: load\(model, device=\"cpu\", threads=", done.out, re.MULTILINE)
    assert re.search(r"^the bottleneck is (decoding|the network)", done.out, re.MULTILINE)
    assert "many images" not in done.err  # figures go to stdout, progress to stderr


def test_bench__json(run_tl: RunTl, color_model: Path, photos: Path) -> None:
    done = run_tl("bench", color_model, "--images", photos, *BENCH, "--json")
    answer = json.loads(done.out)
    assert answer["model"] == str(color_model)
    assert answer["images"]["count"] == 6
    assert answer["images"]["source"] == str(photos)
    assert {"part", "device", "hint", "threads", "batch_size", "images_per_s", "p50_ms", "p90_ms", "p99_ms"} <= set(
        answer["rows"][0]
    )
    assert {row["part"] for row in answer["rows"]} == {"network", "decode", "together"}
    assert answer["advice"]["bound"] in ("decoding", "network", "both")
    assert 0 < answer["advice"]["decoding_share"] < 1


def test_bench__unreadable_images_are_told(run_tl: RunTl, color_model: Path, photos: Path) -> None:
    (photos / "red" / "1.png").write_bytes(b"")
    done = run_tl("bench", color_model, "--images", photos, *BENCH[:-4], "--seconds", "0")
    assert done.code == 0
    assert "1 images could not be read" in done.err
    assert "not measured for lack of time: batches of 2, 4, 8, 16, 32 on cpu throughput; batches of" in done.out


@pytest.mark.parametrize("size", ["4000", "0x10", "99999x99999", "-4x4", "4x4x4"])
def test_bench__impossible_image_size(run_tl: RunTl, color_model: Path, size: str) -> None:
    done = run_tl("bench", color_model, "--image-size", size)
    assert done.code == 1
    assert "--image-size: expected WIDTHxHEIGHT" in done.err


def test_bench__missing_model(run_tl: RunTl, tmp_path: Path) -> None:
    done = run_tl("bench", tmp_path / "missing.onnx")
    assert (done.code, done.out) == (1, "")
    assert "no such file" in done.err


def test_doctor__json_has_facts(run_tl: RunTl) -> None:
    findings = {one["name"]: one for one in json.loads(run_tl("doctor", "--json").out)}
    assert set(findings) >= {"tl", "cores", "onnxruntime", "providers", "driver", "libraries", "cuda", "decoding"}
    assert findings["cores"]["facts"]["usable"] >= 1
    assert findings["decoding"]["facts"]["width"] == 4000
    assert findings["session cpu"]["ok"] is True
