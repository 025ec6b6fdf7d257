"""Several processes that want one output: one of them writes it, and no row is lost, doubled or another model's."""

from __future__ import annotations

import csv
import signal
import time
from pathlib import Path

import pytest

from tests.attack.conftest import finish, start_tl
from tl.runtime.output.claim import Claim

COUNT = 4000


@pytest.fixture
def listed(photos: Path, tmp_path: Path) -> Path:
    """A list of many images, each under a name of its own."""
    for i, source in zip(range(COUNT), sorted(photos.rglob("*.png")) * COUNT, strict=False):
        (tmp_path / f"{i:05}.png").symlink_to(source)
    (tmp_path / "list.txt").write_text("".join(f"{tmp_path}/{i:05}.png\n" for i in range(COUNT)))
    return tmp_path / "list.txt"


@pytest.mark.parametrize("way", ["--resume", "--overwrite", "--retry-failed", None])
@pytest.mark.parametrize("other", [0, 1], ids=["same model", "another model"])
def test_predict__two_processes_on_one_output(
    listed: Path, models: list[Path], tmp_path: Path, way: str | None, other: int
) -> None:
    alone, out = tmp_path / "alone.csv", tmp_path / "out.csv"
    assert finish(start_tl("predict", "--files-from", listed, "--model", models[0], "-o", alone))[0] == 0
    words = ["predict", "--files-from", listed, "-o", out]
    first = start_tl(*words, "--model", models[0])
    while not (Claim(out).ledger.exists() and Claim(out).ledger.stat().st_size > 1000):
        assert first.poll() is None, finish(first)
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # however slowly the second one starts, it comes while the first one writes
    try:
        code, _, err = finish(start_tl(*words, "--model", models[other], *([way] if way else [])))
    finally:
        first.send_signal(signal.SIGCONT)
    assert finish(first)[0] == 0
    assert code == 1
    assert f"process {first.pid}" in err
    assert "interrupted" not in err
    assert out.read_bytes() == alone.read_bytes()


def test_predict__many_processes_at_once(listed: Path, models: list[Path], tmp_path: Path) -> None:
    """Whoever comes first writes; the others are told, or replace the finished file by an equal one."""
    out = tmp_path / "out.csv"
    writers = [start_tl("predict", "--files-from", listed, "--model", models[0], "-o", out) for _ in range(5)]
    codes = [finish(writer)[0] for writer in writers]
    assert 0 in codes
    assert set(codes) <= {0, 1}
    with out.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [Path(row["path"]).stem for row in rows] == [f"{i:05}" for i in range(COUNT)]
    assert all(row["label"] for row in rows)
