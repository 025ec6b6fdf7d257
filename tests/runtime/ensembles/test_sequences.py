from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tl.runtime
from tl.runtime.ensembles.selective import OOD
from tl.runtime.ensembles.sequences import NO_IMAGE, vote_sequence
from tl.runtime.ensembles.taxonomy import Taxonomy
from tl.runtime.ensembles.voting import VOTINGS, Voting, vote
from tl.runtime.results import Classification, Failure

NAMES = ("cat", "dog", "oak")


def result(*probabilities: float, reason: str = "", path: str = "") -> Classification:
    values = np.array(probabilities, np.float32)
    label = "?" if reason else NAMES[int(values.argmax())]
    return Classification(path, label, float(values.max()), NAMES, values, reason=reason)


BURST = [result(0.6, 0.4, 0), result(0.6, 0.4, 0), result(0.0, 0.95, 0.05), Failure("bad.jpg", "truncated")]


@pytest.mark.parametrize(
    ("voting", "label", "probabilities"),
    [
        ("soft", "dog", [1.2 / 3, 1.75 / 3, 0.05 / 3]),
        ("hard", "cat", [2 / 3, 1 / 3, 0]),
        ("max", "dog", [0.6 / 1.6, 0.95 / 1.6, 0.05 / 1.6]),
    ],
)
def test_vote_sequence__by_hand(voting: Voting, label: str, probabilities: list[float]) -> None:
    decided = tl.runtime.vote_sequence(BURST, voting, sequence="night 1")
    assert (decided.sequence, decided.label, decided.images, decided.failed) == ("night 1", label, 3, 1)
    np.testing.assert_allclose(decided.probabilities, probabilities, atol=1e-6)
    assert decided.confidence == pytest.approx(max(probabilities), abs=1e-6)
    assert decided.agreement == pytest.approx(2 / 3 if label == "cat" else 1 / 3)
    assert decided.as_dict()["images"] == 3


def test_vote_sequence__one_image_is_its_own_decision() -> None:
    decided = vote_sequence([result(0.2, 0.5, 0.3)])
    assert (decided.label, decided.confidence, decided.agreement) == ("dog", 0.5, 1)
    assert decided.probabilities.tolist() == result(0.2, 0.5, 0.3).probabilities.tolist()


def test_vote_sequence__no_readable_image_is_an_error() -> None:
    decided = vote_sequence([Failure("a.jpg", "truncated"), Failure("b.jpg", "empty file")], sequence="s")
    assert (decided.error, decided.failed, decided.images) == (NO_IMAGE, 2, 0)
    assert decided.as_dict() == {"sequence": "s", "images": 0, "rejected": 0, "failed": 2, "error": NO_IMAGE}


def test_vote_sequence__images_unlike_the_training_images_have_no_vote() -> None:
    strange = result(0, 0, 1, reason=f"{OOD} 9.000 above 3.000")
    decided = vote_sequence([strange, strange, result(0.9, 0.1, 0)])
    assert (decided.label, decided.images, decided.rejected) == ("cat", 1, 2)
    alone = vote_sequence([strange, strange])
    assert (alone.label, alone.images, alone.rejected) == ("?", 0, 2)
    assert alone.reason.startswith(OOD)


def test_vote_sequence__images_of_impossible_classes_have_no_vote() -> None:
    nothing = result(0, 0, 0, reason="no class of the list has any probability")
    assert vote_sequence([nothing, result(0.9, 0.1, 0)]).label == "cat"
    alone = vote_sequence([nothing])
    assert (alone.label, alone.confidence, alone.reason) == ("?", 0, "no class of the list has any probability")


def test_vote_sequence__min_confidence_and_ranks() -> None:
    taxonomy = Taxonomy(("species", "kingdom"), (("animal", "animal", "plant"),))
    unsure = result(0.5, 0.4, 0.1, reason="confidence 0.500 below 0.8")
    decided = vote_sequence([unsure, unsure], min_confidence=0.8, taxonomy=taxonomy)
    assert (decided.label, decided.reason) == ("?", "confidence 0.500 below 0.8")
    assert decided.ranked is not None
    assert (decided.ranked.rank, decided.ranked.name) == ("kingdom", "animal")
    sure = vote_sequence([unsure, result(1, 0, 0), result(1, 0, 0)], min_confidence=0.8, taxonomy=taxonomy)
    assert (sure.label, sure.reason) == ("cat", "")


@given(st.lists(st.integers(0, 2), min_size=1, max_size=8), st.sampled_from(VOTINGS))
def test_vote_sequence__is_the_vote_of_members_and_keeps_no_order(kinds: list[int], voting: Voting) -> None:
    known = [result(0.5, 0.25, 0.25), result(0.25, 0.5, 0.25), result(0.125, 0.375, 0.5)]
    images = [known[kind] for kind in kinds]
    decided = vote_sequence(images, voting)
    expected = vote(np.stack([image.probabilities for image in images])[None], voting)
    assert decided.probabilities.tolist() == expected.probabilities[0].tolist()
    assert decided.label == NAMES[expected.label_ids[0]]
    for order in itertools.islice(itertools.permutations(images), 6):
        assert vote_sequence(order, voting).label == decided.label  # sums of these numbers are exact


def test_vote_sequence__refuses_nothing_and_mixed_classes() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        vote_sequence([])
    other = Classification("", "a", 1.0, ("a",), np.ones(1, np.float32))
    with pytest.raises(ValueError, match="different classes"):
        vote_sequence([result(1, 0, 0), other])
