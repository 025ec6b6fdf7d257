"""`tl predict` with boxes and sequences: each box of each image of a sequence has a vote."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openpyxl import load_workbook
from PIL import Image

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.models import make_contract, make_model
from tests.runtime.exif_photos import make_exif
from tl.runtime.imaging.regions import BoxCrop

RED, GREEN, BLUE = (200, 10, 10), (10, 200, 10), (10, 10, 200)
LEFT, RIGHT, OUTSIDE = (0, 0, 0.5, 1), (0.5, 0, 0.5, 1), (0, 0, 0, 0)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def save(path: Path, when: str, left: tuple[int, int, int], right: tuple[int, int, int]) -> None:
    """A photo of two halves, taken at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32], pixels[:, 32:] = left, right
    exif = make_exif(f"2026:05:01 {when}", make="Reconyx", model="HP2X")
    Image.fromarray(pixels).save(path, quality=95, exif=exif.tobytes())


def listed(name: str, *boxes: tuple[float, ...], conf: float = 0.9) -> dict[str, Any]:
    return {"file": name, "detections": [{"category": "1", "conf": conf, "bbox": list(box)} for box in boxes]}


@pytest.fixture
def night(tmp_path: Path) -> Path:
    """Three visits: a red and a blue animal, then red, then empty; nothing at all; a damaged and an invalid box.

    cam/*.jpg and cam/md.json.
    """
    folder = tmp_path / "cam"
    save(folder / "0.jpg", "12:00:00", RED, BLUE)
    save(folder / "1.jpg", "12:00:02", RED, GREEN)
    save(folder / "2.jpg", "12:00:04", GREEN, GREEN)
    save(folder / "3.jpg", "13:00:00", GREEN, GREEN)
    save(folder / "4.jpg", "14:00:00", GREEN, GREEN)
    save(folder / "5.jpg", "14:00:01", BLUE, GREEN)
    damaged = folder / "4.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    images = [
        *(listed("0.jpg", LEFT, RIGHT), listed("1.jpg", LEFT), listed("2.jpg"), listed("3.jpg", LEFT, conf=0.1)),
        *(listed("4.jpg", LEFT, RIGHT), listed("5.jpg", LEFT, OUTSIDE)),
    ]
    file = {"info": {"format_version": "1.5"}, "detection_categories": {"1": "animal"}, "images": images}
    (folder / "md.json").write_text(json.dumps(file), encoding="utf-8")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "boxed.onnx", contract=make_contract(boxes=BoxCrop(0.0, square=False)))


def test_predict__each_box_of_a_burst_votes(run_tl: RunTl, night: Path, model: Path, tmp_path: Path) -> None:
    words = ["--boxes", night / "md.json", "--sequence", "exif:30s", "--exif", "-o", tmp_path / "out.csv"]
    done = run_tl("predict", night, "--model", model, *words)
    assert done.code == 3, done.err
    first, second, third = (str(night / f"{i}.jpg") for i in (0, 3, 4))
    rows = table(tmp_path / "out.csv")
    assert [Path(row["path"]).stem for row in rows] == list("001234455")
    assert [row["sequence"] for row in rows] == [first] * 4 + [second] + [third] * 4
    assert [row["captured"][11:] for row in rows] == [
        *["12:00:00"] * 2,
        *("12:00:02", "12:00:04", "13:00:00"),
        *["14:00:00"] * 2,
        *["14:00:01"] * 2,
    ]
    assert {row["camera_model"] for row in rows} == {"HP2X"}
    assert list(rows[0])[-7:] == [
        *("sequence", "captured", "camera_make", "camera_model", "latitude", "longitude", "error"),
    ]
    visits = table(tmp_path / "out.sequences.csv")
    assert list(visits[0]) == [
        *("sequence", "label", "confidence", "p:red", "p:green", "p:blue"),
        *("images", "boxes", "rejected", "failed", "agreement", "reason", "error"),
    ]
    names = ("sequence", "label", "images", "boxes", "failed", "reason", "error")
    assert [[visit[name] for name in names] for visit in visits] == [
        [first, "red", "2", "3", "0", "", ""],
        [second, "", "0", "0", "0", "no box of confidence 0.2 or more", ""],
        [third, "blue", "1", "1", "2", "", ""],  # one image is damaged, and of the other a box is invalid
    ]
    assert float(visits[0]["p:red"]) == pytest.approx(sum(float(row["p:red"]) for row in rows[:3]) / 3, abs=1e-6)
    assert float(visits[0]["agreement"]) == pytest.approx(2 / 3, abs=1e-5)
    assert (visits[1]["confidence"], visits[1]["p:red"], visits[1]["agreement"]) == ("", "", "")


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
def test_predict__boxed_sequences_resume_with_the_same_bytes(
    run_tl: RunTl, night: Path, model: Path, tmp_path: Path, name: str
) -> None:
    words = ["predict", night, "--model", model, "--boxes", night / "md.json", "--sequence", "exif:2h", "--exif"]
    whole, parts = tmp_path / "whole" / name, tmp_path / "parts" / name
    assert run_tl(*words, "-o", whole).code == 3
    stopped = subprocess.run(
        [sys.executable, "-m", "tl", *map(str, words), "-o", str(parts), "--fail-fast", "--batch-size", "1"],
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    assert (stopped.returncode, parts.exists()) == (1, False), stopped.stderr
    resumed = run_tl(*words, "-o", parts, "--resume")
    assert "4 rows kept from the earlier run" in resumed.err  # three boxes, and the failed one
    second = f"{Path(name).stem}.sequences{Path(name).suffix}"
    for each in (name, second):
        assert (parts.parent / each).read_bytes() == (whole.parent / each).read_bytes()
    again = run_tl(*words, "-o", parts, "--resume")
    assert "rows kept" in again.err
    for each in (name, second):
        assert (parts.parent / each).read_bytes() == (whole.parent / each).read_bytes()


def test_predict__boxed_sequences_in_other_formats(run_tl: RunTl, night: Path, model: Path, tmp_path: Path) -> None:
    words = ["predict", night, "--model", model, "--boxes", night / "md.json", "--sequence", "exif:30s", "--exif"]
    assert run_tl(*words, "-o", tmp_path / "out.jsonl").code == 3
    lines = (tmp_path / "out.sequences.jsonl").read_text(encoding="utf-8").splitlines()
    visits = [json.loads(line) for line in lines]
    assert [(v.get("label"), v["images"], v["boxes"], v["failed"]) for v in visits] == [
        *(("red", 2, 3, 0), (None, 0, 0, 0), ("blue", 1, 1, 2)),
    ]
    assert visits[1] == {
        **{"sequence": str(night / "3.jpg"), "images": 0, "boxes": 0, "rejected": 0, "failed": 0},
        "reason": "no box of confidence 0.2 or more",
    }
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[3]["sequence"] == rows[0]["sequence"]
    assert rows[3]["captured"].endswith("12:00:04")
    assert run_tl(*words, "-o", tmp_path / "out.xlsx").code == 3
    sheet = load_workbook(tmp_path / "out.sequences.xlsx").active
    header, *cells = sheet.iter_rows(values_only=True)
    assert [dict(zip(header, row, strict=True))["boxes"] for row in cells] == [3, 0, 1]


def test_predict__boxed_sequences_of_unreadable_images(run_tl: RunTl, night: Path, model: Path, tmp_path: Path) -> None:
    """Images that are not listed, alone in a sequence, are an error of it; an image given twice has its votes once."""
    rows = ["0.jpg,a", "3.jpg,b", "gone.jpg,c", "4.jpg,b"]
    (night / "visits.csv").write_text("\n".join(["path,visit", *rows]) + "\n")
    given = [night / "0.jpg", night / "0.jpg", "--files-from", night / "visits.csv", "--sequence", "visit"]
    words = ["--model", model, "--boxes", night / "md.json", "-o", tmp_path / "out.csv"]
    done = run_tl("predict", *given, *words)
    assert done.code == 3, done.err
    assert len(table(tmp_path / "out.csv")) == 10
    visits = table(tmp_path / "out.sequences.csv")
    assert [[v[name] for name in ("sequence", "images", "boxes", "failed", "error")] for v in visits] == [
        ["a", "1", "2", "0", ""],
        ["c", "0", "0", "1", "no image of the sequence could be read"],
        ["b", "0", "0", "1", ""],
    ]


def test_predict__boxed_sequences_of_an_archive(run_tl: RunTl, night: Path, model: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "night.zip", "w") as archive:
        for path in sorted(night.glob("*.jpg")):
            archive.write(path, path.name)
    text = (night / "md.json").read_text(encoding="utf-8")
    (tmp_path / "md.json").write_text(text, encoding="utf-8")
    words = ["--boxes", tmp_path / "md.json", "--sequence", "exif:30s", "--exif", "-o", tmp_path / "out.csv"]
    done = run_tl("predict", tmp_path / "night.zip", "--model", model, *words)
    assert done.code == 3, done.err
    visits = table(tmp_path / "out.sequences.csv")
    assert [(v["label"], v["images"], v["boxes"], v["failed"]) for v in visits] == [
        *(("red", "2", "3", "0"), ("", "0", "0", "0"), ("blue", "1", "1", "2")),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--every", "1s", "-o", "out.csv"], "--every predicts whole frames of films"),
        (["--sequence", "exif:3s", "--to", "megadetector", "-o", "out.json"], "cannot be combined with --to megadet"),
        (["--exif", "--to", "megadetector", "-o", "out.json"], "cannot be combined with --to megadetector"),
        (["--boxes", "out.sequences.csv", "--sequence", "exif:3s", "-o", "out.csv", "--overwrite"], "is read by this"),
        (["--sequence", "exif:3s"], "--sequence writes sequences beside the output"),
    ],
)
def test_predict__boxed_sequences_refused(
    run_tl: RunTl, night: Path, model: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(night)
    own = Path("out.sequences.csv")
    text = "path,box_x,box_y,box_w,box_h\n0.jpg,0,0,8,8\n"
    if own.name in words:
        own.write_text(text, encoding="utf-8")
    done = run_tl("predict", ".", "--model", model, "--boxes", "md.json", *words)
    assert done.code == 1
    assert not own.exists() or own.read_text(encoding="utf-8") == text
    assert not Path("out.csv").exists()
    assert message in done.err
