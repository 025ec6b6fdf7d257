"""The JavaScript of the pages in Node, against the same rules of `tl.runtime` in Python."""

from __future__ import annotations

import base64
import csv
import itertools
import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from tests.models import make_contract, make_model
from tests.serving.web_driver import needs_node, run_node
from tl.runtime.ensembles.selective import conformal_limit, prediction_sets
from tl.runtime.ensembles.voting import agreement, entropy, margin, mutual_information
from tl.runtime.imaging.geometry import crop_to_input, place, working_image
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.runtime.landmarks.shapes import centroid_size, procrustes_distance
from tl.runtime.model_file.contract import dump_contract
from tl.runtime.model_file.label_facts import RiskCurve, set_threshold
from tl.runtime.output.columns import build_columns
from tl.runtime.results import (
    ClassFields,
    Classification,
    Failure,
    Landmarks,
    MemberVotes,
    Multilabel,
    MultilabelFields,
    PointFields,
    Regression,
    RegressionFields,
)

pytestmark = needs_node

RESIZE = """
import { toInput } from "@/browser/resize.js";
const run = (cases) => cases.map(({ rgb, width, height, preprocessing }) => {
  const image = { pixels: Buffer.from(rgb, "base64"), width, height };
  return Buffer.from(toInput(image, preprocessing).pixels).toString("base64");
});
"""


@pytest.mark.parametrize("mode", ["squash", "letterbox", "short_side"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resize__gives_the_pixels_of_the_runtime(mode: str, interpolation: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (3, 7), (37, 91), (64, 64), (97, 64), (200, 61), (61, 200), (8, 300), (401, 333)]
    cases, wanted = [], []
    for number, ((height, width), input_hw) in enumerate(itertools.product(sizes, [(64, 64), (97, 64)])):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if number % 2:  # hard edges, whose overshoot is cut at 0 and 255
            image = np.where(image > 127, 255, 0).astype(np.uint8)
        chosen = build_preprocessing(input_hw, mode, interpolation=interpolation, pad_rgb=(1, 2, 3))  # type: ignore[arg-type]
        names = ("input_hw", "resize_mode", "short_side", "interpolation", "pad_rgb")
        cases.append(
            {
                "rgb": base64.b64encode(image.tobytes()).decode(),
                "width": width,
                "height": height,
                "preprocessing": {name: getattr(chosen, name) for name in names},
            }
        )
        wanted.append(crop_to_input(working_image(image, chosen), chosen))
    for found, want in zip(run_node(RESIZE, cases, tmp_path), wanted, strict=True):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(found), np.uint8).reshape(want.shape), want)


def _results() -> dict[str, tuple[dict, object, list]]:  # type: ignore[type-arg]
    shares = np.array([0.1, 0.7, 0.2], np.float32)
    names = ('a,"b"', "b|c\\", "ü")
    votes = MemberVotes((names[1], names[0]), np.stack([shares, shares]), 0.5, 0.8, 0.1, 0.5)
    failed = Failure("x.jpg", 'cut off, "here"')
    labeled = Classification("p.png", names[1], 0.7, names, shares, votes, (names[1], names[2]), 0.25)
    xy, sure, spread = np.array([[1.5, 2.25], [3, 4]]), np.array([0.5, 1], np.float32), np.array([1.0, 2.0])
    points = Landmarks("p.png", ("tip", "2"), xy, sure, spread, 0.125, True, (10, 20), (0, 0, 20, 10), ((1, 1),))
    several = Multilabel(
        "p.png",
        names,
        shares,
        (names[1],),
        (names[1], names[2]),
        0.5,
        ((names[0],), ()),
        np.stack([shares, shares]),
        1.5,
    )
    values = np.array([1.5, -2], np.float32)
    numbers = Regression("p.png", ("age", "size"), values, None, np.array([0.5, 1], np.float32), np.stack([values] * 2))
    intervals = Regression("p.png", ("age", "size"), values, np.array([0.5, 1.0]))
    members, targets = ["m1", "m2"], ("age", "size")
    plain = Classification("p", names[0], 0.1, names, shares)
    classes = {"task": "classification", "class_names": names, "member_names": members}
    return {
        "classification": (classes, ClassFields(names, members, True, True), [labeled, failed]),
        "plain": (classes | {"member_names": []}, ClassFields(names), [plain]),
        "landmarks": (
            {"task": "landmarks", "keypoint_names": ["tip", "2"]},
            PointFields(("tip", "2"), True, True),
            [points, failed],
        ),
        "multilabel": (
            {"task": "multilabel", "class_names": names, "member_names": members},
            MultilabelFields(names, members, True, True),
            [several, failed],
        ),
        "regression": (
            {"task": "regression", "target_names": targets, "member_names": members},
            RegressionFields(targets, members),
            [numbers, failed],
        ),
        "intervals": (
            {"task": "regression", "target_names": targets},
            RegressionFields(targets, (), True),
            [intervals],
        ),
    }


CSV = """
import { toCsv } from "@/predict/columns.js";
const run = ({ info, results }) => toCsv(info, results);
"""


@pytest.mark.parametrize("kind", list(_results()))
def test_csv__has_the_columns_of_predict(kind: str, tmp_path: Path) -> None:
    info, fields, results = _results()[kind]
    plain = [result.as_dict() for result in results]
    found = list(csv.reader(StringIO(run_node(CSV, {"info": info, "results": plain}, tmp_path))))
    columns = build_columns(fields)  # type: ignore[arg-type]
    wanted = list(csv.reader(StringIO("".join(map(columns.line, results)))))
    assert found[0] == list(columns.types)
    for row, want in zip(found[1:], wanted, strict=True):
        for cell, expected, kind_of in zip(row, want, columns.types.values(), strict=True):
            if kind_of == "number" and expected:
                assert float(cell) == pytest.approx(float(expected), rel=1e-5)  # six digits are written there
            else:
                assert cell == expected


READ = """
import { readContract } from "@/browser/contract.js";
const run = (texts) => texts.map((text) => {
  try {
    return readContract(new Uint8Array(Buffer.from(text, "base64")));
  } catch (error) {
    return `${error.constructor.name}: ${error.message}`;
  }
});
"""


def test_read_contract__of_whole_cut_and_foreign_files(tmp_path: Path) -> None:
    whole = make_model(tmp_path / "m.onnx").read_bytes()
    cut = [whole[:end] for end in range(0, len(whole), 97)]
    foreign = make_model(tmp_path / "f.onnx", contract=None).read_bytes()
    others = [b"\x89PNG" * 50, b"\xff" * 200, b"\x00" * 50, foreign]
    damaged = {**json.loads(dump_contract(make_contract())), "schema_version": 99}
    others.append(make_model(tmp_path / "d.onnx", contract=json.dumps(damaged)).read_bytes())
    texts = [base64.b64encode(one).decode() for one in [whole, *cut, *others]]
    found, *refused = run_node(READ, texts, tmp_path)
    assert found == json.loads(dump_contract(make_contract()))
    assert all(isinstance(text, str) and text.startswith("ModelError: ") for text in refused)
    assert "tl adopt" in refused[-2]
    assert "schema version 99" in refused[-1]


DECIDE = """
import { decide } from "@/browser/decide.js";
const output = ([name, [data, dims]]) => [name, { data: Float32Array.from(data), dims }];
const run = (cases) => cases.map(({ contract, outputs, placing, choice }) =>
  decide(contract, Object.fromEntries(Object.entries(outputs).map(output)), placing, choice));
"""


def test_decide__sets_votes_and_rejection_as_the_runtime(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    names = [f"c{n}" for n in range(6)]
    scores = sorted(rng.uniform(0, 1, 50).tolist())
    members = rng.dirichlet(np.ones(6), (20, 3)).astype(np.float32)
    shares = members.mean(axis=1)
    labels = shares.argmax(axis=1)
    contract = {
        "task": "classification",
        "class_names": names,
        "conformal": {"scores": scores},
        "ood": {"limit": 0.5},
        "ensemble": {"weights": [2, 1, 1], "members": []},
    }
    cases = [
        {
            "contract": contract,
            "outputs": {
                "probabilities": [shares[n].tolist(), [1, 6]],
                "label": [[int(labels[n])], [1]],
                "ood_score": [[n / 20], [1]],
                "member_probabilities": [members[n].ravel().tolist(), [1, 3, 6]],
            },
            "placing": None,
            "choice": {"coverage": "0.8", "reject": True},
        }
        for n in range(20)
    ]
    is_member = prediction_sets(shares, conformal_limit(scores, 0.8))
    found = run_node(DECIDE, cases, tmp_path)
    ids = members.argmax(axis=2)
    for n, result in enumerate(found):
        order = np.argsort(-shares[n], kind="stable")
        assert result["set"] == [names[c] for c in order if is_member[n, c]]
        assert result["label"] == ("?" if n / 20 > 0.5 else names[labels[n]])
        assert ("above 0.500" in result.get("reason", "")) == (n / 20 > 0.5)
        assert result["votes"] == [names[i] for i in ids[n]]
        measures = {
            "agreement": agreement(ids, labels),
            "entropy": entropy(shares),
            "margin": margin(shares),
            "mutual_information": mutual_information(members, [2, 1, 1]),
        }
        for name, values in measures.items():
            assert result[name] == pytest.approx(float(values[n]), abs=1e-6)  # float32 there


def test_decide__points_numbers_and_labels_as_the_runtime(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    shape, found_xy = rng.normal(size=(5, 2)), rng.uniform(0, 63, (5, 2)).astype(np.float32)
    names = [f"k{n}" for n in range(5)]
    chosen = build_preprocessing((64, 64), "letterbox")
    placed = place((120, 333), chosen)
    placing = {
        "image": {"width": 333, "height": 120},
        "placed": {
            "width": placed.resized_hw[1],
            "height": placed.resized_hw[0],
            "left": placed.offset_xy[0],
            "top": placed.offset_xy[1],
        },
    }
    curve = RiskCurve((0.1, 0.3, 0.6), (0.0, 0.05, 0.4), 40, "")
    regression = {"target_names": ["age"], "scores": [[0.5, 1.0, 1.5, 2.0]]}
    multilabel = {
        "thresholds": [0.5, 0.2, 0.9],
        "curve": {"thresholds": curve.thresholds, "risks": curve.risks, "images": 40},
    }
    points = {
        "task": "landmarks",
        "keypoint_names": names,
        "landmarks": {"mean_shape": shape.tolist(), "shape_limit": 0.1},
    }
    cases = [
        {"contract": points, "outputs": {"keypoints": [found_xy.ravel().tolist(), [1, 5, 2]]}, "placing": placing},
        {"contract": {"task": "regression", "regression": regression}, "outputs": {"values": [[3], [1, 1]]}},
        {
            "contract": {"task": "multilabel", "class_names": ["a", "b", "c"], "multilabel": multilabel},
            "outputs": {"probabilities": [[0.4, 0.25, 0.95], [1, 3]]},
        },
    ]
    cases = [{"placing": None, **case, "choice": {"coverage": "0.8"}} for case in cases]
    marked, number, several = run_node(DECIDE, cases, tmp_path)
    wanted = placed.to_image(found_xy)
    got = np.array([[marked["keypoints"][name][axis] for axis in "xy"] for name in names])
    np.testing.assert_allclose(got, wanted, atol=1e-9)
    assert marked["centroid_size"] == pytest.approx(centroid_size(wanted))
    assert marked["shape_distance"] == pytest.approx(procrustes_distance(wanted, shape), abs=1e-9)
    assert marked["is_odd"] is True
    assert number["targets"] == {"age": {"value": 3, "low": 1, "high": 5}}  # the fourth of four errors
    assert several["labels"] == ["b", "c"]
    least = set_threshold(curve, 0.8)
    assert least == 0.3
    assert several["set"] == ["c", "a"]
