from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import tl.runtime
from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.models import make_contract, make_model
from tests.spots import USUAL_XY, save_spots
from tests.trainer.make import make_class_folders, make_config, make_noise, make_png, plain_text
from tl.data.manifests import ManifestColumns
from tl.errors import ConfigError, DataError, ModelFileError, ParityError
from tl.exporter.export import Exported, export_run
from tl.exporter.export_source import ExtraOutputs
from tl.exporter.refitting.graph import NewHead, replace_head
from tl.exporter.refitting.refit import Refitted, refit
from tl.exporter.refitting.seen import RefitOptions, read_labeled
from tl.progress import Silent
from tl.runtime.imaging.pipeline import load_input
from tl.runtime.model_file.selftest import run_selftest
from tl.runtime.session import Session
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train

ROUNDING = 1e-5


@pytest.fixture(scope="module")
def violets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new class, in a separate folder."""
    root = tmp_path_factory.mktemp("new") / "more"
    for i in range(10):
        make_png(root / "violet" / f"{i}.png", make_noise(900 + i, (190, 40, 200), (20, 26)))
    return root


@pytest.fixture(scope="module")
def refitted(exported: Exported, photos: Path, violets: Path, tmp_path_factory: pytest.TempPathFactory) -> Refitted:
    """The exported model with a fourth class; read only."""
    out = tmp_path_factory.mktemp("refit") / "more.onnx"
    return refit(exported.path, [photos, violets], out, Silent(), RefitOptions(false_alarm=0.2))


def tensors_of(path: Path) -> dict[str, bytes]:
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in onnx.load(path).graph.initializer}


def test_refit__adds_a_class(refitted: Refitted, photos: Path, violets: Path) -> None:
    assert refitted.contract.class_names == ("blue", "green", "red", "violet")
    assert (refitted.added, refitted.dropped) == (("violet",), ())
    assert refitted.after["top1_accuracy"] == 1
    assert refitted.before is not None
    assert refitted.before["n"] == refitted.after["n"] - 2  # a fifth of ten violets
    with tl.runtime.load(refitted.path, device="cpu") as model:
        for path in [*photos.rglob("*.png"), *violets.rglob("*.png")]:
            assert model.predict(path).label == path.parent.name


def test_refit__the_trunk_keeps_its_bytes(refitted: Refitted, exported: Exported) -> None:
    old, new = tensors_of(exported.path), tensors_of(refitted.path)
    kept = {name for name in new if not name.startswith("refit/")}
    assert {name for name in old if name.startswith("network.trunk.")} <= kept
    assert all(new[name] == old[name] for name in kept)
    assert not any(name.startswith("network.head") for name in kept)
    before, after = (
        {node.output[0]: node.SerializeToString() for node in onnx.load(path).graph.node}
        for path in (exported.path, refitted.path)
    )
    shared = before.keys() & after.keys()
    assert "embedding" in shared
    assert {name for name in shared if before[name] != after[name]} == {"probabilities", "ood_score"}
    images = np.stack([make_noise(i, (90, 80, 70), (32, 32)) for i in range(5)])
    found = [Session(path, device="cpu").run(images, ["embedding"])[0] for path in (exported.path, refitted.path)]
    np.testing.assert_array_equal(*found)


def test_refit__is_scikit_learns_head(exported: Exported, photos: Path, tmp_path: Path) -> None:
    """scikit-learn's head on the old file's embeddings of the training images, divided by the temperature."""
    rows = [("path", "label", "split")]
    files = sorted(photos.rglob("*.png"))
    rows += [(str(path), path.parent.name, "val" if i % 4 == 0 else "train") for i, path in enumerate(files)]
    manifest = tmp_path / "m.csv"
    manifest.write_text("".join(",".join(row) + "\n" for row in rows), encoding="utf-8")
    done = refit(exported.path, [manifest], tmp_path / "m.onnx", Silent(), RefitOptions(c_values=(0.1,)))
    preprocessing = exported.contract.preprocessing
    inputs = np.stack([load_input(path, preprocessing) for path in files])
    (embeddings,) = Session(exported.path, device="cpu").run(inputs, ["embedding"])
    is_train = np.arange(len(files)) % 4 != 0
    std = embeddings[is_train].astype(np.float64).std(axis=0)
    scaler = StandardScaler().fit(embeddings[is_train])
    std = np.maximum(std, max(0.1 * std.mean(), 1e-6))
    scaler.scale_ = np.sqrt(std * std.mean())
    labels = np.array([path.parent.name for path in files])
    head = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.transform(embeddings[is_train]), labels[is_train])
    logits = head.decision_function(scaler.transform(embeddings)) / done.contract.temperature
    wanted = np.exp(logits - logits.max(axis=1, keepdims=True))
    wanted /= wanted.sum(axis=1, keepdims=True)
    (found,) = Session(done.path, device="cpu").run(inputs, ["probabilities"])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)  # the solvers stop at 1e-4


def test_refit__contract_fields(refitted: Refitted, exported: Exported, photos: Path, violets: Path) -> None:
    contract, old = refitted.contract, exported.contract
    assert contract.preprocessing == old.preprocessing
    assert contract.outputs == ("probabilities", "embedding", "ood_score")
    assert set(contract.parity.session_max_abs_diff) == set(contract.outputs)
    assert contract.provenance.method == "refit"
    assert contract.provenance.config["trunk_of"] == "model.onnx"
    assert contract.provenance.config["trunk_data_hash"] == old.provenance.data_hash != contract.provenance.data_hash
    assert contract.provenance.val_metrics["top1_accuracy"] == 1
    assert contract.conformal is not None
    assert len(contract.conformal.scores) == refitted.after["n"]
    assert contract.ood is not None
    assert run_selftest(refitted.path, device="cpu").samples == 4
    onnx.checker.check_model(onnx.load(refitted.path), full_check=True)
    text = plain_text(onnx.load(refitted.path))
    assert not any(str(place).encode() in text for place in (photos, violets, exported.path.parent))


def test_refit__detects_out_of_distribution_images(refitted: Refitted) -> None:
    selective = tl.runtime.SelectivePrediction(reject_unknown=True, coverage=0.8)
    with tl.runtime.load(refitted.path, device="cpu", selective=selective) as model:
        assert model.predict(np.full((40, 40, 3), 255, np.uint8)).label == "?"


def test_refit__again(refitted: Refitted, photos: Path, tmp_path: Path) -> None:
    """A refitted file is a model file like others; leaving a class out has to be said."""
    with pytest.raises(DataError, match=r"no training images of 'violet', which are classes of the model.*drop"):
        refit(refitted.path, [photos], tmp_path / "m.onnx", Silent(), RefitOptions())
    assert list(tmp_path.iterdir()) == []
    options = RefitOptions(drop=True, head="svm", golden="synthetic")
    done = refit(refitted.path, [photos], tmp_path / "m.onnx", Silent(), options)
    assert (done.contract.class_names, done.dropped) == (("blue", "green", "red"), ("violet",))
    assert done.contract.golden.source == "synthetic"
    assert done.contract.provenance.config["head"] == "svm"


def test_refit__needs_only_the_extra_edit(exported: Exported, photos: Path, violets: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from tl.commands import refit
from pathlib import Path
refit.command(Path({str(exported.path)!r}), [Path({str(photos)!r}), Path({str(violets)!r})], Path("m.onnx"))
print(sorted({{"torch", "torchvision", "onnxscript", "pydantic", "yaml", "jinja2", "matplotlib"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_refit__a_graph_that_computes_otherwise_is_not_written(
    exported: Exported, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(proto: onnx.ModelProto, head: NewHead) -> onnx.ModelProto:
        return replace_head(proto, replace(head, bias=head.bias[::-1].copy(), weight=head.weight[::-1].copy()))

    monkeypatch.setattr("tl.exporter.refitting.refit.replace_head", wrong)
    with pytest.raises(ParityError, match="output probabilities differs"):
        refit(exported.path, [photos], tmp_path / "m.onnx", Silent(), RefitOptions())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"out": "m.txt"}, ConfigError, "ends in .onnx"),
        ({"out": "model.onnx"}, ConfigError, "would overwrite the old file"),
        ({"model": "missing.onnx", "out": "plain.onnx"}, ModelFileError, "no such file"),
        ({"model": "plain.onnx"}, ModelFileError, "has no output 'embedding'"),
        ({"data": "Blue"}, DataError, "labels 'blue' and 'Blue' differ only in case"),
        ({"data": "broken"}, DataError, "cannot be read; fix, remove or skip them"),
    ],
)
def test_refit__refused(
    exported: Exported, photos: Path, tmp_path: Path, changes: dict[str, str], error: type[Exception], message: str
) -> None:
    (tmp_path / "model.onnx").write_bytes(exported.path.read_bytes())
    make_model(tmp_path / "plain.onnx", contract=make_contract())
    make_class_folders(tmp_path / "Blue", 3, ("Blue",), (20, 26))
    make_class_folders(tmp_path / "broken", 3, ("odd",), (20, 26))
    (tmp_path / "broken" / "odd" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    data = [photos, *([tmp_path / changes["data"]] if "data" in changes else [])]
    given: dict[str, Any] = {"model": tmp_path / changes.get("model", "model.onnx")}
    with pytest.raises(error, match=message):
        refit(given["model"], data, tmp_path / changes.get("out", "new.onnx"), Silent(), RefitOptions())
    assert not (tmp_path / "new.onnx").exists()


def test_refit__class_activation_maps_stay(finished_run: Run, photos: Path, violets: Path, tmp_path: Path) -> None:
    """The class activation maps are those of the new head, and their mean is its logits."""
    weights = str(finished_run.folder)
    run = train(make_config(photos, tmp_path / "linear", method="features", weights=weights), Silent()).run
    old = export_run(run, tmp_path / "old.onnx", Silent(), further=ExtraOutputs(cam=True, false_alarm=0.2)).path
    done = refit(old, [photos, violets], tmp_path / "m.onnx", Silent(), RefitOptions(false_alarm=0.2))
    assert done.contract.outputs == ("probabilities", "embedding", "ood_score", "cam")
    assert done.contract.parity.session_max_abs_diff["cam"] < 1e-3
    image = load_input(sorted(violets.rglob("*.png"))[0], done.contract.preprocessing)
    probabilities, cam = Session(done.path, device="cpu").run(image[None], ["probabilities", "cam"])
    assert cam.shape[:2] == (1, 4)
    logits = cam.mean(axis=(2, 3)) / done.contract.temperature
    shares = np.exp(logits - logits.max())
    np.testing.assert_allclose(probabilities, shares / shares.sum(), rtol=0, atol=ROUNDING)


def test_refit__a_group_in_two_data_sets_stays_on_one_side(exported: Exported, photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.rglob("*.png"))
    for half in (0, 1):
        rows = [f"{path},{path.parent.name},bug{i // 2 % 9}\n" for i, path in enumerate(files) if i % 2 == half]
        (tmp_path / f"{half}.csv").write_text("path,label,group\n" + "".join(rows), encoding="utf-8")
    images = read_labeled([tmp_path / "0.csv", tmp_path / "1.csv"], RefitOptions(), Silent())
    sides = {group: {p.split for p in images if p.group == group} for group in {p.group for p in images}}
    assert len(sides) == 9
    assert all(len(splits) == 1 for splits in sides.values())
    held = "".join(f"{path},{path.parent.name},bug0,val\n" for path in files[:2])
    (tmp_path / "2.csv").write_text("path,label,group,split\n" + held + held.replace("val", "train"), encoding="utf-8")
    data = [tmp_path / "1.csv", tmp_path / "2.csv"]
    with pytest.raises(DataError):
        refit(exported.path, data, tmp_path / "m.onnx", Silent(), RefitOptions())


def test_refit__unreadable_images_of_a_class(exported: Exported, photos: Path, tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "more" / "odd").mkdir(parents=True, exist_ok=True)
        (tmp_path / "more" / "odd" / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    options = RefitOptions(skip_bad=True)
    with pytest.raises(DataError, match="no readable training images of 'odd'"):
        refit(exported.path, [photos, tmp_path / "more"], tmp_path / "m.onnx", Silent(), options)


def test_refit__validation_images_that_equal_training_images_are_left_out(
    run_tl: RunTl, exported: Exported, photos: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for i, path in enumerate(sorted(photos.rglob("*.png"))):
        folder = data / ("val" if i % 3 == 0 else "train") / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.name)
    plain = refit(exported.path, [data], tmp_path / "plain.onnx", Silent(), RefitOptions())
    for path in sorted((data / "train" / "red").iterdir())[:3]:
        shutil.copy(path, data / "val" / "red" / f"copy of {path.name}")
    done = run_tl("refit", exported.path, data, "-o", tmp_path / "copies.onnx", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["after"]["n"] == plain.after["n"]
    assert "3 validation images equal training images and are left out, first val/red/copy of" in done.err
    shutil.rmtree(data / "val")
    shutil.copytree(data / "train", data / "val")
    with pytest.raises(DataError, match="no validation images that differ from the training images"):
        refit(exported.path, [data], tmp_path / "m.onnx", Silent(), RefitOptions())


def test_refit__landmarks_are_no_class(exported: Exported, photos: Path, tmp_path: Path) -> None:
    save_spots(tmp_path / "wings" / "images" / "0.png", USUAL_XY)
    for name, text in (("points.csv", "path,x0,y0\nimages/0.png,1,2\n"), ("points.tps", "LP=1\n1 2\nIMAGE=0.png\n")):
        points = tmp_path / "wings" / name
        points.write_text(text)
        for data in (points, points.parent):
            with pytest.raises(
                DataError, match=rf"{name}.*contains landmarks, but a classifier is refitted to classes"
            ):
                refit(exported.path, [photos, data], tmp_path / "m.onnx", Silent(), RefitOptions())
        points.unlink()


def test_refit__boxes_are_no_whole_images(exported: Exported, photos: Path, tmp_path: Path) -> None:
    rows = [f"{path},{path.parent.name},0,0,8,8" for path in sorted(photos.rglob("*.*"))]
    (tmp_path / "boxes.csv").write_text("\n".join(["path,label,box_x,box_y,box_w,box_h", *rows]) + "\n")
    with pytest.raises(DataError, match=r"trained on whole images, but .* has a box"):
        refit(exported.path, [tmp_path / "boxes.csv"], tmp_path / "new.onnx", Silent(), RefitOptions())
    assert not (tmp_path / "new.onnx").exists()


def test_refit__command(run_tl: RunTl, exported: Exported, photos: Path, violets: Path, tmp_path: Path) -> None:
    out = tmp_path / "more.onnx"
    done = run_tl("refit", exported.path, photos, violets, "-o", out, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["added"] == ["violet"]
    assert "added: violet" in done.err
    assert "4 classes, verified" in done.err
    assert run_tl("verify", out, "--device", "cpu").code == 0
    refused = run_tl("refit", exported.path, photos, "-o", out, "--val-fraction", "2")
    assert (refused.code, "--val-fraction" in refused.err) == (1, True)


def test_read_labeled__columns_are_for_csv_files(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("where,what\nC:\\x\\0.png,blue\n")
    columns = ManifestColumns(path="where", label="what", images=str(photos / "blue"))
    found = read_labeled([tmp_path / "list.csv", photos], RefitOptions(columns=columns), Silent())
    assert len(found) == 1 + 36
    with pytest.raises(DataError, match="is a folder, but a path column"):
        read_labeled([photos], RefitOptions(columns=columns), Silent())
