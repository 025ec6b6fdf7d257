from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from tests.models import COLORS, color_probabilities, make_model, solid
from tests.trainer.make import make_images, make_png
from tl.data.manifests import LabeledImage
from tl.errors import DataError
from tl.evaluation.evaluate import COLUMNS, choose_split, evaluate, evaluate_tta
from tl.exporter.merging.merge import merge
from tl.progress import Silent
from tl.runtime.predictor import load

# (label, color): the third image is labeled red and is blue.
CASES = (("red", (200, 30, 20)), ("green", (20, 180, 60)), ("red", (30, 40, 220)), ("blue", (10, 60, 90)))


@pytest.fixture
def images(tmp_path: Path) -> list[LabeledImage]:
    found = []
    for i, (label, color) in enumerate(CASES):
        path = make_png(tmp_path / f"{i}.png", solid(color))
        found.append(LabeledImage(str(path), path.name, label))
    return found


@pytest.mark.parametrize(
    ("splits", "asked", "wanted", "count"),
    [
        (("train", "val", "test"), None, "test", 1),
        (("train", "val"), None, "val", 1),
        (("train",), None, "train", 1),
        (("",), None, "all", 1),
        (("train", "val", "test"), "train", "train", 1),
        (("train", "val", "test"), "all", "all", 3),
    ],
)
def test_choose_split__test_else_val_else_everything(
    splits: tuple[str, ...], asked: str | None, wanted: str, count: int
) -> None:
    images = [image for split in splits for image in make_images(["a"], split)]
    name, chosen = choose_split(images, asked)
    assert (name, len(chosen)) == (wanted, count)
    assert wanted == "all" or {image.split for image in chosen} == {wanted}


def test_choose_split__asked_and_not_there() -> None:
    with pytest.raises(DataError, match=r"no 'test' split \(found: train\); split all uses every image"):
        choose_split(make_images(["a"], "train"), "test")
    with pytest.raises(DataError, match=r"found: none"):
        choose_split(make_images(["a"]), "val")


def test_evaluate__one_model(color_model: Path, images: list[LabeledImage]) -> None:
    with load(color_model, device="cpu", threads=1) as predictor:
        done = evaluate(predictor, images, Silent())
    (row,) = done.rows
    truth = [COLORS.index(image.label) for image in images]
    decided = [int(color_probabilities(solid(color)).argmax()) for _, color in CASES]
    assert decided == [0, 1, 2, 2]
    assert (row["model"], row["voting"], row["n"]) == ("color", "", 4)
    assert row["top1_accuracy"] == accuracy_score(truth, decided) == 0.75
    assert row["macro_f1"] == pytest.approx(f1_score(truth, decided, average="macro"), abs=1e-12)  # float64
    assert set(COLUMNS) <= set(row)
    assert done.failures == []


def test_evaluate__classes_are_matched_by_name(tmp_path: Path, images: list[LabeledImage]) -> None:
    model = make_model(tmp_path / "m.onnx", ("blue", "red", "green"))
    with load(model, device="cpu", threads=1) as predictor:
        (row,) = evaluate(predictor, images, Silent()).rows
    assert row["top1_accuracy"] == 0.75
    assert row["per_class"]["green"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "n": 1}


def test_evaluate__ensemble_has_a_row_for_each_member_and_rule(tmp_path: Path, images: list[LabeledImage]) -> None:
    # The third member is confident and takes red for blue; under `max`, its confidence outvotes the other two.
    members = [make_model(tmp_path / f"{name}.onnx", gain=gain) for name, gain in (("a", 0.01), ("b", 0.02))]
    members.append(make_model(tmp_path / "c.onnx", gain=-0.5))
    with load(members, device="cpu", threads=1) as predictor:
        rows = evaluate(predictor, images, Silent()).rows
    assert [(row["model"], row["voting"]) for row in rows] == [
        ("a", ""),
        ("b", ""),
        ("c", ""),
        ("ensemble", "soft"),
        ("ensemble", "hard"),
        ("ensemble", "max"),
        ("oracle", ""),
    ]
    gains, truth = (0.01, 0.02, -0.5), np.array([COLORS.index(p.label) for p in images])
    each = np.stack([[color_probabilities(solid(c), gain) for _, c in CASES] for gain in gains], axis=1)
    accuracy = [float((each[:, m].argmax(axis=1) == truth).mean()) for m in range(3)]
    accuracy.append(float((each.mean(axis=1).argmax(axis=1) == truth).mean()))
    votes = np.array([np.bincount(row, minlength=3).argmax() for row in each.argmax(axis=2)])
    accuracy.append(float((votes == truth).mean()))
    accuracy.append(float((each.max(axis=1).argmax(axis=1) == truth).mean()))
    accuracy.append(float((each.argmax(axis=2) == truth[:, None]).any(axis=1).mean()))
    assert [row["top1_accuracy"] for row in rows] == accuracy
    # a and b are right on three, c on one of these or none, so a vote differs on at most six images.
    assert [row["mcnemar_p"] for row in rows[:2]] == [1.0, 1.0]
    assert rows[-1]["mcnemar_p"] is None
    assert accuracy[4] == 0.75
    assert accuracy[5] == accuracy[2] < 0.5


def test_evaluate__unreadable_images_are_listed_not_scored(
    tmp_path: Path, color_model: Path, images: list[LabeledImage]
) -> None:
    (tmp_path / "1.png").write_bytes(b"")  # the green one
    with load(color_model, device="cpu", threads=1) as predictor:
        done = evaluate(predictor, images, Silent())
    assert [(failure.path, failure.error) for failure in done.failures] == [(str(tmp_path / "1.png"), "empty file")]
    assert done.rows[0]["n"] == 3
    assert done.rows[0]["per_class"]["green"]["n"] == 0
    assert done.rows[0]["per_class"]["red"]["n"] == 2


def test_evaluate__nothing_readable(tmp_path: Path, color_model: Path, images: list[LabeledImage]) -> None:
    for image in images:
        Path(image.path).unlink()
    with (
        load(color_model, device="cpu", threads=1) as predictor,
        pytest.raises(DataError, match="none of the 4 images can be read, first: No such file"),
    ):
        evaluate(predictor, images, Silent())


def test_evaluate__class_the_model_does_not_know(color_model: Path) -> None:
    with (
        load(color_model, device="cpu", threads=1) as predictor,
        pytest.raises(DataError, match=r"class 'gren' of 0.png \(nearest: 'green'\)"),
    ):
        evaluate(predictor, make_images(["gren"]), Silent())


@pytest.mark.slow
def test_evaluate__imports_no_torch() -> None:
    code = (
        "import sys, tl.evaluation.evaluate, tl.data.manifests, tl.evaluation.metrics; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_evaluate__a_merged_file_stands_beside_its_members(tmp_path: Path, images: list[LabeledImage]) -> None:
    members = [make_model(tmp_path / f"{name}.onnx", gain=gain) for name, gain in (("a", 0.01), ("b", -0.02))]
    merge(members, tmp_path / "both.onnx", Silent(), voting="hard")
    with load(members, device="cpu") as predictor, load(tmp_path / "both.onnx", device="cpu") as merged:
        rows = evaluate(predictor, images, Silent(), merged).rows
        (alone,) = evaluate(merged, images, Silent()).rows
    assert [(row["model"], row["voting"]) for row in rows[-2:]] == [("both", "hard"), ("oracle", "")]
    same = ("top1_accuracy", "macro_f1", "confusion", "mcnemar_p")
    (hard,) = [row for row in rows if (row["model"], row["voting"]) == ("ensemble", "hard")]
    assert [rows[-2][key] for key in same] == [hard[key] for key in same]
    assert (alone["model"], alone["top1_accuracy"]) == ("both", hard["top1_accuracy"])


def test_evaluate_tta__gain_and_cost(tmp_path: Path, images: list[LabeledImage]) -> None:
    """An image with misleading top rows, which three of its five crops do not contain."""
    image = solid((90, 100, 80), 64, 64)
    image[:4] = (255, 0, 0)
    odd = make_png(tmp_path / "odd.png", image)
    model = make_model(tmp_path / "m.onnx")
    wanted = {}
    for kinds in ((), ("crops",)):
        with load(model, device="cpu", tta=kinds) as predictor:
            wanted[kinds] = predictor.predict(odd).label
    assert wanted == {(): "red", ("crops",): "green"}
    data = [*images, LabeledImage(str(odd), "odd", "green"), LabeledImage("missing.png", "missing", "red")]
    with load(model, device="cpu") as plain, load(model, device="cpu", tta=("crops",)) as augmented:
        result = evaluate_tta(plain, augmented, data, Silent())
    before, after = result.rows
    assert (before["tta"], after["tta"]) == ("", "crops")
    assert (before["top1_accuracy"], after["top1_accuracy"]) == (3 / 5, 4 / 5)
    assert after["gain"] == pytest.approx(1 / 5)
    assert after["gain_p"] == 1  # a single image is no evidence
    assert before["images_per_s"] > 0 < after["images_per_s"]
    assert [failure.path for failure in result.failures] == ["missing.png"]


def test_evaluate_tta__of_an_ensemble_every_row_has_a_twin(
    tmp_path: Path, color_model: Path, images: list[LabeledImage]
) -> None:
    files = [color_model, make_model(tmp_path / "other.onnx", gain=-0.02)]
    with load(files, device="cpu") as plain, load(files, device="cpu", tta=("hflip",)) as augmented:
        rows = evaluate_tta(plain, augmented, images, Silent()).rows
    named = [(row["model"], row["voting"], row["tta"]) for row in rows]
    plain_names = [("color", ""), ("other", ""), ("ensemble", "soft"), ("ensemble", "hard"), ("ensemble", "max")]
    assert named[:-1] == [(*name, tta) for name in plain_names for tta in ("", "hflip")]
    assert named[-1] == ("oracle", "", None)
    assert [row["images_per_s"] is None for row in rows] == [True] * 4 + [False] * 6 + [True]
    assert {row["gain"] for row in rows if row["tta"]} == {0.0}  # the mirrored image has the same mean color
