"""Sequences, films and EXIF columns of `tl predict`."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl
from tests.models import make_model
from tests.runtime.exif_photos import save_photo
from tests.runtime.films import make_film, make_noise_film, needs_ffmpeg
from tests.spots import USUAL_XY, make_spot_model, save_spots
from tl.runtime.output.claim import Claim, claim_output
from tl.runtime.output.sequence_rows import SequencePlan

RED, GREEN, BLUE, MUDDY = (200, 10, 10), (10, 200, 10), (10, 10, 200), (90, 100, 80)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def night(tmp_path: Path) -> Path:
    """Two visits to a camera: two red photos and a doubtful one, then a damaged and a blue one."""
    folder = tmp_path / "cam"
    times = ["12:00:00", "12:00:02", "12:00:20", "13:00:00", "13:00:01"]
    for i, (when, color) in enumerate(zip(times, (RED, RED, MUDDY, GREEN, BLUE), strict=True)):
        save_photo(folder / f"{i}.jpg", f"2026:05:01 {when}", color, make="Reconyx", model="HP2X")
    damaged = folder / "3.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    return folder


def test_predict__bursts_by_capture_time(run_tl: RunTl, night: Path, color_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    done = run_tl("predict", night, "--model", color_model, "--sequence", "exif:30s", "-o", out)
    assert done.code == 3  # one image is damaged
    assert f"2 sequences: {tmp_path / 'out.sequences.csv'}" in done.err
    first, second = str(night / "0.jpg"), str(night / "3.jpg")
    rows = table(out)
    assert list(rows[0]) == ["path", "label", "confidence", "p:red", "p:green", "p:blue", "sequence", "error"]
    assert [row["sequence"] for row in rows] == [first] * 3 + [second] * 2
    assert [row["label"] for row in rows] == ["red", "red", "green", "", "blue"]
    assert "truncated" in rows[3]["error"] or rows[3]["error"]
    visits = table(tmp_path / "out.sequences.csv")
    assert list(visits[0]) == [
        *("sequence", "label", "confidence", "p:red", "p:green", "p:blue"),
        *("images", "rejected", "failed", "agreement", "error"),
    ]
    assert [(v["sequence"], v["label"], v["images"], v["failed"]) for v in visits] == [
        (first, "red", "3", "0"),
        (second, "blue", "1", "1"),
    ]
    assert float(visits[0]["agreement"]) == pytest.approx(2 / 3, abs=1e-5)
    expected = sum(float(row["p:red"]) for row in rows[:3]) / 3
    assert float(visits[0]["p:red"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.xlsx"])
def test_predict__sequences_resume_with_the_same_bytes(
    run_tl: RunTl, night: Path, color_model: Path, tmp_path: Path, name: str
) -> None:
    words = ["predict", night, "--model", color_model, "--sequence", "exif:30s", "--sequence-vote", "hard", "--exif"]
    whole, parts = tmp_path / "whole" / name, tmp_path / "parts" / name
    run_tl(*words, "-o", whole)
    stopped = subprocess.Popen(
        [sys.executable, "-m", "tl", *map(str, words), "-o", str(parts), "--fail-fast"], stderr=subprocess.PIPE
    )
    stopped.communicate(timeout=60)
    assert not parts.exists()
    resumed = run_tl(*words, "-o", parts, "--resume")
    assert "4 rows kept from the earlier run" in resumed.err
    second = f"{Path(name).stem}.sequences{Path(name).suffix}"
    if name.endswith("xlsx"):
        assert (parts.parent / second).exists()
        return
    assert parts.read_bytes() == whole.read_bytes()
    assert (parts.parent / second).read_bytes() == (whole.parent / second).read_bytes()
    assert len((parts.parent / second).read_text().splitlines()) == (3 if name.endswith("csv") else 2)
    again = run_tl(*words, "-o", parts, "--resume")
    assert "5 rows kept" in again.err
    assert (parts.parent / second).read_bytes() == (whole.parent / second).read_bytes()


def test_predict__resume_with_another_rule_moves_no_old_sequence(
    run_tl: RunTl, night: Path, color_model: Path, tmp_path: Path
) -> None:
    words = ["predict", night, "--model", color_model, "-o", tmp_path / "out.csv"]
    run_tl(*words)
    run_tl(*words, "--sequence", "exif:5s", "--resume", "--overwrite")
    assert len({row["sequence"] for row in table(tmp_path / "out.csv")}) == 3
    run_tl(*words, "--sequence", "exif:2h", "--resume")
    assert {row["sequence"] for row in table(tmp_path / "out.csv")} == {str(night / "0.jpg")}
    assert len(table(tmp_path / "out.sequences.csv")) == 1


def test_predict__sequences_file_is_not_replaced(run_tl: RunTl, night: Path, color_model: Path, tmp_path: Path) -> None:
    words = ["predict", night, "--model", color_model, "--sequence", "exif:30s", "-o", tmp_path / "out.csv"]
    second = tmp_path / "out.sequences.csv"
    second.write_text("mine")
    refused = run_tl(*words)
    assert (refused.code, second.read_text()) == (1, "mine")
    assert f"{second}: exists: give another name, or replace it" in refused.err
    assert not (tmp_path / "out.csv").exists()
    assert run_tl(*words, "--overwrite").code == 3
    assert run_tl(*words).code == 3  # its own unchanged output
    second.write_text("changed")
    assert run_tl(*words).code == 1
    assert not Claim(second).is_interrupted


def test_predict__a_column_of_the_list(run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path) -> None:
    (photos / "green/0.png").write_bytes(b"torn")
    rows = ["photos/red/0.png,a", "photos/red/1.png,a", "photos/blue/0.png,a", "photos/green/0.png,b", "gone.png,b"]
    (tmp_path / "list.csv").write_text("\n".join(["file,specimen", *rows, "photos/green/1.png,"]) + "\n")
    words = ["predict", "--files-from", tmp_path / "list.csv", "--model", color_model, "--sequence"]
    done = run_tl(*words, "specimen", "-o", tmp_path / "out.csv", "--sequence-vote", "hard")
    assert done.code == 3
    visits = table(tmp_path / "out.sequences.csv")
    assert [(v["sequence"], v["label"], v["images"], v["failed"], v["error"]) for v in visits] == [
        ("a", "red", "3", "0", ""),
        ("b", "", "0", "2", "no image of the sequence could be read"),
        (str(photos / "green/1.png"), "green", "1", "0", ""),
    ]
    assert float(visits[0]["p:red"]) == pytest.approx(2 / 3, abs=1e-6)
    unknown = run_tl(*words, "speciman", "-o", tmp_path / "new.csv")
    assert unknown.code == 1
    assert "has no column 'speciman' for sequences (nearest: 'specimen')" in unknown.err
    by_hand = run_tl(*words, "specimen", "--path-column", "file", "-o", tmp_path / "new.csv")
    assert (tmp_path / "new.csv").exists(), by_hand.err


def test_predict__sequences_with_images_in_any_order(
    run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path
) -> None:
    names = ["red/0.png,a", "blue/0.png,b", "red/1.png,a", "blue/1.png,b"]
    (photos / "list.csv").write_text("\n".join(["path,s", *names]) + "\n")
    words = ["predict", photos / "red/0.png", "--files-from", photos / "list.csv", "--model", color_model]
    assert run_tl(*words, "--sequence", "s", "-o", tmp_path / "out.csv").code == 0
    assert len(table(tmp_path / "out.csv")) == 5  # an image that is given twice has two rows and one vote
    visits = table(tmp_path / "out.sequences.csv")
    assert [(v["sequence"], v["label"], v["images"]) for v in visits] == [("a", "red", "2"), ("b", "blue", "2")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sequence", "exif:30x", "-o", "OUT"], "expected a duration above 0 such as exif:30s"),
        (["--sequence", "exif:-3s", "-o", "OUT"], "expected a duration above 0 such as exif:30s"),
        (["--sequence", "exif", "-o", "OUT"], "expected a duration above 0 such as exif:30s"),
        (["--sequence", "event", "-o", "OUT"], "--sequence event is a column of a CSV"),
        (["--sequence", "exif:30s"], "--sequence writes sequences beside the output: give --out"),
        (["--sequence-vote", "hard", "-o", "OUT"], "--sequence-vote requires --sequence"),
        (["--every", "1s"], "--every writes sequences beside the output: give --out"),
        (["--every", "fast", "-o", "OUT"], "--every: expected a time such as 1s"),
        (["--every", "0s", "-o", "OUT"], "--every: expected a time such as 1s"),
        (["--path-column", "x", "-o", "OUT"], "--path-column requires --sequence COLUMN"),
        (["--sequence", "exif:30s", "-o", "OUT"], "none of the 6 images has a capture time"),
    ],
)
def test_predict__sequence_faults(
    run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    given = [str(tmp_path / "out.csv") if word == "OUT" else word for word in words]
    done = run_tl("predict", photos, "--model", color_model, *given)
    assert done.code == 1
    assert message in done.err
    assert not (tmp_path / "out.csv").exists()


def test_predict__sequences_say_what_is_odd(run_tl: RunTl, night: Path, color_model: Path, tmp_path: Path) -> None:
    save_photo(night / "5.jpg")
    save_photo(night / "6.jpg", "0000:00:00 00:00:00")
    save_photo(night / "7.jpg", "2099:01:01 00:00:00")
    done = run_tl("predict", night, "--model", color_model, "--sequence", "exif:30s", "-o", tmp_path / "out.csv")
    assert f"2 images have no capture time, first {night / '5.jpg'}: each is a sequence of its own" in done.err
    assert f"1 images were taken in the future by their EXIF data, first {night / '7.jpg'}" in done.err
    assert len(table(tmp_path / "out.sequences.csv")) == 5


def test_predict__sequences_of_an_archive_and_of_an_ensemble(
    run_tl: RunTl, night: Path, color_model: Path, tmp_path: Path
) -> None:
    shutil.make_archive(str(tmp_path / "night"), "zip", night)
    other = make_model(tmp_path / "other.onnx", gain=0.1)
    words = ["--sequence", "exif:30s", "--min-confidence", "0.99", "-o", tmp_path / "out.csv"]
    done = run_tl("predict", tmp_path / "night.zip", "--ensemble", color_model, other, *words)
    assert done.code == 3, done.err
    visits = table(tmp_path / "out.sequences.csv")
    assert [(v["sequence"], v["label"]) for v in visits] == [
        (f"{tmp_path}/night.zip/0.jpg", "?"),
        (f"{tmp_path}/night.zip/3.jpg", "blue"),
    ]
    assert visits[0]["reason"].startswith("confidence 0.")


def test_predict__exif_columns(run_tl: RunTl, tmp_path: Path, color_model: Path) -> None:
    place = {1: "N", 2: (52.0, 31.0, 12.0), 3: "W", 4: (13.0, 24.0, 36.0)}
    facts = {"offset": "+02:00", "make": 'Canon, "Inc"', "model": "EOS", "gps": place}
    save_photo(tmp_path / "p/a.jpg", "2026:05:01 12:00:00", **facts)
    save_photo(tmp_path / "p/b.png")
    (tmp_path / "p/c.jpg").write_bytes(b"torn,\n")
    done = run_tl("predict", tmp_path / "p", "--model", color_model, "--exif")
    first, second, third = done.rows()
    assert list(first)[-6:] == ["captured", "camera_make", "camera_model", "latitude", "longitude", "error"]
    assert list(first.values())[-6:] == ["2026-05-01T12:00:00+02:00", 'Canon, "Inc"', "EOS", "52.52", "-13.41", ""]
    assert list(second.values())[-6:] == [""] * 6
    assert list(third.values())[-6:-1] == [""] * 5
    assert "not an image" in third["error"]
    out = tmp_path / "out.jsonl"
    run_tl("predict", tmp_path / "p", "--model", color_model, "--exif", "-o", out)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert lines[0]["latitude"] == 52.52
    assert lines[1]["captured"] is None
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    out = tmp_path / "out.parquet"
    run_tl("predict", tmp_path / "p/a.jpg", "--model", color_model, "--exif", "--sequence", "exif:1s", "-o", out)
    (row,) = pyarrow.parquet.read_table(out).to_pylist()
    assert (row["latitude"], row["longitude"], row["camera_model"]) == (52.52, -13.41, "EOS")
    (row,) = pyarrow.parquet.read_table(tmp_path / "out.sequences.parquet").to_pylist()
    assert (row["label"], row["images"], row["failed"]) == ("red", 1, 0)


def test_predict__exif_columns_of_an_archive(run_tl: RunTl, night: Path, color_model: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "night"), "zip", night)
    done = run_tl("predict", tmp_path / "night.zip", "--model", color_model, "--exif", "-o", tmp_path / "out.csv")
    rows = {row["path"].rpartition("/")[2]: row for row in table(tmp_path / "out.csv")}
    assert done.code == 3
    assert (rows["2.jpg"]["captured"], rows["2.jpg"]["label"]) == ("2026-05-01T12:00:20", "green")
    assert (rows["3.jpg"]["captured"], rows["3.jpg"]["label"]) == ("2026-05-01T13:00:00", "")
    plain = run_tl("predict", night, "--model", color_model).rows()
    assert [row["label"] for row in plain] == [rows[f"{i}.jpg"]["label"] for i in range(5)]


def test_predict__exif_columns_of_landmarks(run_tl: RunTl, tmp_path: Path) -> None:
    model = make_spot_model(tmp_path / "m.onnx")
    save_spots(tmp_path / "p/a.png", USUAL_XY)
    words = ["predict", tmp_path / "p", "--model", model]
    assert run_tl(*words, "--exif", "-o", tmp_path / "out.csv").code == 0
    assert table(tmp_path / "out.csv")[0]["captured"] == ""
    converted = run_tl("convert", tmp_path / "out.csv", tmp_path / "out.json", "--images", tmp_path)
    assert "captured" not in converted.err
    refused = run_tl(*words, "--exif", "-o", tmp_path / "out.tps")
    assert "--exif adds columns to tables" in refused.err
    refused = run_tl(*words, "--sequence", "exif:3s", "-o", tmp_path / "new.csv")
    assert "--sequence: applies only to classifiers" in refused.err


@needs_ffmpeg
def test_predict__films(run_tl: RunTl, tmp_path: Path, photos: Path, color_model: Path) -> None:
    make_film(photos / "cam/film.mp4", colors=("red", "red", "blue"))
    (photos / "cam/broken.avi").write_bytes(b"no film")
    silent = run_tl("predict", photos, "--model", color_model)
    assert (len(silent.rows()), silent.code) == (6, 0)
    assert "skipped: 2 films" in silent.err
    assert "--every 1s predicts the frames of films" in silent.err
    words = ["predict", photos, "--model", color_model, "--every", "1s", "-o", tmp_path / "out.csv"]
    assert run_tl(*words).code == 3
    film, broken = str(photos / "cam/film.mp4"), str(photos / "cam/broken.avi")
    rows = table(tmp_path / "out.csv")[2:6]
    assert [row["path"] for row in rows] == [broken, *(f"{film}#t={i}.000" for i in range(3))]
    assert [row["sequence"] for row in rows] == [broken, film, film, film]
    assert [row["label"] for row in rows] == ["", "red", "red", "blue"]
    visits = {visit["sequence"]: visit for visit in table(tmp_path / "out.sequences.csv")}
    assert len(visits) == 8
    assert (visits[film]["label"], visits[film]["images"], visits[film]["failed"]) == ("red", "3", "0")
    assert visits[broken]["error"] == "no image of the sequence could be read"
    before = {path: (tmp_path / path).read_bytes() for path in ("out.csv", "out.sequences.csv")}
    resumed = run_tl(*words, "--resume")
    assert "9 rows kept" in resumed.err
    assert before == {path: (tmp_path / path).read_bytes() for path in before}


@needs_ffmpeg
def test_predict__films_by_a_column_and_on_processes(run_tl: RunTl, tmp_path: Path, color_model: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        make_film(tmp_path / name, colors=("green",))
    save_photo(tmp_path / "c.jpg", color=RED)
    (tmp_path / "list.csv").write_text("path,visit\na.mp4,v\nb.mp4,v\nc.jpg,w\n")
    words = ["predict", "--files-from", tmp_path / "list.csv", "--model", color_model, "--every", "0.5s"]
    words += ["--sequence", "visit", "--decode-processes", "1", "--batch-size", "2", "-o", tmp_path / "out.csv"]
    done = run_tl(*words)
    assert done.code == 0, done.err
    visits = table(tmp_path / "out.sequences.csv")
    assert [(v["sequence"], v["label"], v["images"]) for v in visits] == [("v", "green", "4"), ("w", "red", "1")]


@needs_ffmpeg
def test_predict__films_of_landmarks_are_frames(run_tl: RunTl, tmp_path: Path) -> None:
    model = make_spot_model(tmp_path / "m.onnx")
    film = make_film(tmp_path / "film.mp4")
    done = run_tl("predict", film, "--model", model, "--every", "1s")
    assert done.code == 0, done.err
    assert [row["path"] for row in done.rows()] == [f"{film}#t={i}.000" for i in range(3)]
    assert "sequence" not in done.rows()[0]


def test_predict__films_without_ffmpeg(
    run_tl: RunTl, tmp_path: Path, color_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "film.mp4").write_bytes(b"x")
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["--model", color_model, "--every", "1s", "-o", tmp_path / "out.csv"]
    done = run_tl("predict", tmp_path / "film.mp4", *words)
    assert done.code == 3
    (row,) = table(tmp_path / "out.csv")
    assert "films require the program ffmpeg, which is not installed" in row["error"]


@needs_ffmpeg
def test_predict__interrupted_in_a_film_leaves_no_process(tmp_path: Path, color_model: Path) -> None:
    film = make_noise_film(tmp_path / "film.avi", 120, "-c:v", "mjpeg")
    words = [sys.executable, "-m", "tl", "predict", film, "--model", color_model, "--every", "10ms"]
    command = subprocess.Popen([*map(str, words), "-o", str(tmp_path / "out.csv")], stderr=subprocess.PIPE, text=True)
    rows = Claim(tmp_path / "out.csv").rows
    until = time.monotonic() + 60
    while not (rows.exists() and rows.stat().st_size > 1000) and time.monotonic() < until:
        time.sleep(0.05)
    command.send_signal(signal.SIGINT)
    _, told = command.communicate(timeout=120)
    assert command.returncode == 130, told
    assert "add --resume to continue" in told
    until = time.monotonic() + 20
    while any(_names(path, film) for path in Path("/proc").glob("[0-9]*/cmdline")):
        assert time.monotonic() < until
        time.sleep(0.05)


def _names(cmdline: Path, film: Path) -> bool:
    try:
        return os.fsencode(film) in cmdline.read_bytes() and b"ffmpeg" in cmdline.read_bytes()
    except OSError:
        return False


def test_sequence_plan__frames_belong_to_their_film() -> None:
    plan = SequencePlan({"a.mp4": "v"})
    assert [plan[name] for name in ("a.mp4", "a.mp4#t=1.000", "b.mp4#t=0.500", "c.jpg", "d#t=x")] == [
        *("v", "v", "b.mp4", "c.jpg", "d#t=x"),
    ]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_predict__sequences_keep_the_bytes_of_names(
    run_tl: RunTl, night: Path, color_model: Path, tmp_path: Path, suffix: str
) -> None:
    odd = os.fsencode(night) + b'/\xe9,\n"0.jpg'
    os.rename(night / "0.jpg", odd)
    out = tmp_path / f"out.{suffix}"
    words = ["predict", night, "--model", color_model, "--sequence", "exif:30s", "--exif", "-o", out]
    assert run_tl(*words).code == 3
    second = tmp_path / f"out.sequences.{suffix}"
    before = out.read_bytes(), second.read_bytes()
    assert b"\xe9,\\n" in before[1] if suffix == "jsonl" else b"\xe9,\n" in before[1]
    assert "5 rows kept" in run_tl(*words, "--resume").err
    assert before == (out.read_bytes(), second.read_bytes())


def test_predict__a_second_process_is_told_of_the_first(
    run_tl: RunTl, night: Path, color_model: Path, tmp_path: Path
) -> None:
    words = ["predict", night, "--model", color_model, "--sequence", "exif:30s", "-o", tmp_path / "out.csv"]
    with claim_output(tmp_path / "out.sequences.csv"):
        refused = run_tl(*words)
    assert (refused.code, (tmp_path / "out.csv").exists()) == (1, False)
    assert "out.sequences.csv: is being written by process" in refused.err
    assert run_tl(*words).code == 3
