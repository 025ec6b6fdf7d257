"""Commands that are killed, or run out of disk space: no output is incomplete, and the same call works afterwards."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import onnx
import pytest

from tests.attack.conftest import finish, start_tl
from tl.runtime.model_file.selftest import run_selftest
from tl.trainer.run_folder.run import Run

KILLS = 8


@pytest.fixture
def commands(
    photos: Path, finished_run: Run, exported: Path, models: list[Path], tmp_path: Path
) -> dict[str, list[object]]:
    """Each command that writes a file, and as the last word its output."""
    (tmp_path / "points.csv").write_text(
        "path,x0,y0\n" + "".join(f"{path},1,2\n" for path in sorted(photos.rglob("*.png")))
    )
    return {
        "predict": ["predict", photos, "--model", exported, "-o", tmp_path / "out.csv"],
        "xlsx": ["predict", photos, "--model", exported, "-o", tmp_path / "out.xlsx"],
        "export": ["export", finished_run.folder, "-o", tmp_path / "out.onnx"],
        "merge": ["merge", *models, "-o", tmp_path / "out.onnx"],
        "refit": ["refit", exported, photos, "-o", tmp_path / "out.onnx"],
        "evaluate": ["evaluate", photos, "--model", exported, "-o", tmp_path / "out.csv"],
        "report": ["evaluate", photos, "--model", exported, "--report", tmp_path / "out.html"],
        "inspect": ["inspect", exported, "--html", tmp_path / "out.html"],
        "convert": ["convert", tmp_path / "points.csv", tmp_path / "out.tps"],
    }


NAMES = ("predict", "xlsx", "export", "merge", "refit", "evaluate", "report", "inspect", "convert")


def check_whole(path: Path, size: int) -> None:
    """A finished output is as long as that of a call that was not disturbed, or a model file that passes its test."""
    if path.suffix == ".onnx":
        onnx.checker.check_model(onnx.load(path))
        run_selftest(path, device="cpu")
    else:
        assert abs(path.stat().st_size - size) <= max(200, size // 20)  # reports name times and folders


@pytest.mark.parametrize("name", NAMES)
def test_command__killed_at_any_moment(name: str, commands: dict[str, list[object]]) -> None:
    words = commands[name]
    out = Path(str(words[-1]))
    started = time.monotonic()
    code, _, err = finish(start_tl(*words))
    assert code == 0, err
    seconds, size = time.monotonic() - started, out.stat().st_size
    chance = random.Random(name)
    for _ in range(KILLS):
        out.unlink(missing_ok=True)
        process = start_tl(*words)
        time.sleep(seconds * (0.3 + 0.7 * chance.random()))
        process.send_signal(signal.SIGKILL)
        finish(process)
        if out.exists():
            check_whole(out, size)
    out.unlink(missing_ok=True)
    again = [*words, "--overwrite"]  # predict asks, because it could go on instead
    code, _, err = finish(start_tl(*again))
    assert code == 0, err
    check_whole(out, size)
    left = [path.name for path in out.parent.iterdir() if path.name.startswith(f".{out.name}.") and path.is_file()]
    assert len(left) <= KILLS  # temporary files of killed processes, each with a name of its own


LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


@pytest.mark.parametrize("size", [0, 300, 20_000])
@pytest.mark.parametrize("name", NAMES)
def test_command__full_disk(
    name: str, size: int, commands: dict[str, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    words = commands[name]
    out = Path(str(words[-1]))
    code, _, err = finish(start_tl(*words, before=LIMIT.format(size)))
    assert "Traceback" not in err, err
    if code == 0:  # small enough
        assert out.stat().st_size <= size
    elif name == "report" and code == 3:  # a page beside the main output
        assert "no report: " in err
    else:
        assert code == 1, err
        assert err.splitlines()[-1].startswith("tl: "), err
        assert not out.exists()
