"""One rule for the output files of all commands: nothing that exists is replaced unless --overwrite is given."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands.conftest import RunTl
from tests.runtime.output.test_job import read_rows
from tl.errors import OutputError
from tl.runtime.output.claim import Claim
from tl.runtime.output.files import check_output, write_text

# Inputs need not exist: outputs are checked before.
COMMANDS: dict[str, tuple[str, ...]] = {
    "export": ("export", "runs/none", "-o", "OUT.onnx"),
    "adopt": ("adopt", "none.onnx", "--preset", "imagenet", "-o", "OUT.onnx"),
    "merge": ("merge", "none.onnx", "none2.onnx", "-o", "OUT.onnx"),
    "refit": ("refit", "none.onnx", "photos", "-o", "OUT.onnx"),
    "convert": ("convert", "none.tps", "OUT.csv"),
    "evaluate --report": ("evaluate", "photos", "--ensemble", "a.onnx", "b.onnx", "--report", "OUT.html"),
    "evaluate --report of one": ("evaluate", "photos", "--model", "a.onnx", "--report", "OUT.html"),
    "evaluate rows": ("evaluate", "photos", "--model", "a.onnx", "-o", "OUT.csv"),
    "evaluate weights": ("evaluate", "photos", "--ensemble", "a.onnx", "b.onnx", "--fit-vote-weights", "OUT.json"),
    "inspect --html": ("inspect", "none.onnx", "--html", "OUT.html"),
    "report": ("report", "runs/none", "-o", "OUT.html"),
    "predict": ("predict", "--files-from", "OUT.csv", "--model", "MODEL", "-o", "OUT.csv"),
}


def words_of(command: str, folder: Path, model: Path) -> tuple[list[str], Path]:
    """The words of a command, and its output in `folder`."""
    (name,) = {word for word in COMMANDS[command] if word.startswith("OUT")}
    out = folder / name
    known = {name: str(out), "MODEL": str(model)}
    return [known.get(word, word) for word in COMMANDS[command]], out


@pytest.mark.parametrize("command", COMMANDS)
def test_outputs__are_not_replaced_in_silence(
    run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path, command: str
) -> None:
    words, out = words_of(command, tmp_path, color_model)
    out.write_text(f"{next(photos.rglob('*.png'))}\n")
    before = out.read_bytes()
    done = run_tl(*words)
    assert (done.code, f"{out}: exists" in done.err, "--overwrite" in done.err) == (1, True, True), done.err
    assert out.read_bytes() == before
    out.unlink()
    theirs = tmp_path / "theirs"
    theirs.write_bytes(before)
    out.symlink_to(theirs)
    done = run_tl(*words, "--overwrite")
    assert (done.code, f"{out}: is a symbolic link to {theirs}" in done.err) == (1, True), done.err
    assert theirs.read_bytes() == before


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "predict"])
def test_outputs__a_folder_is_found_before_the_work(
    run_tl: RunTl, color_model: Path, tmp_path: Path, command: str
) -> None:
    words, out = words_of(command, tmp_path, color_model)
    out.mkdir()
    done = run_tl(*words, "--overwrite")
    assert (done.code, f"{out}: is a folder" in done.err) == (1, True), done.err


def test_inspect__drawings_are_not_replaced_in_silence(run_tl: RunTl, color_model: Path, tmp_path: Path) -> None:
    drawing = tmp_path / f"{color_model.stem}-filters.png"
    drawing.write_text("precious")
    done = run_tl("inspect", color_model, "--filters", "-o", tmp_path)
    assert (done.code, f"{drawing}: exists" in done.err) == (1, True), done.err
    assert drawing.read_text() == "precious"


def test_predict__two_processes_do_not_write_one_file(
    run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path
) -> None:
    names = sorted(map(str, photos.rglob("*.png")))
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names) * 2000)
    out = tmp_path / "out.csv"
    words = ["predict", "--files-from", tmp_path / "list.txt", "--model", color_model, "-o", out, "--threads", "1"]
    first = subprocess.Popen([sys.executable, "-m", "tl", *map(str, words)], stderr=subprocess.DEVNULL)
    holder = Claim(out).folder / "holder.json"
    while not holder.exists():
        assert first.poll() is None
        time.sleep(0.01)
    for more in ([], ["--resume"], ["--overwrite"]):
        done = run_tl(*words, *more)
        assert done.code == 1
        assert f"out.csv: is being written by process {first.pid} on " in done.err
        assert "--resume" not in done.err
    os.kill(first.pid, signal.SIGKILL)  # the lock dies with its process
    first.wait()
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names))
    assert json.loads(holder.read_text())["pid"] == first.pid
    done = run_tl(*words, "--resume")
    assert done.code == 0, done.err
    assert [row["path"] for row in read_rows(out)] == names


def test_outputs__inputs_and_two_outputs_of_one_name_are_refused(
    run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path
) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text(f"{next(photos.rglob('*.png'))}\n")
    words = ["predict", "--files-from", listed, "--model", color_model, "-o", listed, "--overwrite"]
    assert f"{listed}: is read by this command" in run_tl(*words).err
    labels = tmp_path / "labels.csv"
    labels.write_text(f"path,label\n{photos}/red/0.png,red\n")
    words = ["evaluate", labels, "--model", color_model, "-o", labels, "--overwrite"]
    assert f"{labels}: is read by this command" in run_tl(*words).err
    assert labels.read_text().startswith("path,label")
    page = tmp_path / "a.html"
    for flags, said in (
        (["-o", tmp_path / "a.xlsx"], "--out expects a name that ends in .csv"),
        (["--report", tmp_path / "a.txt"], "--report expects a name that ends in .html"),
    ):
        done = run_tl("evaluate", photos, "--model", color_model, *flags)
        assert (done.code, said in done.err) == (1, True), done.err
    same = tmp_path / "a.csv"
    done = run_tl("evaluate", photos, "--ensemble", color_model, "-o", same, "--fit-vote-weights", same)
    assert (done.code, "is the name of two outputs" in done.err) == (1, True), done.err
    assert not page.exists()


def test_outputs__a_name_that_is_too_long_is_one_line(
    run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path
) -> None:
    for length in (225, 245, 250, 300):
        done = run_tl("predict", photos, "--model", color_model, "-o", tmp_path / ("o" * length + ".csv"))
        assert done.code == 1
        assert "cannot be written (File name too long)" in done.err.splitlines()[-1]


def test_check_output__a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    check_output(path)
    path.write_text("another process's")
    with pytest.raises(OutputError, match="another process has written it meanwhile"):
        write_text(path, "ours")
    assert path.read_text() == "another process's"
    check_output(path, overwrite=True)
    write_text(path, "ours")
    assert path.read_text() == "ours"


def test_predict__drawings_are_not_replaced_in_silence(
    run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    words = ["predict", "photos", "--model", color_model, "--explain", tmp_path / "why"]
    existing = tmp_path / "why" / "photos" / "red" / "0.png.why.jpg"
    existing.parent.mkdir(parents=True)
    existing.write_text("theirs")
    done = run_tl(*words)
    assert (done.code, f"{existing}: exists" in done.err, "--overwrite" in done.err) == (1, True, True), done.err
    assert existing.read_text() == "theirs"
