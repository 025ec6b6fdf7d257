"""Prediction in shards: joined, they are one run's output byte for byte; whatever does not fit is refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from tests.commands.conftest import RunTl
from tests.composites import detection, make_composite, megadetector
from tests.models import make_contract, make_model, solid
from tests.serving.models import make_regression_model
from tests.spots import USUAL_XY, make_spot_model, save_spots
from tl.runtime.imaging.regions import BoxCrop
from tl.runtime.output.claim import Claim

SECONDS = 120


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Folders of 30 images, an archive of 8 beside them, and two files that cannot be read."""
    rng = np.random.default_rng(0)
    for i in range(30):
        path = tmp_path / "many" / f"{'abc'[i % 3]}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(solid(tuple(rng.integers(0, 256, 3).tolist()), 9, 10)).save(path)
    (tmp_path / "many" / "b" / "broken.png").write_bytes(b"nothing like an image")
    (tmp_path / "many" / 'z, "quoted".png').write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        for i in range(8):
            archive.write(tmp_path / "many" / "a" / f"{3 * i}.png", f"inside/{i}.png")
    return tmp_path / "many"


def predict_shards(run_tl: RunTl, total: int, folder: Path, *words: object) -> list[int]:
    return [run_tl("predict", *words, "--shard", f"{n}/{total}", "-o", folder).code for n in range(1, total + 1)]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_predict__joined_shards_equal_one_run(run_tl: RunTl, many: Path, tmp_path: Path, suffix: str) -> None:
    models = [make_model(tmp_path / f"{name}.onnx", gain=gain) for name, gain in (("a", 0.05), ("b", 0.02))]
    listed = tmp_path / "list.txt"
    listed.write_text(f"{many}/c/2.png\n{tmp_path}/absent.png\n{many}/a/0.png\n{many}/a/0.png\n")
    words = [many, tmp_path / "more.zip", "--files-from", listed, "--ensemble", *models, "--device", "cpu", "--exif"]
    one, joined = tmp_path / f"one.{suffix}", tmp_path / f"joined.{suffix}"
    assert run_tl("predict", *words, "-o", one).code == 3
    codes = predict_shards(run_tl, 4, tmp_path / "parts", *words)
    assert set(codes) == {0, 3}
    done = run_tl("predict", "--join", tmp_path / "parts", "-o", joined)
    assert done.code == 3, done.err
    assert "4 shards joined: 44 rows, 3 could not be read" in done.err
    if suffix == "parquet":
        assert pyarrow.parquet.read_table(joined).equals(pyarrow.parquet.read_table(one))
    assert suffix == "parquet" or joined.read_bytes() == one.read_bytes()
    assert sorted(path.name for path in tmp_path.glob(".joined*")) == []


def test_predict__joined_boxes_and_landmarks(run_tl: RunTl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = []
    for i in range(9):
        placed = make_composite(tmp_path / "photos" / f"{i}.jpg", ["fox", "hare"], i)
        boxes = [detection(one.xywh) for one in placed][: i % 3]
        images.append({"file": f"photos/{i}.jpg", "detections": boxes})
    Path("md.json").write_text(json.dumps(megadetector(images)), encoding="utf-8")
    make_model(tmp_path / "boxed.onnx", contract=make_contract(boxes=BoxCrop(0.0, square=True)))
    boxed = ["photos", "photos/1.jpg", "--boxes", "md.json", "--model", "boxed.onnx", "--device", "cpu"]
    for i in range(5):
        save_spots(tmp_path / "spots" / f"{i}.png", USUAL_XY + i)
    (tmp_path / "spots" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    make_spot_model(tmp_path / "points.onnx")
    points = ["spots", "--model", "points.onnx", "--device", "cpu"]
    for name, words, suffixes in (("boxes", boxed, [".csv"]), ("points", points, [".csv", ".tps"])):
        predict_shards(run_tl, 3, tmp_path / name, *words)
        for suffix in suffixes:
            one, joined = Path(f"{name}-one{suffix}"), Path(f"{name}-joined{suffix}")
            code = run_tl("predict", *words, "-o", one).code
            assert run_tl("predict", "--join", name, "-o", joined).code == code
            assert joined.read_bytes() == one.read_bytes()
    assert Path("points-joined.tps.failed.csv").read_bytes() == Path("points-one.tps.failed.csv").read_bytes()


def test_predict__shard_killed_and_resumed(run_tl: RunTl, many: Path, color_model: Path, tmp_path: Path) -> None:
    names = sorted(map(str, many.rglob("[0-9]*.png")))
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names) * 100)
    words = ["predict", "--files-from", str(tmp_path / "list.txt"), "-m", str(color_model), "--threads", "1"]
    parts = tmp_path / "parts"

    def start(number: int, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tl", *words, "--shard", f"{number}/4", "-o", str(parts), *more]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    processes = {number: start(number) for number in (1, 2, 3, 4)}
    ledger = Claim(parts / "shard-002-of-004.jsonl").ledger
    end = time.monotonic() + SECONDS
    while not (ledger.exists() and ledger.stat().st_size > 1000):
        assert time.monotonic() < end
        time.sleep(0.002)
    processes[2].kill()
    for number, process in processes.items():
        _, error = process.communicate(timeout=SECONDS)
        assert process.returncode == (-9 if number == 2 else 0), error
    done = run_tl("predict", "--join", parts, "-o", tmp_path / "all.csv")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "shard-002-of-004 is unfinished: resume it" in done.err
    assert "missing" not in done.err
    resumed = start(2, "--resume")
    _, error = resumed.communicate(timeout=SECONDS)
    assert resumed.returncode == 0, error
    assert "rows kept from the earlier run" in error
    assert run_tl("predict", "--join", parts, "-o", tmp_path / "all.csv").code == 0
    assert run_tl("predict", "--join", parts, "-o", tmp_path / "all.parquet").code == 0
    assert run_tl(*words, "-o", tmp_path / "one.csv").code == 0
    assert run_tl(*words, "-o", tmp_path / "one.parquet").code == 0
    assert (tmp_path / "all.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    tables = [pyarrow.parquet.read_table(tmp_path / f"{name}.parquet") for name in ("all", "one")]
    assert tables[0].equals(tables[1])


def test_predict__new_images_move_no_other(run_tl: RunTl, many: Path, color_model: Path, tmp_path: Path) -> None:
    words, parts = [many, "-m", color_model, "--device", "cpu"], tmp_path / "parts"
    predict_shards(run_tl, 4, parts, *words)
    before = {path.name: set(path.read_text().splitlines()) for path in parts.glob("*.jsonl")}
    for i in range(5):
        shutil.copy(many / "a" / "0.png", many / "a" / f"new{i}.png")
    assert run_tl("predict", *words, "--shard", "1/4", "-o", parts, "--resume").code in (0, 3)
    done = run_tl("predict", "--join", parts, "-o", tmp_path / "all.csv")
    assert done.code == 1
    assert "shard-001-of-004 has seen another list of images (37, most shards 32)" in done.err
    for number in (2, 3, 4):
        done = run_tl("predict", *words, "--shard", f"{number}/4", "-o", parts, "--resume")
        assert "rows kept" in done.err
    assert run_tl("predict", "--join", parts, "-o", tmp_path / "all.csv").code == 3
    assert run_tl("predict", *words, "-o", tmp_path / "one.csv").code == 3
    assert (tmp_path / "all.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    for name, rows in before.items():
        assert rows <= set((parts / name).read_text().splitlines())


@pytest.mark.parametrize(
    ("shard", "out", "more", "fault"),
    [
        *((text, "parts", "", "shard: expected a number from 1") for text in ("0/4", "5/4", "a/b", "3", "1/0", "-1/4")),
        ("1/4", "", "", "give --out FOLDER"),
        ("1/4", "out.csv", "", "with --shard, --out is a folder"),
        ("1/4", "parts", "--sequence exif:30s", "--sequence: cannot be combined with --shard"),
        ("1/4", "parts", "--every 1s", "--every: cannot be combined with --shard"),
        ("1/4", "parts", "--excel", "give the format with --join"),
    ],
)
def test_predict__shard_refused(
    run_tl: RunTl, many: Path, color_model: Path, tmp_path: Path, shard: str, out: str, more: str, fault: str
) -> None:
    output = ["-o", tmp_path / out] if out else []
    done = run_tl("predict", many, "-m", color_model, f"--shard={shard}", *output, *more.split())
    assert (done.code, done.err.count("\n")) == (1, 1), done.err
    assert fault in done.err
    assert not (tmp_path / "parts").exists()


def test_predict__join_refuses_what_does_not_fit(run_tl: RunTl, many: Path, tmp_path: Path) -> None:
    a, b = (make_model(tmp_path / f"{name}.onnx", gain=gain) for name, gain in (("a", 0.05), ("b", 0.02)))
    parts, words = tmp_path / "parts", [many, "--device", "cpu"]
    predict_shards(run_tl, 6, parts, *words, "-m", a)

    def refusal(*more: object) -> str:
        done = run_tl("predict", "--join", parts, "-o", tmp_path / "all.csv", *more)
        assert (done.code, done.err.count("\n")) == (1, 1), done.err
        assert not (tmp_path / "all.csv").exists()
        return done.err

    for kind in ("json", "jsonl", "npy"):
        shutil.copy(parts / f"shard-002-of-006.{kind}", parts / f"shard-002-of-006 copy.{kind}")
    for path in parts.glob("shard-004-of-006.*"):
        path.unlink()
    shutil.rmtree(Claim(parts / "shard-004-of-006.jsonl").folder)
    with (parts / "shard-005-of-006.jsonl").open("a") as stream:
        stream.write("\n")
    run_tl("predict", *words, "-m", b, "--shard", "1/6", "-o", parts, "--overwrite")
    run_tl("predict", *words, "-m", a, "--min-confidence", "0.9", "--shard", "6/6", "-o", parts, "--overwrite")
    run_tl("predict", *words, "-m", a, "--shard", "3/5", "-o", parts)
    error = refusal()
    for fault in (
        "shard 2 of 6 is there twice: shard-002-of-006 copy and shard-002-of-006",
        "missing: shard 4 of 6",
        "shard-005-of-006.jsonl has changed since it was finished",
        "shard-001-of-006 was predicted with other model files (b.onnx)",
        "shard-006-of-006 was predicted with other settings",
        "shard-003-of-005 is of 5 shards, the others are of 6",
    ):
        assert fault in error
    (parts / "shard-003-of-006.json").write_text("{}")
    assert "shard-003-of-006.json cannot be read" in refusal()
    assert "--model: does not apply to --join" in refusal("-m", a)
    assert "--shard predicts a part of the images" in refusal("--shard", "1/2")
    (tmp_path / "empty").mkdir()
    done = run_tl("predict", "--join", tmp_path / "empty", "-o", tmp_path / "all.csv")
    assert "contains no shards" in done.err
    assert "no such folder" in run_tl("predict", "--join", tmp_path / "no", "-o", tmp_path / "all.csv").err
    assert "give --out" in run_tl("predict", "--join", parts).err


def test_predict__join_refuses_formats_that_one_run_refuses(
    run_tl: RunTl, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_model(Path("color.onnx"))
    make_regression_model(Path("numbers.onnx"))
    save_spots(Path("spots/0.png"), USUAL_XY)
    make_spot_model(Path("points.onnx"))
    make_spot_model(Path("part.onnx"), region="box")
    Path("boxes.csv").write_text("path,box_x,box_y,box_w,box_h\nspots/0.png,0,0,40,30\n", encoding="utf-8")
    placed = [make_composite(Path("photos") / f"{i}.jpg", ["fox"], i)[0] for i in range(2)]
    found = [[detection(placed[0].xywh)], []]
    boxes = megadetector([{"file": f"photos/{i}.jpg", "detections": found[i]} for i in range(2)])
    Path("md.json").write_text(json.dumps(boxes), encoding="utf-8")
    make_model(Path("boxed.onnx"), contract=make_contract(boxes=BoxCrop(0.0, square=True)))
    runs: dict[str, list[object]] = {
        "classes": [many / "a", "-m", "color.onnx"],
        "noted": [many / "a", "-m", "color.onnx", "--exif"],
        "numbers": [many / "a", "-m", "numbers.onnx"],
        "points": ["spots", "-m", "points.onnx", "--exif"],
        "boxes": ["photos", "-m", "boxed.onnx", "--boxes", "md.json"],
        "parts": ["spots", "-m", "part.onnx", "--boxes", "boxes.csv"],
    }
    for name, words in runs.items():
        assert predict_shards(run_tl, 2, Path(name), *words, "--device", "cpu") == [0, 0]
    formats = (("long", "csv"), ("cvat", "xml"), ("deeplabcut", "csv"), ("tps", "tps"), ("coco", "json"))
    for name, to, suffix, fault in (
        *(("classes", *named, "applies only to landmark models, but this is a classifier") for named in formats),
        ("boxes", "labelstudio", "json", "--to labelstudio writes one task per image, without --sequence, --exif and"),
        ("parts", "labelstudio", "json", "--to labelstudio writes one task per image, without --sequence, --exif and"),
        ("noted", "labelstudio", "json", "--to labelstudio writes one task per image, without --sequence, --exif and"),
        ("numbers", "labelstudio", "json", "--to labelstudio does not apply to a model for regression"),
        ("numbers", "long", "csv", "--to long does not apply to a model for regression"),
        ("points", "tps", "tps", "--exif adds columns to tables, but out.tps is a landmark file"),
    ):
        one = run_tl("predict", *runs[name], "-o", f"out.{suffix}", "--to", to, "--device", "cpu")
        done = run_tl("predict", "--join", name, "-o", f"out.{suffix}", "--to", to)
        assert (done.code, done.err.splitlines()) == (one.code, one.err.splitlines()[-1:])
        assert done.code == 1
        assert fault in done.err
        assert not list(tmp_path.glob("*out.*"))


def test_predict__joined_tasks_equal_one_run(
    run_tl: RunTl, many: Path, color_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["many", "-m", color_model, "--device", "cpu"]
    tasks = ["--to", "labelstudio", "--image-root", "many", "--image-prefix", "s3://bucket/"]
    assert run_tl("predict", *words, *tasks, "-o", "one.json").code == 3
    predict_shards(run_tl, 3, Path("parts"), *words)
    done = run_tl("predict", "--join", "parts", *tasks, "-o", "all.json")
    assert done.code == 3, done.err
    for suffix in ("json", "xml", "json.failed.csv"):
        assert Path(f"all.{suffix}").read_bytes() == Path(f"one.{suffix}").read_bytes()
    assert b'"s3://bucket/a/0.png"' in Path("all.json").read_bytes()
    for more, fault in (
        (["--engine", "ray"], "--engine: does not apply to --join"),
        (["--ray-actors", "2"], "--ray-actors: does not apply to --join"),
        (["--image-root", "many"], "--image-root and --image-prefix require --to labelstudio"),
        (["--to", "labelstudio", "--image-root", "parts"], "is not in parts"),
    ):
        done = run_tl("predict", "--join", "parts", "-o", "new.json", *more)
        assert done.code == 1
        assert fault in done.err
        assert not list(tmp_path.glob("new.*"))


def test_predict__join_replaces_nothing(run_tl: RunTl, many: Path, color_model: Path, tmp_path: Path) -> None:
    predict_shards(run_tl, 2, tmp_path / "parts", many, "-m", color_model, "--device", "cpu")
    (tmp_path / "all.csv").write_text("mine")
    done = run_tl("predict", "--join", tmp_path / "parts", "-o", tmp_path / "all.csv")
    assert (done.code, (tmp_path / "all.csv").read_text()) == (1, "mine")
    assert "exists: give another name" in done.err
    assert run_tl("predict", "--join", tmp_path / "parts", "-o", tmp_path / "all.csv", "--overwrite").code == 3
