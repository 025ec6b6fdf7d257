from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from tests.commands.conftest import RunTl
from tests.commands.conftest import run_tl as run_tl
from tests.models import make_model, solid
from tests.trainer.make import make_png
from tl.evaluation.metrics import accuracy_interval, wilson_interval
from tl.evaluation.ranks import rank_columns, rank_scores
from tl.evaluation.sequences import count_mixed, score_sequences
from tl.runtime.ensembles.taxonomy import Taxonomy

PROBABILITIES = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]], np.float32)
TRUTH = np.array([0, 0, 1, 0, 1])


def test_score_sequences__by_hand() -> None:
    scores = score_sequences(TRUTH, PROBABILITIES, ["a", "a", "", "b", ""], [""] * 5)
    # a is 0.65 for class 0 and right; the third is right alone, b is wrong, the fifth is wrong alone
    assert (scores["sequences"], scores["sequence_top1_accuracy"]) == (4, 0.5)
    assert (scores["sequence_ci_low"], scores["sequence_ci_high"]) == wilson_interval(2, 4)
    hard = score_sequences(TRUTH, PROBABILITIES, ["a"] * 2 + ["b"] * 3, [""] * 5, "hard")
    assert (hard["sequences"], hard["sequence_top1_accuracy"]) == (1, 1.0)  # b has images of two classes
    assert count_mixed(TRUTH, ["a"] * 2 + ["b"] * 3) == 1
    assert score_sequences(TRUTH, PROBABILITIES, [""] * 5, [""] * 5) == {}


def test_score_sequences__of_one_group_are_not_independent() -> None:
    names, groups = [str(i) for i in range(40)], ["g"] * 20 + ["h"] * 20
    truth, said = np.zeros(40, np.int64), np.tile(np.array([[0.1, 0.9]], np.float32), (40, 1))
    said[:20] = [0.9, 0.1]
    scores = score_sequences(truth, said, names, groups)
    assert (scores["sequence_ci_low"], scores["sequence_ci_high"]) == accuracy_interval(np.arange(40) < 20, groups)
    assert scores["sequence_ci_low"] < score_sequences(truth, said, names, [""] * 40)["sequence_ci_low"]


@given(st.integers(0, 2**32 - 1))
def test_rank_scores__as_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    families = random.integers(0, 4, 8)
    taxonomy = Taxonomy(
        ("class", "family", "order"), (tuple(f"f{i}" for i in families), tuple(f"o{i // 2}" for i in families))
    )
    probabilities = random.dirichlet(np.full(8, 0.5), 30).astype(np.float32)
    truth = random.integers(0, 8, 30)
    scores = rank_scores(probabilities, truth, taxonomy)
    assert tuple(scores) == rank_columns(taxonomy)
    for rank, groups in zip(("family", "order"), taxonomy.groups, strict=True):
        names = sorted(set(groups))
        sums = np.stack([probabilities[:, [g == name for g in groups]].sum(axis=1) for name in names], axis=1)
        true, found = [groups[i] for i in truth], [names[i] for i in sums.argmax(axis=1)]
        assert scores[f"{rank}_top1_accuracy"] == pytest.approx(accuracy_score(true, found))
        expected = f1_score(true, found, labels=sorted(set(true)), average="macro", zero_division=0)
        assert scores[f"{rank}_macro_f1"] == pytest.approx(expected)


@pytest.fixture
def visits(tmp_path: Path) -> Path:
    """Three visits: of two red and one blue photo of a red subject, of a blue one, and of two classes."""
    reds, blue = [(200, 30, 20), (200, 40, 30), (100, 90, 110)], (10, 60, 190)
    rows = [(f"{i}.png", "red", "v1") for i in range(3)]
    rows += [("3.png", "blue", "v2"), ("4.png", "blue", "v3"), ("5.png", "red", "v3")]
    for row, color in zip(rows, [*reds, blue, blue, (200, 10, 10)], strict=True):
        make_png(tmp_path / row[0], solid(color))
    with (tmp_path / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "visit"), *rows])
    return tmp_path / "labels.csv"


def test_evaluate__sequences_beside_images(run_tl: RunTl, visits: Path, color_model: Path) -> None:
    words = ["evaluate", visits, "--model", color_model, "--sequence"]
    done = run_tl(*words, "visit", "--report", visits.parent / "page.html")
    assert "accuracy of 2 sequences (95%)" in (visits.parent / "page.html").read_text(encoding="utf-8")
    assert done.code == 0, done.err
    (row,) = done.rows()
    assert (row["n"], row["top1_accuracy"]) == ("6", "0.8333")
    assert (row["sequences"], row["sequence_top1_accuracy"]) == ("2", "1.0000")
    assert "1 sequences have images of several classes" in done.err
    assert "nearest: 'visit'" in run_tl(*words, "visits").err
    assert "none of the 6 images has a capture time" in run_tl(*words, "exif:30s").err
    assert "--sequence-vote: requires --sequence" in run_tl(*words[:-1], "--sequence-vote", "hard").err
    assert "cannot be combined with --tta" in run_tl(*words, "visit", "--tta", "hflip").err


def test_evaluate__sequences_of_an_ensemble(run_tl: RunTl, visits: Path, color_model: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other.onnx", gain=0.1)
    words = ["evaluate", visits, "--ensemble", color_model, other, "--sequence", "visit", "--sequence-vote", "max"]
    rows = run_tl(*words).rows()
    assert [row["sequences"] for row in rows] == ["2"] * 5 + [""]  # the oracle decides on no sequence
