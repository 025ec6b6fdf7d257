"""The example programs give the answers of `tl.runtime`, for images in every encoding of examples/vectors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tl.runtime
from tests.examples.test_vectors import ROWS, VECTORS
from tests.exporter.any_size.test_graph import photo
from tests.models import make_model
from tl.exporter.any_size.convert import to_any_size
from tl.progress import Silent
from tl.runtime.imaging.preprocessing import build_preprocessing

EXAMPLES = VECTORS.parent
# The color model moves a logit by 0.05 for each of 255 levels of the mean color, a probability by at most a quarter of
# that. Pillow and simplejpeg decode alike; jpeg-js differs by up to 3 levels in a pixel, less in the mean.
SAME_DECODER, OTHER_DECODER = 0.01, 0.03
_NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "E403", "E404", "network")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    fixed = make_model(folder / "fixed.onnx", preprocessing=build_preprocessing((12, 12), "short_side", short_side=14))
    paths = [str(VECTORS / row["expected"]) for row in ROWS]
    return to_any_size(fixed, folder / "any.onnx", paths, Silent()).path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """JPEGs larger than the input, in both orientations."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / "wide.jpg", folder / "tall.jpg"]
    for seed, (path, hw) in enumerate(zip(paths, [(90, 160), (200, 120)], strict=True)):
        Image.fromarray(photo(hw, seed)).save(path, quality=95, subsampling=0)
    return [str(path) for path in paths]


def check(printed: str, model: Path, paths: list[str], limit: float) -> None:
    found = [json.loads(line) for line in printed.splitlines()]
    assert [answer["path"] for answer in found] == paths
    with tl.runtime.load(model, device="cpu") as predictor:
        for answer, path in zip(found, paths, strict=True):
            wanted = predictor.predict(path)
            assert answer["label"] == wanted.label, path
            np.testing.assert_allclose(answer["probabilities"], wanted.probabilities, atol=limit, err_msg=path)


def run(*words: Any, folder: Path | None = None) -> str:
    done = subprocess.run([*map(str, words)], cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python__needs_no_tl_and_gives_its_answers(model: Path, photos: list[str], tmp_path: Path) -> None:
    program = shutil.copy(EXAMPLES / "python" / "predict.py", tmp_path)
    assert "import tl" not in Path(program).read_text()
    paths = [*(str(VECTORS / row["file"]) for row in ROWS), *photos]
    check(run(sys.executable, program, model, *paths, folder=tmp_path), model, paths, SAME_DECODER)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node example with its packages, in a folder of its own."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("needs Node.js and npm")
    folder = tmp_path_factory.mktemp("node") / "node"
    shutil.copytree(EXAMPLES / "node", folder, ignore=shutil.ignore_patterns("node_modules", "package-lock.json"))
    environment = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"}  # otherwise it downloads CUDA libraries
    words = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--fetch-retries=1"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0 and any(word in done.stderr for word in _NETWORK):
        pytest.skip(f"needs the npm registry: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_node__gives_the_answers_of_the_runtime(node: Path, model: Path, photos: list[str]) -> None:
    vectors = [str(VECTORS / row["file"]) for row in ROWS if row["file"] != "cmyk.jpg"]  # which jpeg-js does not read
    paths = [*vectors, *photos]
    check(run("node", node / "predict.mjs", model, *paths), model, paths, OTHER_DECODER)
    lossless = [path for path in vectors if path.endswith(".png")]
    check(run("node", node / "predict.mjs", model, *lossless), model, lossless, SAME_DECODER)


@pytest.mark.slow
def test_node__decodes_the_vectors(node: Path, tmp_path: Path) -> None:
    """Pixel by pixel, within the limit of each vector."""
    (node / "dump.mjs").write_text(
        'import { readRgb } from "./images.mjs";\n'
        "for (const path of process.argv.slice(2)) {\n"
        "  const { data, width, height } = readRgb(path);\n"
        "  console.log(JSON.stringify({ width, height, data: Array.from(data) }));\n"
        "}\n"
    )
    rows = [row for row in ROWS if row["file"] != "cmyk.jpg"]
    printed = run("node", node / "dump.mjs", *(VECTORS / row["file"] for row in rows))
    for row, line in zip(rows, printed.splitlines(), strict=True):
        found = json.loads(line)
        pixels = np.array(found["data"]).reshape(found["height"], found["width"], 3)
        wanted = np.asarray(Image.open(VECTORS / row["expected"])).astype(int)
        assert pixels.shape == wanted.shape, row["file"]
        assert np.abs(pixels - wanted).max() <= int(row["max_difference"]), row["file"]


def test_node__pins_exact_versions() -> None:
    package = json.loads((EXAMPLES / "node" / "package.json").read_text())
    assert all(version[0].isdigit() for version in package["dependencies"].values())
    assert not (EXAMPLES / "node" / "package-lock.json").exists()
