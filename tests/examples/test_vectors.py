from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl.runtime.imaging.decode import decode_image
from tl.runtime.imaging.preprocessing import build_preprocessing

VECTORS = Path(__file__).resolve().parents[2] / "examples" / "vectors"
ROWS = list(csv.DictReader((VECTORS / "vectors.csv").read_text(encoding="utf-8").splitlines()))
MAX_BYTES = 200_000


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
def test_decode_image__gives_the_pixels_of_the_vector(row: dict[str, str]) -> None:
    found = decode_image(VECTORS / row["file"], build_preprocessing((8, 8)))
    wanted = np.asarray(Image.open(VECTORS / row["expected"]))
    assert (found.shape, wanted.dtype) == (wanted.shape, np.uint8)
    assert np.abs(found.astype(int) - wanted).max() <= int(row["max_difference"])


def test_vectors__are_what_the_script_writes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_vectors", VECTORS / "make_vectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_vectors(tmp_path)
    assert (tmp_path / "vectors.csv").read_text() == (VECTORS / "vectors.csv").read_text()
    for row in ROWS:
        again, committed = (np.asarray(Image.open(folder / row["expected"])) for folder in (tmp_path, VECTORS))
        np.testing.assert_array_equal(again, committed)


def test_vectors__are_small_and_distinguish_the_rules() -> None:
    files = [path for path in VECTORS.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    assert {path.name for path in files} >= {row["file"] for row in ROWS}
    upright = np.asarray(Image.open(VECTORS / "orientation-6.expected.png")).astype(int)
    stored = np.asarray(Image.open(VECTORS / "orientation-6.jpg")).astype(int)
    assert stored.shape[:2] == upright.shape[1::-1]  # a decoder that ignores EXIF gives another size
