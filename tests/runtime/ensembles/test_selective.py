from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models import make_contract, make_model, solid
from tl.errors import EnsembleError, ModelFileError
from tl.runtime import load
from tl.runtime.ensembles.selective import (
    SelectivePrediction,
    conformal_limit,
    conformal_scores,
    is_unfamiliar,
    prediction_sets,
    reasons,
)
from tl.runtime.model_file.contract import Conformal


def test_conformal_scores__by_hand() -> None:
    probabilities = np.array([[0.25, 0.5, 0.25], [1, 0, 0]], np.float32)
    # The second class first, then the others in their order; for each, half of it plus all before it.
    assert conformal_scores(probabilities).tolist() == [[0.625, 0.25, 0.875], [0.5, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("coverage", "limit"), [(0.1, 0.1), (0.5, 0.3), (0.6, 0.4), (0.8, 0.5), (0.83, 0.5), (0.84, math.inf)]
)
def test_conformal_limit__by_hand(coverage: float, limit: float) -> None:
    # The ceil(6 x coverage)-th of five scores; there is no sixth.
    wanted = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert conformal_limit(wanted[::-1], coverage) == limit


def test_prediction_sets__the_most_probable_class_always_belongs() -> None:
    probabilities = np.array([[0.25, 0.5, 0.25]], np.float32)
    assert prediction_sets(probabilities, 0.1).tolist() == [[False, True, False]]
    assert prediction_sets(probabilities, 0.7).tolist() == [[True, True, False]]
    assert prediction_sets(probabilities, math.inf).all()


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_prediction_sets__hold_the_true_class_as_often_as_promised(coverage: float) -> None:
    # 300 held-out and 4,000 new images of a miscalibrated model, repeated a hundred times.
    random = np.random.default_rng(0)
    shares = []
    for _ in range(100):
        truth = random.integers(5, size=4300)
        logits = random.normal(size=(4300, 5)) + 1.5 * np.eye(5)[truth]
        exponentials = np.exp(3 * logits)  # three times as confident as it should be
        probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
        known = conformal_scores(probabilities[:300])[np.arange(300), truth[:300]]
        sets = prediction_sets(probabilities[300:], conformal_limit(known.tolist(), coverage))
        shares.append(sets[np.arange(4000), truth[300:]].mean())
    # The guarantee is for the mean over draws; its standard error is under 0.003.
    assert coverage - 0.008 < np.mean(shares) < coverage + 0.015


_ROWS = st.lists(st.lists(st.floats(1 / 64, 1, width=32), min_size=3, max_size=3), min_size=1, max_size=8)


@given(_ROWS, st.floats(0, 1))
def test_prediction_sets__a_set_grows_with_its_limit(rows: list[list[float]], limit: float) -> None:
    probabilities = np.array(rows, np.float32)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    small, large = prediction_sets(probabilities, limit / 2), prediction_sets(probabilities, limit)
    assert (small <= large).all()
    assert small.any(axis=1).all()


def test_reasons__each_and_both() -> None:
    confidence, strange = np.array([0.9, 0.4, 0.9, 0.4], np.float32), np.array([1, 1, 2, np.nan], np.float32)
    found = reasons(confidence, strange, 1.5, SelectivePrediction(min_confidence=0.5, reject_unknown=True))
    assert found == [
        "",
        "confidence 0.400 below 0.5",
        "out-of-distribution score 2.000 above 1.500",
        "confidence 0.400 below 0.5; out-of-distribution score nan above 1.500",
    ]
    assert reasons(confidence, strange, 1.5, SelectivePrediction()) == [""] * 4
    assert reasons(confidence, None, None, SelectivePrediction(min_confidence=0.5))[1] == "confidence 0.400 below 0.5"


@pytest.mark.parametrize("options", [{"coverage": 0.0}, {"coverage": 1.0}, {"min_confidence": 1.5}])
def test_caution__shares_alone(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        SelectivePrediction(**options)


def make_careful_model(path: Path) -> Path:
    """The color model, with conformal scores of held-out images."""
    contract = dataclasses.replace(make_contract(), conformal=Conformal((0.3, 0.4, 0.5, 0.6, 0.9), "test"))
    return make_model(path, contract=contract)


def test_load__coverage_and_rejection(tmp_path: Path) -> None:
    model = make_careful_model(tmp_path / "m.onnx")
    selective = SelectivePrediction(coverage=0.5, min_confidence=0.5)
    with load(model, device="cpu", selective=selective) as predictor:
        sure, unsure = predictor.predict_batch([solid((200, 30, 20)), solid((101, 100, 99))])
    assert (sure.label, sure.class_set, sure.reason) == ("red", ("red",), "")
    # A third each: the first class has score 1/6, the second 1/2, within the limit of 0.5.
    assert (unsure.label, unsure.class_set[:1]) == ("?", ("red",))
    assert unsure.reason == f"confidence {unsure.confidence:.3f} below 0.5"
    assert unsure.as_dict()["set"] == list(unsure.class_set)


def test_load__caution_that_no_file_supports(tmp_path: Path, color_model: Path) -> None:
    with pytest.raises(ModelFileError, match="contains no scores of held-out images"):
        load(color_model, device="cpu", selective=SelectivePrediction(coverage=0.9))
    with pytest.raises(ModelFileError, match="contains no out-of-distribution score"):
        load(color_model, device="cpu", selective=SelectivePrediction(reject_unknown=True))
    with pytest.raises(EnsembleError, match="not for an ensemble"):
        load([color_model, color_model], device="cpu", selective=SelectivePrediction(coverage=0.9))
    with load(
        [color_model, color_model], device="cpu", selective=SelectivePrediction(min_confidence=0.99)
    ) as predictor:
        assert predictor.predict(solid((100, 100, 100))).label == "?"


def test_load__a_class_that_looks_like_a_rejection(tmp_path: Path) -> None:
    path = make_model(tmp_path / "m.onnx", class_names=("red", "?", "blue"))
    with load(path) as predictor:
        assert predictor.predict(solid((0, 200, 0))).label == "?"
    with pytest.raises(EnsembleError, match=r"class '\?' cannot be told from a rejected label"):
        load(path, selective=SelectivePrediction(min_confidence=0.5))


def test_load__coverage_that_the_held_out_images_cannot_support(tmp_path: Path) -> None:
    scores = tuple(i / 100 for i in range(98))
    contract = dataclasses.replace(make_contract(), conformal=Conformal(scores, "validation split"))
    path = make_model(tmp_path / "m.onnx", contract=contract)
    with pytest.raises(ModelFileError, match=r"coverage 0.99 requires at least 99 .* of 98: ask for 0.989 or less"):
        load(path, device="cpu", selective=SelectivePrediction(coverage=0.99))
    with load(path, device="cpu", selective=SelectivePrediction(coverage=0.989)) as predictor:
        assert predictor.predict(solid((200, 30, 20))).class_set is not None


@pytest.mark.parametrize(
    ("unknown", "count", "expected", "answer"),
    [
        (19, 19, 0.05, False),  # too few images
        (10, 200, 0.05, False),  # as expected
        (20, 200, 0.05, False),  # twice as many
        (40, 200, 0.05, True),
        (8, 20, 0.05, True),
        (4, 20, 0.05, False),  # may be chance
    ],
)
def test_is_unfamiliar__more_than_chance(unknown: int, count: int, expected: float, answer: bool) -> None:
    assert is_unfamiliar(unknown, count, expected) is answer
