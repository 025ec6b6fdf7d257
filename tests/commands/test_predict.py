from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.commands.conftest import RunTl
from tests.full_disk import largest_file
from tests.models import COLORS, assert_same_table, make_model
from tests.trainer.make import read_rows
from tl.commands.device_notes import say_device
from tl.runtime.engines.openvino import openvino_version
from tl.runtime.output.claim import Claim


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


def test_predict__ensemble_as_written(run_tl: RunTl, photos: Path, three: list[Path]) -> None:
    done = run_tl("predict", f"{photos}/", "--ensemble", *three)
    table = done.rows()
    assert done.code == 0
    assert list(table[0])[-8:] == [
        "agreement",
        "entropy",
        "mutual_information",
        "margin",
        "vote:a",
        "vote:b",
        "vote:c",
        "error",
    ]
    assert {row["agreement"] for row in table} == {"1"}
    assert table[-1]["vote:b"] == "red"


def test_predict__decoding_in_processes_changes_nothing(
    run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path
) -> None:
    (photos / "green" / "0.png").write_bytes(b"nothing like an image")
    words = ["predict", photos, "--model", color_model, "--device", "cpu", "--batch-size", 2]
    more = ["--decode-processes", 2]
    written = {}
    for name, options in {"threads": [], "processes": more}.items():
        out = tmp_path / f"{name}.csv"
        assert run_tl(*words, *options, "-o", out).code == 3
        written[name] = out.read_bytes(), Claim(out).ledger.read_bytes()
    assert written["processes"] == written["threads"]
    assert run_tl(*words, *more).out.encode() == written["threads"][0]

    shutil.copy(photos / "red" / "0.png", photos / "green" / "0.png")
    resumed = run_tl(*words, *more, "-o", tmp_path / "threads.csv", "--resume")
    assert "5 rows kept from the earlier run, 6 images predicted, 0 could not be read" in resumed.err
    run_tl(*words, "-o", tmp_path / "whole.csv")
    assert_same_table(tmp_path / "threads.csv", tmp_path / "whole.csv")


def test_predict__ensemble_before_images(run_tl: RunTl, photos: Path, three: list[Path]) -> None:
    assert run_tl("predict", "--ensemble", *three, photos).out == run_tl("predict", photos, "--ensemble", *three).out


def test_predict__unreadable_image_gets_a_row_and_exit_3(run_tl: RunTl, photos: Path, color_model: Path) -> None:
    (photos / "green" / "0.png").write_bytes(b"nothing like an image")
    done = run_tl("predict", photos, "--model", color_model)
    bad = done.rows()[2]
    assert done.code == 3
    assert bad["path"].endswith("green/0.png")
    assert bad["label"] == "" == bad["p:red"]
    assert "not an image" in bad["error"]
    assert "5 images predicted, 1 could not be read" in done.err


def test_predict__warns_of_12_bit_images_once(run_tl: RunTl, color_model: Path, tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    deep.mkdir()
    for i in range(10):
        Image.fromarray(np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)).save(deep / f"{i}.png")
    done = run_tl("predict", deep, "--model", color_model, "--device", "cpu")
    assert done.code == 0
    assert done.err.count("warning") == 1
    assert "warning: the brightest value of 8 16-bit images is 4095 of 65535: they become dark" in done.err


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
        (["PHOTOS", "--model", "MODEL", "-o", "out.doc"], "ends in .csv, .jsonl, .xlsx or .parquet"),
        (["PHOTOS", "--model", "MODEL", "--resume"], "require an output file: give --out"),
        (["--model", "MODEL"], "give images, folders or --files-from"),
        (["--files-from", "gone", "--model", "MODEL"], "gone: the list of names cannot be read"),
        (["--files-from", "/dev/null", "--model", "MODEL"], "no images found in /dev/null"),
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
    from tl.runtime.engines.onnxruntime import cuda_fault

    if cuda_fault() is None:
        pytest.skip("CUDA works here")
    done = run_tl("predict", photos, "--model", color_model, "--device", "cuda")
    assert done.code == 1
    assert "device 'cuda' cannot be used: " in done.err
    assert cuda_fault() in done.err  # type: ignore[operator]  # not None, as checked above


def test_predict__classes_must_match_or_be_joined(
    run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other.onnx", ("red", "green", "cyan"))
    refused = run_tl("predict", photos, "--ensemble", color_model, other)
    joined = run_tl("predict", photos, "--ensemble", color_model, other, "--classes", "union")
    assert refused.code == 1
    assert "lacks 'blue' and adds 'cyan'\nhint: --classes union\n" in refused.err
    for words in (("evaluate", photos, "--ensemble"), ("merge", "-o", tmp_path / "both.onnx")):
        other_command = run_tl(*words, color_model, other)
        assert (other_command.code, "union" in other_command.err) == (1, False), other_command.err
    assert [name for name in joined.rows()[0] if name.startswith("p:")] == [f"p:{c}" for c in (*COLORS, "cyan")]


def test_predict__resume(run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path) -> None:
    (photos / "green" / "0.png").write_bytes(b"torn")
    words = ["predict", photos, "--model", color_model, "-o", tmp_path / "out.csv"]
    assert run_tl(*words).code == 3
    before = (tmp_path / "out.csv").read_bytes()
    shutil.copy(photos / "red" / "0.png", photos / "green" / "0.png")
    resumed = run_tl(*words, "--resume")
    assert (resumed.code, (tmp_path / "out.csv").read_bytes() == before) == (0, False)
    assert "5 rows kept from the earlier run, 6 images predicted, 0 could not be read" in resumed.err
    (photos / "blue" / "1.png").write_bytes(b"torn")
    assert run_tl(*words, "--resume").code == 3
    assert "6 rows kept" in run_tl(*words, "--resume").err
    assert "5 rows kept" in run_tl(*words, "--retry-failed").err


def test_predict__fail_fast(run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path) -> None:
    (photos / "green" / "0.png").write_bytes(b"torn")
    done = run_tl("predict", photos, "--model", color_model, "-o", tmp_path / "out.csv", "--fail-fast")
    assert done.code == 1
    assert "green/0.png: not an image" in done.err.splitlines()[-1]
    assert not (tmp_path / "out.csv").exists()


def test_predict__archives_patterns_and_lists(
    run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(photos / "red" / "0.png", "r/0.png")
        archive.write(photos / "red" / "0.png", "r/.0.png")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"%s/red/1.png\0gone.png\0" % os.fsencode(photos))))
    words = [tmp_path / "z.zip", f"{photos}/**/0.png", "--files-from", "-", "--null"]
    done = run_tl("predict", *words, "--model", color_model)
    assert done.code == 3
    assert [row["path"] for row in done.rows()] == [
        f"{tmp_path}/z.zip/r/0.png",
        *(f"{photos}/{name}/0.png" for name in ("blue", "green", "red")),
        f"{photos}/red/1.png",
        "gone.png",
    ]
    assert done.rows()[-1]["error"] == "No such file or directory"
    assert "skipped: 1 hidden" in done.err


def test_predict__names_with_newlines_and_foreign_bytes(
    run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path
) -> None:
    names = ["a\nb.png", 'say "ü", x.png', "caf\udce9.png", " c .png"]
    (tmp_path / "odd").mkdir()
    for name in names:
        shutil.copy(photos / "red" / "0.png", tmp_path / "odd" / name)
    for suffix in (".csv", ".jsonl"):
        out = tmp_path / f"out{suffix}"
        assert run_tl("predict", tmp_path / "odd", "--model", color_model, "-o", out).code == 0
        with out.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            rows = list(csv.DictReader(stream)) if suffix == ".csv" else [json.loads(line) for line in stream]
        assert sorted(Path(row["path"]).name for row in rows) == sorted(names)


def test_predict__killed_and_resumed_loses_and_doubles_nothing(photos: Path, color_model: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    for i in range(3000):
        path = many / f"{i % 7}" / f"{i:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(photos / ("red", "green", "blue")[i % 3] / "0.png")
    out = tmp_path / "out.csv"
    command = [sys.executable, "-m", "tl", "predict", many, "--model", color_model, "-o", out, "--threads", "1"]
    ledger, kills = Claim(out).ledger, 0
    while not out.exists():
        process = subprocess.Popen([*map(str, command), "--resume"], stderr=subprocess.DEVNULL)
        size = ledger.stat().st_size if ledger.exists() else 0
        while process.poll() is None and kills < 3:
            if ledger.exists() and ledger.stat().st_size > size + 1000:
                process.kill()
                kills += process.wait() == -signal.SIGKILL
        process.wait()
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert kills > 0
    assert [row["path"] for row in rows] == sorted(map(str, many.rglob("*.png")))
    assert all(row["label"] == ("red", "green", "blue")[int(Path(row["path"]).stem) % 3] for row in rows)


def test_predict__full_disk(run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{next(photos.rglob('*.png'))}\n" * 100)
    words = ["predict", "--files-from", tmp_path / "list.txt", "--model", color_model, "-o", tmp_path / "out.csv"]
    with largest_file(20_000):
        done = run_tl(*words)
    assert done.code == 1
    assert "cannot be written (File too large)" in done.err
    assert not (tmp_path / "out.csv").exists()


def test_predict__opens_and_checks_a_model_file_once(
    run_tl: RunTl, photos: Path, color_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl.runtime import session

    checked: list[str] = []

    def counted(path: str) -> object:
        checked.append(path)
        return check(path)

    check = session.check_model_file
    monkeypatch.setattr(session, "check_model_file", counted)
    assert run_tl("predict", photos, "--model", color_model, "--device", "cpu").code == 0
    assert checked == [str(color_model)]


def test_predict__a_drawing_that_fails_ends_nothing(
    run_tl: RunTl, photos: Path, color_model: Path, tmp_path: Path
) -> None:
    long = photos / "red" / f"{'x' * 240}.png"  # its drawing's name is longer than file systems allow
    shutil.copy(photos / "red" / "0.png", long)
    out, why = tmp_path / "out.csv", tmp_path / "why"
    done = run_tl("predict", photos, "--model", color_model, "--explain", why, "-o", out)
    assert done.code == 3
    assert f"1 images were predicted but could not be drawn, first {long}: " in done.err
    assert [row["error"] for row in read_rows(out)] == [""] * 7
    assert len(list(why.rglob("*.why.jpg"))) == 6
    blocked = tmp_path / "file"
    blocked.write_text("")
    refused = run_tl("predict", photos, "--model", color_model, "--explain", blocked / "why", "-o", tmp_path / "o.csv")
    assert (refused.code, f"{blocked} is a file: give the name of a folder" in refused.err) == (1, True)
    assert not (tmp_path / "o.csv").exists()


@pytest.mark.parametrize(
    ("provider", "fault", "has_gpu", "asked", "said"),
    [
        ("CPUExecutionProvider", None, False, "auto", ""),
        ("CPUExecutionProvider", "no NVIDIA driver", False, "auto", ""),
        ("CPUExecutionProvider", None, True, "cpu", ""),
        (
            "CPUExecutionProvider",
            "missing libraries: x",
            True,
            "auto",
            "although this machine has an NVIDIA GPU: missing",
        ),
        ("CUDAExecutionProvider", None, True, "auto", "running on CUDA"),
        ("CUDAExecutionProvider", None, True, "cuda", ""),
        ("OpenVINO", None, True, "openvino", "labels agreed with fp32 on 99.5% of 400 validation images"),
        ("OpenVINO", None, False, "auto", ""),
    ],
)
def test_say_device__only_what_was_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    provider: str,
    fault: str | None,
    has_gpu: bool,
    asked: str,
    said: str,
) -> None:
    monkeypatch.setattr("tl.runtime.devices.has_nvidia_gpu", lambda: has_gpu)
    contract = SimpleNamespace(precision="bf16", quantization=SimpleNamespace(top1_agreement=0.995, images=400))
    session = SimpleNamespace(path="m.onnx", precision="bf16", contract=contract)
    ensemble = SimpleNamespace(sessions=[session])
    say_device(SimpleNamespace(provider=provider, fault=fault, ensemble=ensemble), asked)  # type: ignore[arg-type]
    line = capsys.readouterr().err
    assert (said in line, bool(line)) == (True, bool(said))


@pytest.mark.skipif(openvino_version() is None, reason="the extra openvino is not installed")
def test_predict__openvino_gives_the_rows_of_the_cpu(
    run_tl: RunTl, color_model: Path, photos: Path, tmp_path: Path
) -> None:
    tables = []
    for device in ("cpu", "openvino"):
        out = tmp_path / f"{device}.csv"
        done = run_tl("predict", photos, "--model", color_model, "--device", device, "-o", out)
        assert done.code == 0, done.err
        tables.append(read_rows(out))
    for one, other in zip(*tables, strict=True):
        assert (one["path"], one["label"]) == (other["path"], other["label"])
        assert float(one["confidence"]) == pytest.approx(float(other["confidence"]), abs=1e-5)  # float32, two engines


@pytest.mark.skipif(openvino_version() is None, reason="the extra openvino is not installed")
def test_verify__on_openvino(run_tl: RunTl, color_model: Path) -> None:
    done = run_tl("verify", color_model, "--device", "openvino", "--json")
    assert f"{color_model}: verified on OpenVINO in fp32: " in done.err
    assert json.loads(done.out)["precision"] == "fp32"
