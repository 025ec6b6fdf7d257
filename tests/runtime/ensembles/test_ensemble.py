from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models import color_probabilities, make_contract, make_model, solid
from tests.runtime.images import noise
from tests.spots import make_spot_model
from tl.errors import EnsembleError
from tl.runtime.ensembles.ensemble import Ensemble
from tl.runtime.ensembles.voting import VOTINGS, Voting
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.runtime.model_file.contract import Golden
from tl.runtime.session import Session

ATOL = 1e-6  # float32 softmax in the graph against float64 by hand, on probabilities up to 1


@pytest.fixture(scope="module")
def color_session(color_model: Path) -> Session:
    return Session(color_model, device="cpu", threads=1)


def open_model(path: Path, *args: Any, **options: Any) -> Session:
    path.parent.mkdir(exist_ok=True)
    return Session(make_model(path, *args, **options), device="cpu", threads=1)


def fault(sessions: list[Session], **options: Any) -> str:
    with pytest.raises(EnsembleError) as caught:
        Ensemble(sessions, **options)
    return str(caught.value)


def test_ensemble__aligns_classes_by_name(tmp_path: Path) -> None:
    first = open_model(tmp_path / "a.onnx", ("green", "red", "blue"))
    second = open_model(tmp_path / "b.onnx", ("blue", "green", "red"), gain=0.02)
    ensemble = Ensemble([first, second])
    assert ensemble.class_names == ("green", "red", "blue")
    image = noise(8, 8)
    members = ensemble.member_probabilities({ensemble.preprocessings[0]: image[None]})
    assert members.shape == (1, 2, 3)
    for m, gain in enumerate((0.05, 0.02)):
        np.testing.assert_allclose(members[0, m], color_probabilities(image, gain)[[1, 0, 2]], atol=ATOL)


def test_ensemble__different_classes_are_listed(tmp_path: Path) -> None:
    sessions = [open_model(tmp_path / "a.onnx"), open_model(tmp_path / "b.onnx", ("red", "green", "violet"))]
    message = fault(sessions)
    assert message.endswith("class names of b differ from those of a: it lacks 'blue' and adds 'violet'")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("red", "green", "violet"), ""),
        (("violet", "cyan", "brown"), "they share no class, so they cannot vote together"),
        (("red", "green", "Blue"), "'blue' and 'Blue' look like one class in two spellings"),
        (("RED", "Green", "blue_"), "'red' and 'RED' look like one class in two spellings"),
    ],
)
def test_ensemble__union_is_recommended_where_it_makes_sense(
    tmp_path: Path, names: tuple[str, ...], reason: str
) -> None:
    golden = Golden("synthetic", {"fp32": 1e-4}, ())
    contract = dataclasses.replace(make_contract(), class_names=names, golden=golden)
    sessions = [open_model(tmp_path / "a.onnx"), open_model(tmp_path / "b.onnx", names, contract=contract)]
    with pytest.raises(EnsembleError) as caught:
        Ensemble(sessions)
    assert (reason in str(caught.value), caught.value.options) == (True, () if reason else ("classes=union",))


def test_ensemble__fewer_classes_are_an_error_too(tmp_path: Path) -> None:
    two = make_contract(("red", "green"))
    message = fault([open_model(tmp_path / "a.onnx"), open_model(tmp_path / "b.onnx", ("red", "green"), contract=two)])
    assert message.endswith("it lacks 'blue'")


def test_ensemble__many_differences_are_cut(tmp_path: Path) -> None:
    names = tuple(f"class{i}" for i in range(9))
    golden = Golden("synthetic", {"fp32": 1e-4}, ())
    nine = dataclasses.replace(make_contract(), class_names=names, golden=golden)
    message = fault([open_model(tmp_path / "a.onnx"), open_model(tmp_path / "b.onnx", names, contract=nine)])
    assert "'class4' and 4 more" in message


def test_ensemble__union_of_classes(tmp_path: Path) -> None:
    sessions = [open_model(tmp_path / "a.onnx"), open_model(tmp_path / "b.onnx", ("violet", "green", "red"))]
    ensemble = Ensemble(sessions, classes="union")
    assert ensemble.class_names == ("red", "green", "blue", "violet")
    members = ensemble.member_probabilities({ensemble.preprocessings[0]: noise(8, 8)[None]})
    assert members[0, 0, 3] == 0  # the first member has no violet
    assert members[0, 1, 2] == 0  # the second has no blue
    np.testing.assert_allclose(members.sum(axis=2), 1, atol=ATOL)


def test_ensemble__equal_recipes_are_shared(tmp_path: Path) -> None:
    large = build_preprocessing((16, 12))
    sessions = [open_model(tmp_path / "a.onnx"), open_model(tmp_path / "b.onnx", preprocessing=large)]
    sessions.append(open_model(tmp_path / "c.onnx"))
    ensemble = Ensemble(sessions)
    assert ensemble.preprocessings == (build_preprocessing((8, 8)), large)
    members = ensemble.member_probabilities(
        {ensemble.preprocessings[0]: solid((90, 0, 0))[None], large: solid((0, 90, 0), 16, 12)[None]}
    )
    assert members[0].argmax(axis=1).tolist() == [0, 1, 0]


@pytest.mark.parametrize("voting", VOTINGS)
def test_decide__votes_with_the_weights(tmp_path: Path, voting: Voting) -> None:
    sessions = [open_model(tmp_path / "a.onnx"), open_model(tmp_path / "b.onnx")]
    split = np.array([[[0.8, 0.2, 0], [0.2, 0.8, 0]]], np.float32)
    assert Ensemble(sessions, voting=voting, weights=[1, 2]).decide(split).label_ids.tolist() == [1]
    assert Ensemble(sessions, voting=voting, weights=[2, 1]).decide(split).label_ids.tolist() == [0]


@pytest.mark.parametrize("voting", VOTINGS)
@given(values=st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6))
def test_decide__one_member_is_untouched(color_session: Session, voting: Voting, values: list[float]) -> None:
    ensemble = Ensemble([color_session], voting=voting, weights=[3])
    alone = np.array(values, np.float32).reshape(2, 1, 3)
    decided = ensemble.decide(alone)
    np.testing.assert_array_equal(decided.probabilities, alone[:, 0])
    np.testing.assert_array_equal(decided.label_ids, alone[:, 0].argmax(axis=1))


def test_member_probabilities__batch_equals_single_images(color_model: Path) -> None:
    ensemble = Ensemble([Session(color_model, device="cpu")] * 2)
    images = np.stack([noise(8, 8, seed) for seed in range(7)])
    (preprocessing,) = ensemble.preprocessings
    whole = ensemble.member_probabilities({preprocessing: images})
    singles = [ensemble.member_probabilities({preprocessing: image[None]})[0] for image in images]
    np.testing.assert_allclose(whole, singles, atol=1e-6)  # the tolerance guaranteed for batches


@pytest.mark.parametrize(
    "weights", [[1], [1, 2, 3], [1, 0], [1, -1], [], [math.nan, 1], [1, math.nan], [1, math.inf]], ids=str
)
def test_ensemble__wrong_weights(color_session: Session, weights: list[float]) -> None:
    assert "2 positive vote weights" in fault([color_session] * 2, weights=weights)


def test_ensemble__no_members() -> None:
    assert "at least one model file" in fault([])


def test_ensemble__landmarks_do_not_vote_on_classes(tmp_path: Path) -> None:
    session = Session(make_spot_model(tmp_path / "points.onnx"), device="cpu")
    assert fault([session]).endswith("points.onnx: not a classification model")


def test_ensemble__model_without_contract(tmp_path: Path) -> None:
    path = make_model(tmp_path / "plain.onnx", contract=None)
    assert "not a classification model" in fault([Session(path, device="cpu", require_contract=False)])


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.onnx", "b.onnx"], ("a", "b")),
        (["x/m.onnx", "y/m.onnx"], ("x/m", "y/m")),
        (["x/m.onnx", "y/n.onnx", "x/n.onnx"], ("x/m", "y/n", "x/n")),
        (["x/m.onnx", "x/m.onnx"], ("x/m#1", "x/m#2")),
    ],
)
def test_ensemble__member_names_are_unique(tmp_path: Path, files: list[str], names: tuple[str, ...]) -> None:
    assert Ensemble([open_model(tmp_path / name) for name in files]).member_names == names
