"""Run `tl` in this process, as the entry point does, and capture its exit code, stdout and stderr."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.models import solid
from tests.trainer.conftest import _torch_as_before as _torch_as_before  # a fixture of these tests too
from tl.cli import main
from tl.trainer.models.backbones import build_trunk


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    def rows(self) -> list[dict[str, str]]:
        """stdout parsed as CSV."""
        return list(csv.DictReader(io.StringIO(self.out)))


RunTl = Callable[..., Outcome]


@pytest.fixture
def run_tl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunTl:
    def run(*words: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["tl", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        code = stop.value.code
        return Outcome(code if isinstance(code, int) else 0 if code is None else 1, captured.out, captured.err)

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders red, green and blue with two images each."""
    for name, color in {"red": (200, 10, 10), "green": (10, 200, 10), "blue": (10, 10, 200)}.items():
        for i in range(2):
            path = tmp_path / "photos" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(solid(color, 12 + i, 10)).save(path)
    return tmp_path / "photos"


@pytest.fixture(scope="session")
def trunk_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of smallcnn, random but deterministic; read only."""
    path = tmp_path_factory.mktemp("weights") / "smallcnn.pth"
    torch.manual_seed(0)
    torch.save(build_trunk("smallcnn").state_dict(), path)
    return path
