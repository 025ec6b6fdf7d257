from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.models import make_model
from tests.trainer.make import COLOR_RGB, Listener, make_class_folders, make_config, make_manifest, make_noise, make_png
from tl.annotation.problems import Evidence, find_problems, gather_evidence
from tl.annotation.problems.gather import is_run
from tl.errors import DataError, EnsembleError
from tl.progress import Silent
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train

FLIPPED = {"blue/3.png": "red", "red/7.png": "green"}


@pytest.fixture(scope="module")
def labels_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 images of three colors with two wrong labels, an equal file under another label, and a damaged one."""
    folder = make_class_folders(tmp_path_factory.mktemp("review"), 12)
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    rows = [(name, FLIPPED.get(name, name.split("/")[0])) for name in names]
    shutil.copy(folder / "green/5.png", folder / "copy.png")
    (folder / "damaged.png").write_bytes((folder / "green/5.png").read_bytes()[:60])
    return make_manifest(folder / "labels.csv", [*rows, ("copy.png", "blue"), ("damaged.png", "red")])


@pytest.fixture(scope="module")
def evidence(labels_csv: Path) -> Evidence:
    return gather_evidence(labels_csv, threads=1)


def names_of(evidence: Evidence, kind: str) -> list[str]:
    return [evidence.images[problem.index].name for problem in find_problems(evidence, [kind])]


def test_gather_evidence__of_a_manifest(evidence: Evidence) -> None:
    assert [(image.name, image.split) for image in evidence.images[:2]] == [("blue/0.png", ""), ("blue/1.png", "")]
    assert len(evidence.images) == 37
    assert [(image.name, bool(reason)) for image, reason in evidence.failed] == [("damaged.png", True)]
    assert evidence.class_names == tuple(sorted(COLOR_RGB))
    assert [evidence.class_names[c] for c in evidence.ids] == [image.label for image in evidence.images]
    assert evidence.features.shape == (37, 1280)
    assert len(evidence.hashes[0]) == 64
    assert not evidence.is_by_run.any()
    assert np.isfinite(evidence.probabilities).all()
    assert evidence.source == "5-fold cross-validation on frozen features"


def test_find_problems__finds_the_flipped_labels(evidence: Evidence) -> None:
    """The noise of the colors is equal in all images, so nothing but the flipped labels and the copy is doubtful."""
    assert set(names_of(evidence, "label")) == {*FLIPPED, "copy.png"}
    suggested = {evidence.images[p.index].name: p.suggested for p in find_problems(evidence, ["label"])}
    assert suggested == {"blue/3.png": "blue", "red/7.png": "red", "copy.png": "green"}


def test_find_problems__finds_the_copy_under_another_label(evidence: Evidence) -> None:
    first = find_problems(evidence, ["duplicate"])[0]
    assert (evidence.images[first.index].name, first.suggested) == ("copy.png", "green")
    assert first.reason == "the same file as green/5.png: labeled 'blue' here and 'green' there"
    assert first.neighbors[0] == first.other


def test_gather_evidence__keeps_splits_and_groups_of_the_data(tmp_path: Path) -> None:
    folder = make_class_folders(tmp_path / "data", 6, ("red", "blue"))
    paths = sorted(folder.rglob("*.png"))
    rows = [(str(path), path.parent.name, "test" if i % 6 == 5 else "train", str(i)) for i, path in enumerate(paths)]
    found = gather_evidence(make_manifest(tmp_path / "m.csv", rows, ("path", "label", "split", "group")), threads=1)
    assert [(image.split, image.group) for image in found.images[4:6]] == [("train", "4"), ("test", "5")]


def test_gather_evidence__of_class_folders_with_a_class_of_one_image(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    make_png(tmp_path / "photos" / "pink" / "0.png", make_noise(9, (230, 120, 200)))
    found = gather_evidence(tmp_path / "photos", threads=1)
    alone = [image.label for image in found.images].index("pink")
    assert np.isnan(found.probabilities[alone]).all()
    assert found.images[alone].name in names_of(found, "rare")


def test_gather_evidence__of_a_run_that_began_without_weights(finished_run: Run) -> None:
    found = gather_evidence(finished_run.folder, threads=1)
    predicted = finished_run.held_out_predictions(found.class_names)
    assert found.is_by_run.sum() == len(predicted) == len(finished_run.images("val"))
    for i in np.flatnonzero(found.is_by_run).tolist():
        assert found.images[i].split == "val"
        assert found.probabilities[i] == pytest.approx(predicted[found.images[i].key])
    assert np.isfinite(found.probabilities).all()
    assert found.features.shape[1] == 1280  # of the default backbone: the run's own has seen the labels
    assert found.source.startswith("held-out predictions of the run for ")


def test_gather_evidence__of_a_run_of_frozen_features(labels_csv: Path, tmp_path: Path) -> None:
    """All images were held out once. Their features are in the cache since the run was trained."""
    changes = {"backbone": "efficientnet_lite0", "image_size": None, "skip_bad": True}
    config = make_config(labels_csv, tmp_path / "run", method="features", **changes)
    run = train(config, Silent()).run
    listener = Listener()
    found = gather_evidence(run.folder, threads=1, progress=listener)
    assert found.is_by_run.all()
    assert found.source == "held-out predictions of the run"
    assert "computing features" not in listener.tasks
    assert {Path(name).name for name in names_of(found, "label")} == {"3.png", "7.png", "copy.png"}
    assert set(names_of(found, "error")) >= set(names_of(found, "label"))


def test_gather_evidence__weights_of_the_run_are_gone(finished_run: Run, photos: Path, tmp_path: Path) -> None:
    start = Run(Path(shutil.copytree(finished_run.folder, tmp_path / "start")))
    config = make_config(photos, tmp_path / "run", method="finetune", weights=str(start.best_path), epochs=1)
    run = train(config, Silent()).run
    assert gather_evidence(run.folder, threads=1).features.shape[1] != 1280  # of the network that the run started from
    shutil.rmtree(start.folder)
    listener = Listener()
    found = gather_evidence(run.folder, threads=1, progress=listener)
    assert found.features.shape[1] == 1280
    assert any("features are those of the default backbone instead" in line for line in listener.lines)


def test_gather_evidence__images_of_a_run_that_are_gone(photos: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    run = train(make_config(Path(data), tmp_path / "run"), Silent()).run
    (tmp_path / "photos/red/2.png").unlink()
    found = gather_evidence(run.folder, threads=1)
    assert len(found.images) == 17
    ((image, reason),) = found.failed
    assert (Path(image.name).name, reason) == ("2.png", "No such file or directory")


def test_gather_evidence__members_are_aligned_by_class_name(photos: Path, tmp_path: Path) -> None:
    models = [
        make_model(tmp_path / "a.onnx", ("red", "green", "blue")),
        make_model(tmp_path / "b.onnx", ("blue", "violet", "red")),
    ]
    make_png(tmp_path / "gray.png", np.full((20, 20, 3), 128, np.uint8))
    found = gather_evidence(photos, members=models, threads=1)
    assert found.class_names == ("blue", "green", "red", "violet")
    assert found.member_names == ("a", "b")
    assert found.members is not None
    assert found.members.shape == (2, 18, 4)
    assert (found.members[0, :, 3] == 0).all()  # a does not know violet
    assert (found.members[1, :, 1] == 0).all()  # b does not know green
    reds = [i for i, image in enumerate(found.images) if image.label == "red"]
    assert (found.members[:, reds].argmax(axis=2) == 2).all()
    disputed = find_problems(found, ["disagreement"])
    assert {found.images[problem.index].label for problem in disputed} == {"green"}
    assert disputed[0].reason == "labeled 'green': 1 of 2 models say 'green', 1 of 2 models say 'violet'"


def test_gather_evidence__a_single_member(photos: Path, color_model: Path) -> None:
    with pytest.raises(EnsembleError, match="is a single model: give two or more"):
        gather_evidence(photos, members=[color_model], threads=1)


def test_gather_evidence__members_of_other_classes(photos: Path, tmp_path: Path) -> None:
    models = [make_model(tmp_path / f"{name}.onnx", ("cat", "dog", "fox")) for name in "ab"]
    with pytest.raises(EnsembleError, match="predicts 'cat', 'dog', 'fox', but no image is labeled as one of its"):
        gather_evidence(photos, members=models, threads=1)


def test_gather_evidence__no_image_can_be_read(tmp_path: Path) -> None:
    for name in ("a/0.png", "b/0.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of its 2 images can be read"):
        gather_evidence(tmp_path, threads=1)


def test_gather_evidence__only_classes(tmp_path: Path) -> None:
    make_png(tmp_path / "a.png", make_noise(0))
    (tmp_path / "points.csv").write_text("path,x0,y0\na.png,1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"points\.csv: has landmarks, but only data with one class an image"):
        gather_evidence(tmp_path / "points.csv")
    numbers = make_manifest(tmp_path / "n.csv", [(f"{i}.png", f"{i}.5") for i in range(12)])
    with pytest.raises(DataError, match=r"n\.csv: has numbers"):
        gather_evidence(numbers)
    several = tmp_path / "several"
    several.mkdir()
    Image.fromarray(make_noise(0)).save(several / "a.png")
    (several / "_classes.csv").write_text("filename,ant,bee\na.png,1,1\n", encoding="utf-8")
    with pytest.raises(DataError, match="has several labels an image"):
        gather_evidence(several)
    boxes = make_manifest(
        tmp_path / "b.csv",
        [("a.png", "ant", "1", "1", "9", "9"), ("c.png", "bee", "1", "1", "9", "9")],
        ("path", "label", "box_x", "box_y", "box_w", "box_h"),
    )
    with pytest.raises(DataError, match=r"b\.csv: has boxes"):
        gather_evidence(boxes)


def test_is_run__a_folder_of_images_is_none(photos: Path, finished_run: Run) -> None:
    assert is_run(finished_run.folder)
    assert not is_run(photos)


def test_import__loads_no_torch() -> None:
    code = "import sys, tl.annotation.problems; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
