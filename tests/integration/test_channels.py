"""From microscopy stacks to predictions: classes that differ only in one channel, and only over all of its planes."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.stacks import CHANNELS, make_cells, ome
from tests.trainer.make import make_config
from tl.errors import DataError
from tl.exporter.export import export_run
from tl.exporter.merging.merge import merge
from tl.progress import Silent
from tl.runtime import load
from tl.runtime.imaging.pipeline import load_input
from tl.runtime.model_file.selftest import run_selftest
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cells(tmp_path_factory.mktemp("cells"), per_class=16)


@pytest.fixture(scope="module")
def new_cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_cells(tmp_path_factory.mktemp("new"), per_class=24)
    for path in sorted(folder.rglob("*.tif")):
        if int(path.name.removesuffix(".ome.tif")[-2:]) < 16:  # those that training has seen
            path.unlink()
    return folder


def run_of(cells: Path, out: Path, **changes: object) -> Path:
    options = {
        "method": "scratch",
        "epochs": 12,
        "augment": "flip",
        "lr": 0.005,
        "image_size": 32,
        "seed": 1,
        **changes,
    }
    return train(make_config(cells, out, **options), Silent()).run.folder


def findings(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "findings.csv").read_text())))


def test_train__one_channel_projected(cells: Path, new_cells: Path, tmp_path: Path, run_tl: RunTl) -> None:
    folder = run_of(cells, tmp_path / "run", channels="2", project="max")
    assert "bit depth" not in (folder / "findings.csv").read_text()
    assert run_tl("export", folder, "-o", tmp_path / "m.onnx").code == 0
    predicted = run_tl("predict", new_cells, "--model", tmp_path / "m.onnx")
    rows = list(csv.DictReader(io.StringIO(predicted.out)))
    assert len(rows) == 16
    assert [row["label"] for row in rows] == [Path(row["path"]).parent.name for row in rows]
    assert not any(row["error"] for row in rows)
    shown = run_tl("inspect", tmp_path / "m.onnx").out
    assert "channels     2, as gray" in shown
    assert "max of all pages or planes" in shown
    evaluated = run_tl("evaluate", new_cells, "--model", tmp_path / "m.onnx")
    assert ",16,1.0000," in evaluated.out


def test_train__the_channel_decides(cells: Path, new_cells: Path, tmp_path: Path) -> None:
    folder = run_of(cells, tmp_path / "run", channels="0", project="max")  # says nothing about the class
    assert json.loads((folder / "metrics.json").read_text())["val"]["top1_accuracy"] < 1


def test_train__four_channels(cells: Path, new_cells: Path, tmp_path: Path, run_tl: RunTl) -> None:
    names = ("DAPI", "GFP", "RFP", "Cy5")
    files = []
    for seed in (1, 2):
        folder = run_of(cells, tmp_path / f"run{seed}", channels=",".join(names), project="max", seed=seed)
        exported = export_run(Run(folder), tmp_path / f"m{seed}.onnx", Silent())
        assert exported.contract.preprocessing.channels == names
        assert exported.contract.parity.top1_agreement == 1.0
        files.append(tmp_path / f"m{seed}.onnx")
    images = sorted(new_cells.rglob("*.tif"))
    truth = [path.parent.name for path in images]
    with load(files[0], device="cpu") as predictor:
        assert [result.label for result in predictor.predict_batch(images)] == truth
        image = np.moveaxis(tifffile.imread(images[0]).max(axis=0) >> 8, 0, -1).astype(np.uint8)
        by_array, by_file = predictor.predict(image), predictor.predict(images[0])
        assert (by_array.probabilities == by_file.probabilities).all()
        assert load_input(images[0], exported.contract.preprocessing).shape == (32, 32, 4)
    assert run_selftest(files[0], device="cpu").max_abs_diff < 1e-4
    drawn = run_tl("predict", images[0], "--model", files[0], "--explain", tmp_path / "why", "-o", tmp_path / "w.csv")
    assert drawn.code == 0, drawn.err
    assert run_tl("inspect", files[0], "--html", tmp_path / "m.html", "--filters", "--top", 1, images[0]).code == 0
    refused = run_tl("bench", files[0], "--seconds", 0)
    assert "chooses channels or pages of a file, which generated images do not have" in refused.err
    merged = merge(files, tmp_path / "merged.onnx", Silent())
    assert merged.contract.preprocessing.channels == names
    with load(merged.path, device="cpu") as predictor:
        assert [result.label for result in predictor.predict_batch(images)] == truth


def test_train__without_channels_says_what_the_files_have(cells: Path, tmp_path: Path, run_tl: RunTl) -> None:
    with pytest.raises(DataError, match=r"a TIFF of 12 pages: .*, or train with channels or project set") as caught:
        run_of(cells, tmp_path / "run")
    assert caught.value.options == ("channels", "project", "skip_bad")
    with pytest.raises(DataError, match=r"a TIFF of 4 channels \(DAPI, GFP, RFP, Cy5\): train with channels"):
        run_of(cells, tmp_path / "run", project="max")
    with pytest.raises(DataError, match="a TIFF of 3 z planes: train with channels or project set"):
        run_of(cells, tmp_path / "run", channels="2")


def test_train__other_channels_in_some_files(cells: Path, tmp_path: Path) -> None:
    mixed = shutil.copytree(cells, tmp_path / "mixed")
    odd = sorted((mixed / "round").iterdir())[3]
    odd.write_bytes(ome(tifffile.imread(odd)[:, ::-1], "ZCYX", CHANNELS[::-1]))
    folder = run_of(mixed, tmp_path / "run", channels="2", project="max", epochs=1)
    (row,) = [row for row in findings(folder) if row["kind"] == "channels"]
    assert row["path"].endswith(odd.name)
    assert row["detail"].startswith(
        "4 channels (Cy5, RFP, GFP, DAPI), but 31 of 32 inspected files have 4 channels (DAPI"
    )
    by_name = run_of(mixed, tmp_path / "named", channels="RFP", project="max", epochs=1)
    assert "channels" not in {row["kind"] for row in findings(by_name)}


def test_predict__a_file_without_the_channel(cells: Path, tmp_path: Path, run_tl: RunTl) -> None:
    folder = run_of(cells, tmp_path / "run", channels="RFP", project="max", epochs=1)
    assert run_tl("export", folder, "-o", tmp_path / "m.onnx").code == 0
    (tmp_path / "a.tif").write_bytes(ome(np.zeros((2, 8, 9), np.uint16), "CYX", ("DAPI", "GFP")))
    predicted = run_tl("predict", tmp_path / "a.tif", "--model", tmp_path / "m.onnx")
    assert predicted.code == 3
    assert "channel 'RFP' is not in this file, whose channels are DAPI, GFP" in predicted.out
