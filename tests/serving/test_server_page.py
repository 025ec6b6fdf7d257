"""The page of `tl serve`, in headless Chromium, against the results of `tl.runtime`."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.models import make_cam_model, make_model, solid
from tests.serving.page_steps import keep
from tests.serving.web_driver import drive
from tl.runtime import load
from tl.runtime.output.columns import build_columns

pytest.importorskip("tl.serving.app", reason="needs the packages of the extra serve", exc_type=ImportError)
pytestmark = pytest.mark.slow
TOKEN = "secret-of-the-test"
# In one step, so that what was asked of the server has not ended yet.
CANCEL_AND_PASTE = """(() => {
  const data = new DataTransfer();
  data.items.add(new File(["no image"], "pasted.png"));
  document.getElementById("cancel").click();
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
})()"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "plain": make_model(folder / "plain.onnx"),
        "strong": make_model(folder / "strong.onnx", gain=0.2),
        "maps": make_cam_model(folder / "maps.onnx"),
    }


@pytest.fixture(scope="module")
def server(models: dict[str, Path]) -> Iterator[str]:
    command = [sys.executable, "-m", "tl", "serve", str(models["plain"]), str(models["maps"]), "--ensemble"]
    command += [str(models["plain"]), str(models["strong"]), "--port", "0", "--json", "--token", TOKEN]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())  # printed when the server is ready
    yield told["url"]
    process.terminate()
    process.wait(30)
    process.stdout.close()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    names = [f"p{n}.png" for n in range(10)] + ["<img src=x onerror=alert(1)>.png", "broken.jpg"]
    for name in names:
        color = tuple(rng.integers(0, 256, 3).tolist())
        Image.fromarray(solid(color, 40, 60)).save(folder / name)  # type: ignore[arg-type]
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a JPEG")
    return [folder / name for name in names]


def test_page__shows_and_saves_the_server_s_results(
    server: str, models: dict[str, Path], npm: Path, photos: list[Path], tmp_path: Path
) -> None:
    steps: list[dict[str, Any]] = [
        {"do": "address"},
        {"do": "choose", "selector": "#model", "value": "ensemble"},
        {"do": "files", "names": [str(path) for path in photos]},
        {"do": "csv"},
        {"do": "texts", "selector": ".card .file"},
        {"do": "texts", "selector": ".card.failed .error"},
        {"do": "axe"},
        {"do": "select", "selector": "#model", "value": "maps"},
        {"do": "check", "selector": "#explain"},
        {"do": "attribute", "selector": ".card:first-child img", "name": "src"},
        {"do": "text", "selector": "#place"},
    ]
    driven = drive(npm, f"{server}?token={TOKEN}", steps, tmp_path)
    assert driven.errors == []
    assert all(url.startswith((server, "blob:", "data:")) for url in driven.requests)
    address, _, _, table, names, errors, violations, *_ = driven.outputs
    assert TOKEN not in address
    assert violations == []
    assert names == [path.name for path in photos]
    assert len(errors) == 1
    rows = list(csv.reader(StringIO(table)))
    with load([models["plain"], models["strong"]], device="cpu") as predictor:
        columns = build_columns(predictor.ensemble.fields(with_votes=True))
        assert rows[0] == list(columns.types)
        for photo, row in zip(photos[:-1], rows[1:], strict=False):
            wanted = predictor.predict(photo)
            assert row[1] == wanted.label
            shares = [float(cell) for cell in row[3:6]]
            np.testing.assert_allclose(shares, wanted.probabilities, rtol=0, atol=1e-6)
    assert rows[-1][0] == "broken.jpg"
    assert rows[-1][-1].lower() == errors[0].lower()
    assert driven.outputs[9].startswith("data:image/")
    assert driven.outputs[10] == f"Photos are sent to {server.removeprefix('http://').rstrip('/')}."


def test_page__cancels_and_goes_on(server: str, npm: Path, photos: list[Path], tmp_path: Path) -> None:
    many = [str(path) for path in photos[:10]] * 3
    steps: list[dict[str, Any]] = [
        {"do": "delay", "path": "/predict", "milliseconds": 400},
        {"do": "files", "names": many, "wait": False},
        {"do": "click", "selector": "#cancel"},
        {"do": "finished"},
        keep("stopped", {"do": "text", "selector": "#count"}),
        {"do": "click", "selector": "#retry"},
        {"do": "finished"},
        keep("all", {"do": "text", "selector": "#count"}),
        {"do": "files", "names": many[:10], "wait": False},
        {"do": "evaluate", "code": CANCEL_AND_PASTE},
        {"do": "visible", "selector": "#work:not(.running)"},
        keep("states of the last", {"do": "texts", "selector": ".card:last-child .state"}),
        keep("states", {"do": "texts", "selector": ".card .state"}),
    ]
    driven = drive(npm, f"{server}?token={TOKEN}", steps, tmp_path)
    assert driven.errors == []
    assert driven.named["stopped"].startswith("Stopped: ")
    assert driven.named["all"].startswith("30 images, last run")
    assert driven.named["states of the last"] == [], "what is added after a cancel is predicted"
    assert set(driven.named["states"]) == {"Canceled"}


def test_page__asks_for_the_token(server: str, npm: Path, tmp_path: Path) -> None:
    steps: list[dict[str, Any]] = [
        {"do": "text", "selector": "#notice"},
        {"do": "fill", "selector": "#token", "value": TOKEN},
        {"do": "click", "selector": "#token-form button"},
        {"do": "visible", "selector": "#choose:not([disabled])"},
        {"do": "text", "selector": "#title"},
    ]
    driven = drive(npm, server, steps, tmp_path, ready="#token-form:not([hidden])")
    assert "access token" in driven.outputs[0]
    assert driven.outputs[4] == "plain"
    assert len(driven.errors) == 1  # the browser's own line on the status 401
    assert "401" in driven.errors[0]
