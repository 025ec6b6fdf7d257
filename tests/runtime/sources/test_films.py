from __future__ import annotations

import gc
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tl.runtime.sources.films as films
from tests.runtime.films import make_film, make_noise_film, needs_ffmpeg
from tests.runtime.images import RECIPE, encode
from tl.errors import ImageReadError
from tl.runtime import load
from tl.runtime.imaging.decode import decode_image, source_name
from tl.runtime.sources.films import FrameBudget, count_frames, iter_frames
from tl.runtime.sources.inputs import find_inputs
from tl.runtime.sources.memory_files import MemoryFile, UnreadableFile
from tl.runtime.streams import MAX_GROUP


def names(path: Path, every: float = 1.0) -> list[str]:
    return [source_name(frame) for frame in iter_frames(str(path), every)]


def last_error(path: Path, every: float = 1.0) -> str:
    *_, last = iter_frames(str(path), every)
    assert isinstance(last, UnreadableFile)
    assert last.name == str(path)
    with pytest.raises(ImageReadError) as caught:
        last.read()
    return caught.value.reason


def running() -> list[str]:
    """The commands of this process's children, also of those that ended and wait to be read."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == str(os.getpid()):
            found.append((folder / "comm").read_text().strip())
    return [name for name in found if "ffmpeg" in name or "fake" in name]


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi", "webm", "mpg"])
def test_iter_frames__one_at_each_interval(tmp_path: Path, suffix: str) -> None:
    film = make_film(tmp_path / f"film.{suffix}", *(["-r", "25"] if suffix == "mpg" else []))
    frames = list(iter_frames(str(film), 1.0))
    assert [source_name(frame) for frame in frames[:3]] == [f"{film}#t={i}.000" for i in range(3)]
    colors = [decode_image(frame, RECIPE).reshape(-1, 3).mean(axis=0) for frame in frames[:3]]
    assert [int(np.argmax(color)) for color in colors] == [0, 1, 2]
    assert len(frames) == 3
    assert count_frames(str(film), 1.0) in (3, 4)


@needs_ffmpeg
def test_iter_frames__shorter_and_longer_intervals(tmp_path: Path) -> None:
    film = make_film(tmp_path / "film.mp4")
    assert names(film, 0.25) == [f"{film}#t={i / 4:.3f}" for i in range(12)]
    assert names(film, 60) == [f"{film}#t=0.000"]
    assert (count_frames(str(film), 0.25), count_frames(str(film), 60)) == (12, 1)


@needs_ffmpeg
def test_iter_frames__are_upright(tmp_path: Path) -> None:
    plain = make_film(tmp_path / "plain.mp4")
    turned = tmp_path / "turned.mov"
    words = ["ffmpeg", "-v", "error", "-i", str(plain), "-c", "copy", "-metadata:s:v", "rotate=90", str(turned)]
    import subprocess

    subprocess.run(words, check=True, capture_output=True)
    sizes = {path: decode_image(next(iter_frames(str(path), 1.0)), RECIPE).shape for path in (plain, turned)}
    assert sizes[plain] == (48, 64, 3)
    if sizes[turned] == sizes[plain]:
        pytest.skip("this ffmpeg writes no rotation")
    assert sizes[turned] == (64, 48, 3)


@needs_ffmpeg
@pytest.mark.parametrize(
    "name", ["-i.mp4", "--help.mp4", "concat:a.mp4", "http:x.mp4", "a b'\"$(x);%03d.mp4", "\udce9.mp4", "x\n.mp4"]
)
def test_iter_frames__hostile_names_are_only_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_film(tmp_path / "made.mp4")
    os.rename(made, os.path.join(tmp_path, name))
    monkeypatch.chdir(tmp_path)
    assert [source_name(frame) for frame in iter_frames(name, 1.0)] == [f"{name}#t={i}.000" for i in range(3)]
    assert count_frames(name, 1.0) == 3


@needs_ffmpeg
@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXTINF:1,\nsecret.mp4\n",
        "ffconcat version 1.0\nfile secret.mp4\n",
        "nothing like a film",
        "",
        "\0\0\0\x18ftypisom",
    ],
)
def test_iter_frames__of_what_is_no_film(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_film(tmp_path / "secret.mp4")
    (tmp_path / "film.mp4").write_text(text)
    assert names(tmp_path / "film.mp4") == [str(tmp_path / "film.mp4")]
    assert "not a film that ffmpeg reads (" in last_error(tmp_path / "film.mp4")
    assert count_frames("film.mp4", 1.0) == 1


@needs_ffmpeg
def test_iter_frames__of_no_file(tmp_path: Path) -> None:
    assert last_error(tmp_path / "gone.mp4") == "No such file or directory"
    os.mkfifo(tmp_path / "pipe.mp4")
    assert last_error(tmp_path / "pipe.mp4") == "not a regular file"
    assert last_error(tmp_path) == "not a regular file"


def test_iter_frames__without_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "film.mp4").touch()
    assert "films require the program ffmpeg, which is not installed: install it" in last_error(tmp_path / "film.mp4")
    assert count_frames(str(tmp_path / "film.mp4"), 1.0) == 1


@needs_ffmpeg
@pytest.mark.parametrize(
    ("suffix", "codec", "kind"),
    [
        *((suffix, codec, "cut") for suffix, codec in (("mkv", "libx264"), ("avi", "mjpeg"), ("mp4", "libx264"))),
        *((suffix, codec, "changed") for suffix, codec in (("avi", "mjpeg"), ("mp4", "libx264"))),
    ],
)
def test_iter_frames__of_a_damaged_film_end_before_the_damage(
    tmp_path: Path, suffix: str, codec: str, kind: str
) -> None:
    options = ["-c:v", codec, "-pix_fmt", "yuvj420p" if codec == "mjpeg" else "yuv420p"]
    options += ["-movflags", "+faststart"] if suffix == "mp4" else ["-g", "10"] * (codec == "libx264")
    film = make_noise_film(tmp_path / f"film.{suffix}", 6, *options)
    whole = [decode_image(frame, RECIPE) for frame in iter_frames(str(film), 1.0)]
    data = bytearray(film.read_bytes())
    place = len(data) * 6 // 10
    if kind == "cut":
        data = data[:place]
    else:
        data[place : place + 400] = bytes((7 * value + 13) % 256 for value in data[place : place + 400])
    film.write_bytes(data)
    *frames, last = iter_frames(str(film), 1.0)
    assert 1 <= len(frames) <= 4
    for before, frame in zip(whole, frames, strict=False):  # none is invented
        assert np.array_equal(before, decode_image(frame, RECIPE))
    assert isinstance(last, UnreadableFile)
    assert last_error(film).startswith("damaged film")
    assert last_error(film).endswith(f"; {len(frames)} frames before it could be read")
    assert not running()


@needs_ffmpeg
def test_iter_frames__abandoned_leave_no_process(tmp_path: Path) -> None:
    frames = iter_frames(str(make_noise_film(tmp_path / "film.avi", 20, "-c:v", "mjpeg")), 0.1)
    next(frames)
    assert running()
    frames.close()
    assert not running()


def fake_ffmpeg(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program called ffmpeg before the real one; it stands for one that misbehaves as no real film makes it."""
    program = folder / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport sys, time\nout = sys.stdout.buffer\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent))
    (folder / "film.mp4").touch()
    return folder / "film.mp4"


FRAME = "out.write(b'P6\\n2 1\\n255\\nabcdef'); out.flush()"


def test_iter_frames__a_hanging_program_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = fake_ffmpeg(tmp_path, f"{FRAME}\ntime.sleep(60)", monkeypatch)
    monkeypatch.setattr(films, "_PATIENCE", 5.0)  # the program starts within this time, on any machine
    started = time.monotonic()
    assert last_error(film, 0.01) == "ffmpeg gave no frame for 5 s; 1 frames before it could be read"
    assert time.monotonic() - started < 50
    assert not running()


@pytest.mark.parametrize(
    ("script", "count", "reason"),
    [
        (f"{FRAME}\nout.write(b'P6\\n2 1\\n255\\nabc')", 1, "damaged film; 1 frames"),
        (f"{FRAME}\nout.write(b'nothing like a frame' * 100_000); sys.exit(1)", 1, "damaged film"),
        (f"{FRAME}\nout.write(b'P6\\n999999 999999\\n255\\n'); sys.exit(1)", 1, "damaged film"),
        ("print('x' * 1_000_000, file=sys.stderr); sys.exit(3)", 0, "not a film that ffmpeg reads (xxx"),
        ("sys.exit(3)", 0, "not a film that ffmpeg reads (exit code 3)"),
        ("", 0, "not a film that ffmpeg reads (it has no frames)"),
    ],
)
def test_iter_frames__of_a_program_that_misbehaves(
    tmp_path: Path, script: str, count: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = fake_ffmpeg(tmp_path, script, monkeypatch)
    found = list(iter_frames(str(film), 1.0))
    assert len(found) == count + bool(reason)
    if reason:
        assert last_error(film).startswith(reason)
        assert len(last_error(film)) < 300


def test_frame_budget__waits_until_frames_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(films, "_MAX_WAIT", 60.0)
    budget = FrameBudget(max_bytes=20, least=2)
    kept = [MemoryFile("a", b""), MemoryFile("b", b"")]
    for frame in kept:
        budget.hold(frame, 15)
    frame = MemoryFile("c", b"")
    waiting = threading.Thread(target=budget.hold, args=(frame, 15))
    waiting.start()
    time.sleep(0.1)
    assert waiting.is_alive()
    del kept[:]
    gc.collect()
    waiting.join(60)
    assert not waiting.is_alive()


@pytest.mark.parametrize("processes", [0, 1])
def test_frame_budget__never_stalls_prediction(
    color_model: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(films, "_MAX_WAIT", 100.0)
    budget, most = FrameBudget(max_bytes=1, least=MAX_GROUP + 1), 0
    image = encode(np.full((8, 8, 3), 90, np.uint8), "PNG")

    def frames() -> Iterator[MemoryFile]:
        nonlocal most
        for i in range(80):
            frame = MemoryFile(f"film.mp4#t={i}.000", image)
            budget.hold(frame, len(image))
            most = max(most, budget._count)
            yield frame
            del frame

    started = time.monotonic()
    with load(color_model, device="cpu", threads=2, decode_processes=processes) as predictor:
        assert len(list(predictor.predict_iter(frames(), batch_size=8))) == 80
    assert most <= MAX_GROUP + 1
    assert time.monotonic() - started < 100  # no frame had to wait for the time limit


@needs_ffmpeg
def test_find_inputs__counts_and_reads_films(tmp_path: Path) -> None:
    make_film(tmp_path / "deep/b.MP4")
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "notes.txt").touch()
    skipped = find_inputs([tmp_path])
    assert (len(skipped), skipped.passed_over) == (1, "1 films, 1 files without an image extension")
    found = find_inputs([tmp_path], every=1.0)
    assert (len(found), found.passed_over) == (4, "1 files without an image extension")
    film = str(tmp_path / "deep/b.MP4")
    assert [source_name(s) for s in found] == [str(tmp_path / "a.jpg"), *(f"{film}#t={i}.000" for i in range(3))]
    assert found.films == [film]
    assert list(found.without_films()) == [str(tmp_path / "a.jpg")]
    listed = find_inputs([], listed=[film, "gone.mp4"], every=1.5)
    assert [source_name(s) for s in listed] == [f"{film}#t=0.000", f"{film}#t=1.500", "gone.mp4"]
