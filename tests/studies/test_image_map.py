"""The map of a run's images: places, outliers, and its size for 2,000 images."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainer.conftest import fresh_cache as fresh_cache
from tests.trainer.make import make_config
from tl.data.audit import Finding
from tl.progress import Silent
from tl.runtime.sources.box_files import BOX
from tl.studies.report import image_map
from tl.studies.report.image_map import layout, outliers
from tl.studies.report.neighbors import open_embeddings
from tl.studies.report.page import ImageMap, render
from tl.studies.report.run_files import open_finished
from tl.studies.report.run_page import build_run_page
from tl.trainer.run_folder.manifest_regions import REGION
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train


def test_layout__separates_groups_and_is_the_same_each_time() -> None:
    random = np.random.default_rng(0)
    centers = np.repeat(np.eye(8)[:3], 10, axis=0)
    vectors = (centers + 0.05 * random.standard_normal(centers.shape)).astype(np.float32)
    places = layout(vectors)
    assert (places.min(), places.max()) == (0, 1)
    assert np.array_equal(places, layout(vectors))
    groups = places.reshape(3, 10, 2)
    spread = np.linalg.norm(groups - groups.mean(axis=1, keepdims=True), axis=2).max()
    apart = min(np.linalg.norm(groups[i].mean(0) - groups[j].mean(0)) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert apart > spread


def test_layout__of_equal_images() -> None:
    assert np.array_equal(layout(np.ones((12, 4), np.float32)), np.full((12, 2), 0.5))


def test_outliers__far_below_the_others() -> None:
    likeness = np.array([0.8, 0.81, 0.82, 0.83, 0.84, 0.85, 0.3])
    assert outliers(likeness).tolist() == [False] * 6 + [True]


def test_report__map_of_a_run_with_cached_features(
    finished_run: Run, photos: Path, tmp_path: Path, fresh_cache: Path
) -> None:
    config = make_config(photos, tmp_path / "r", method="features", weights=str(finished_run.folder), head="linear")
    run = train(config, Silent()).run
    page = build_run_page(open_finished(run))
    (block,) = [block for section in page.sections for block in section.blocks if isinstance(block, ImageMap)]
    assert len(block.dots) == len(run.rows("manifest.csv"))
    scored = [dot for dot in block.dots if dot.label_id is not None]
    assert len(scored) == open_finished(run).scores["n"]
    assert all(len(set(dot.near)) == 3 and k not in dot.near for k, dot in enumerate(block.dots))
    assert not any(dot.name.startswith(("..", "/")) for dot in block.dots)  # no path of this machine
    found = [row for row in run.rows("findings.csv") if "duplicate" in row["kind"]]
    marked = {dot.name for dot in block.dots if "duplicate" in dot.marks}
    assert marked == {row[key] for row in found for key in ("path", "other")} != set()
    text = render(page)
    assert text.count('class="dot ') == len(block.dots)


def test_report__near_duplicates_are_told_apart(
    finished_run: Run, photos: Path, tmp_path: Path, fresh_cache: Path
) -> None:
    """The audit names an image within its data set, the manifest relative to the run."""
    data = shutil.copytree(photos, tmp_path / "photos")
    (data / "red" / "more").mkdir()
    shutil.move(data / "red" / "1.png", data / "red" / "more" / "0.png")  # ends as red/0.png does, but for the folder
    config = make_config(data, tmp_path / "r", method="features", weights=str(finished_run.folder), head="linear")
    run = train(config, Silent()).run
    near = ("near duplicate across splits", "red/0.png", "blue/2.png", "similar images (0.9) in train and val")
    small = ("few images", "", "", "class 'red' has 3 training images")
    run.save_rows("findings.csv", Finding, [Finding(*near), Finding(*small)])
    page = build_run_page(open_finished(run))
    (block,) = [block for section in page.sections for block in section.blocks if isinstance(block, ImageMap)]
    names = [dot.name for dot in block.dots]
    assert {"red/0.png", "red/more/0.png"} < {name.removeprefix("photos/") for name in names}
    assert {dot.name for dot in block.dots if "duplicate" in dot.marks} == {"red/0.png", "blue/2.png"}


def test_report__equal_images_are_marked(finished_run: Run, photos: Path, tmp_path: Path, fresh_cache: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    shutil.copy(data / "red" / "0.png", data / "red" / "again.png")
    config = make_config(
        data, tmp_path / "r", method="features", weights=str(finished_run.folder), head="linear", audit=False
    )
    run = train(config, Silent()).run
    page = build_run_page(open_finished(run))
    (block,) = [block for section in page.sections for block in section.blocks if isinstance(block, ImageMap)]
    assert {dot.name for dot in block.dots if "duplicate" in dot.marks} == {"red/0.png", "red/again.png"}


@pytest.mark.parametrize("columns", [REGION, BOX])
def test_report__no_map_of_boxes(
    finished_run: Run, photos: Path, tmp_path: Path, fresh_cache: Path, columns: Sequence[str]
) -> None:
    """Boxes of one photo would have each other's predictions, even where features of the whole photo are cached."""
    config = make_config(photos, tmp_path / "r", method="features", weights=str(finished_run.folder), head="linear")
    run = train(config, Silent()).run
    assert open_embeddings(open_finished(run)) is not None
    rows = run.rows("manifest.csv")
    rows[0] |= dict(zip(columns, ["1", "2", "9", "8"], strict=True))
    for row in rows[1:]:
        row |= dict.fromkeys(columns, "")
    run.save_table("manifest.csv", rows)
    assert open_embeddings(open_finished(run)) is None
    assert "Map of the images" not in [section.title for section in build_run_page(open_finished(run)).sections]


def test_sheet__of_2000_images_is_small(tmp_path: Path, finished_run: Run) -> None:
    """Noise compresses worse than any photo: 2,000 of them bound the size of the map."""
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for path in paths:
        small = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8))
        small.resize((96, 96), Image.Resampling.BICUBIC).save(path)
    card = finished_run.load_card()
    sheet, side, columns = image_map._sheet([(str(path), None) for path in paths * 100], card.preprocessing)
    assert columns * side == sheet.size_wh[0] <= 2000
    assert len(sheet.uri) < 3_500_000
