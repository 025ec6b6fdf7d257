from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_info

from tl.trainer.heads.solvers import LinearHead, Solver, cross_validate, log_losses, select_nested, solve_head

Labeled = tuple[NDArray[Any], NDArray[np.int64]]
SOLVERS: tuple[Solver, ...] = ("logistic", "svm")
# Scaling in float32 and in another order changes the point at which a solver stops, by about its tolerance of 1e-4.
CLOSE_CALL = 1e-4


def make_features(seed: int, classes: int, count: int = 60, width: int = 20, apart: float = 0.7) -> Labeled:
    """Rectified clouds around class centers, with entries of different scales and offsets, like a trunk's features."""
    rng = np.random.default_rng(seed)
    true_ids = np.arange(count) % classes
    centers, offsets, sizes = rng.normal(size=(classes, width)), rng.normal(size=width), rng.uniform(0.5, 3, width)
    clouds = np.maximum(apart * centers[true_ids] + rng.normal(size=(count, width)), 0)
    return (sizes * clouds + 3 * offsets).astype(np.float32), true_ids.astype(np.int64)


def halves(data: Labeled) -> tuple[Labeled, Labeled]:
    """Training and validation."""
    middle = len(data[1]) // 2
    return (data[0][:middle], data[1][:middle]), (data[0][middle:], data[1][middle:])


def reference(solver: Solver, c: float, train: Labeled, **options: Any) -> Any:
    """scikit-learn's own standardization and fit."""
    if solver == "svm":
        model: Any = LinearSVC(**{"C": c, "tol": 1e-3, "random_state": 0, **options})
    else:
        model = LogisticRegression(**{"C": c, "max_iter": 1000, **options})
    return make_pipeline(StandardScaler() if solver == "svm" else HalfStandardized(), model).fit(*train)


class HalfStandardized(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Divides by the square root of each feature's standard deviation, in units of the mean one."""

    def fit(self, features: NDArray[Any], true_ids: Any = None) -> HalfStandardized:
        wide = features.astype(np.float64)
        std = wide.std(axis=0)
        std = np.maximum(std, 0.1 * std.mean())
        self.mean_, self.scale_ = wide.mean(axis=0), np.sqrt(std * std.mean())
        return self

    def transform(self, features: NDArray[Any]) -> NDArray[Any]:
        return (features - self.mean_) / self.scale_


def decisions(logits: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Decided ids, and their margins."""
    ranked = np.sort(logits, axis=1)
    return logits.argmax(axis=1), ranked[:, -1] - ranked[:, -2]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("width", [12, 150])  # fewer and more than the 60 images: two algorithms of LinearSVC
@pytest.mark.parametrize("c", [1e-2, 0.1])  # a smaller C gives margins near the tolerance of the solver
def test_solve_head__decides_as_scikit_learn(solver: Solver, classes: int, width: int, c: float) -> None:
    for seed in range(3):
        train, val = halves(make_features(seed, classes, 120, width))
        head, (trial,) = solve_head(solver, train, val, (c,), 0)
        wanted = reference(solver, c, train)
        for (features, true_ids), accuracy in ((train, trial.train_top1_accuracy), (val, trial.val_top1_accuracy)):
            decided, margin = decisions(head.logits(features))
            clear = margin > CLOSE_CALL
            assert clear.mean() > 0.95
            np.testing.assert_array_equal(decided[clear], wanted.predict(features)[clear])
            assert accuracy == pytest.approx(accuracy_score(true_ids, decided), abs=(~clear).mean() + 1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_solve_head__is_near_the_exact_answer(solver: Solver) -> None:
    train, val = halves(make_features(3, 4, 160))
    head, _ = solve_head(solver, train, val, (0.1,), 0)
    exact = reference(solver, 0.1, train, tol=1e-9, max_iter=100_000).decision_function(val[0])
    # Both solvers stop at a gradient of 1e-3 or 1e-4 per image; logits are then accurate to a few hundredths.
    np.testing.assert_allclose(head.logits(val[0]), exact, rtol=0, atol=0.03)


@pytest.mark.parametrize("solver", SOLVERS)
def test_solve_head__two_classes_give_0_and_the_margin(solver: Solver) -> None:
    train, val = halves(make_features(1, 2, 120))
    head, _ = solve_head(solver, train, val, (0.01,), 0)
    assert (head.weight.shape, head.bias.shape) == ((2, 20), (2,))
    logits = head.logits(val[0])
    assert (logits[:, 0] == 0).all()
    margin = reference(solver, 0.01, train).decision_function(val[0])
    np.testing.assert_allclose(logits[:, 1], margin, rtol=0, atol=1e-3)  # lbfgs stops at gradients of 1e-4
    assert 0.2 < (logits[:, 1] > 0).mean() < 0.8  # both classes occur


@pytest.mark.parametrize("solver", SOLVERS)
def test_solve_head__c_is_chosen_on_validation_and_of_equals_the_smallest(solver: Solver) -> None:
    c_values = (1.0, 1e-6, 0.01, 1e-3, 0.1)  # unsorted
    chosen = set()
    for seed in range(6):
        train, val = halves(make_features(seed, 3, 90, 30, apart=0.4))
        head, trials = solve_head(solver, train, val, c_values, 0)
        assert [trial.c for trial in trials] == sorted(c_values)
        models = [reference(solver, c, train) for c in sorted(c_values)]
        accuracies = [trial.val_top1_accuracy for trial in trials]
        wanted = [accuracy_score(val[1], model.predict(val[0])) for model in models]
        assert accuracies == pytest.approx(wanted, abs=1.5 / 45)  # one image of 45 may be a tie
        assert head.c == sorted(c_values)[accuracies.index(max(accuracies))]
        assert (decisions(head.logits(val[0]))[0] == val[1]).mean() == max(accuracies)  # the head of this C
        chosen.add(head.c)
    assert len(chosen) > 1  # validation made a difference


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("classes", [2, 3])
def test_solve_head__balanced_weighs_rare_classes_more(solver: Solver, classes: int) -> None:
    (features, true_ids), val = halves(make_features(5, classes, 300))
    kept = (true_ids > 0) | (np.arange(len(true_ids)) < 30)  # class 0 is rare only in training
    train = features[kept], true_ids[kept]
    found = []
    for is_balanced, class_weight in ((False, None), (True, "balanced")):
        head, (trial,) = solve_head(solver, train, val, (0.01,), 0, is_balanced=is_balanced)
        decided, margin = decisions(head.logits(val[0]))
        wanted = reference(solver, 0.01, train, class_weight=class_weight).predict(val[0])
        np.testing.assert_array_equal(decided[margin > CLOSE_CALL], wanted[margin > CLOSE_CALL])
        assert trial.val_top1_accuracy == accuracy_score(val[1], decided)
        found.append((decided[val[1] == 0] == 0).mean())  # recall of the rare class
    assert found[1] > found[0] + 0.1


@pytest.mark.parametrize("solver", SOLVERS)
def test_solve_head__of_perfect_values_the_smallest(solver: Solver) -> None:
    train, val = halves(make_features(0, 2, 40, apart=20))
    assert solve_head(solver, train, val, (10.0, 0.1, 1.0), 0)[0].c == 0.1


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("classes", [2, 4])
def test_solve_head__is_the_same_every_time(solver: Solver, classes: int) -> None:
    # More features than images, where LinearSVC uses random numbers; several values of C, which are fitted in parallel.
    train, val = halves(make_features(0, classes, 240, 400))
    heads = [solve_head(solver, train, val, (1e-4, 1e-3, 1e-2), 7)[0] for _ in range(4)]
    for head in heads[1:]:
        np.testing.assert_array_equal(head.weight, heads[0].weight)
        np.testing.assert_array_equal(head.bias, heads[0].bias)
    alone = solve_head(solver, train, val, (heads[0].c,), 7)[0]
    np.testing.assert_array_equal(heads[0].weight, alone.weight)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567])
def test_solve_head__a_constant_feature_weighs_nothing(solver: Solver, dtype: type, value: float) -> None:
    (features, true_ids), _ = halves(make_features(2, 3, 120))
    features = features.astype(dtype)
    features[:, 5] = value
    changed = features.copy()
    changed[:, 5] = value + 1
    head, (trial,) = solve_head(solver, (features, true_ids), (changed, true_ids), (0.01,), 0)
    assert np.abs(head.weight[:, 5]).max() < 1e-6  # rounding of the mean of equal float64 values
    assert trial.val_top1_accuracy == trial.train_top1_accuracy
    wanted = reference(solver, 0.01, (features, true_ids))
    decided, margin = decisions(head.logits(changed))
    np.testing.assert_array_equal(decided[margin > CLOSE_CALL], wanted.predict(features)[margin > CLOSE_CALL])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("quiet", [1e-6, 1e-20, 1e-39])
def test_solve_head__nearly_constant_feature_does_not_dominate(solver: Solver, quiet: float) -> None:
    # A dead channel with almost no variation in training images, but real variation in validation images.
    train, val = halves(make_features(0, 3, 120, apart=20))
    train[0][:, 4], val[0][:, 4] = 0, 0.3
    train[0][7, 4] = quiet
    head, (trial,) = solve_head(solver, train, val, (0.01,), 0)
    assert np.isfinite(head.weight.astype(np.float32)).all()
    assert trial.val_top1_accuracy == 1.0


@pytest.mark.parametrize("solver", SOLVERS)
def test_solve_head__nothing_but_constants_decides_by_class_size(solver: Solver) -> None:
    train = np.full((10, 4), 0.7, np.float32), np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 2])
    head, _ = solve_head(solver, train, train, (0.1,), 0)
    assert (head.weight == 0).all()
    assert set(decisions(head.logits(train[0]))[0]) == {0}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("classes", [2, 3])
def test_solve_head__one_image_a_class(solver: Solver, classes: int) -> None:
    train = np.eye(classes, 6, dtype=np.float32), np.arange(classes)
    head, _ = solve_head(solver, train, train, (0.1, 1.0), 0)
    assert decisions(head.logits(train[0]))[0].tolist() == list(range(classes))


@pytest.mark.parametrize("solver", SOLVERS)
def test_solve_head__what_does_not_converge_is_no_warning(solver: Solver) -> None:
    train, val = halves(make_features(0, 3, 120, 12, apart=0.0))
    threads = [info["num_threads"] for info in threadpool_info()]
    solve_head(solver, train, val, (1e8,), 0)
    assert [info["num_threads"] for info in threadpool_info()] == threads


def folds_of(true_ids: NDArray[np.int64], count: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    return list(StratifiedKFold(count, shuffle=True, random_state=0).split(true_ids, true_ids))


@pytest.mark.parametrize("solver", SOLVERS)
def test_cross_validate__held_out_logits_are_of_heads_without_the_row(solver: Solver) -> None:
    features, true_ids = make_features(4, 3, 60)
    folds = folds_of(true_ids, 3)
    found = cross_validate(solver, (features, true_ids), folds, (0.01,), 0)
    for i, (own, held) in enumerate(folds):
        head, _ = solve_head(solver, (features[own], true_ids[own]), (features[held], true_ids[held]), (0.01,), i)
        np.testing.assert_array_equal(found.held_out[held], head.logits(features[held]))
    whole, _ = solve_head(solver, (features, true_ids), (features, true_ids), (0.01,), 0)
    np.testing.assert_array_equal(found.head.weight, whole.weight)


@pytest.mark.parametrize("solver", SOLVERS)
def test_cross_validate__c_has_the_smallest_held_out_loss(solver: Solver) -> None:
    features, true_ids = make_features(1, 3, 90, 30, apart=0.4)
    folds, c_values = folds_of(true_ids, 5), (1e-6, 1e-3, 0.1, 10.0)
    found = cross_validate(solver, (features, true_ids), folds, c_values, 0)
    alone = [cross_validate(solver, (features, true_ids), folds, (c,), 0) for c in c_values]
    if solver == "svm":
        losses = [float((each.held_out.argmax(axis=1) != true_ids).mean()) for each in alone]
    else:
        losses = [log_loss(true_ids, softmax(each.held_out, axis=1)) for each in alone]
        assert [trial.val_log_loss for trial in found.trials] == pytest.approx(losses, abs=1e-9)  # float64
    assert found.head.c == c_values[int(np.argmin(losses))]
    accuracies = [float((each.held_out.argmax(axis=1) == true_ids).mean()) for each in alone]
    assert [trial.val_top1_accuracy for trial in found.trials] == pytest.approx(accuracies)
    # Each fold's logits come from the C that is best on the other folds.
    for _, held in folds:
        others = np.setdiff1d(np.arange(len(true_ids)), held)
        if solver == "svm":
            rest = [float((each.held_out[others].argmax(axis=1) != true_ids[others]).mean()) for each in alone]
        else:
            rest = [log_loss(true_ids[others], softmax(each.held_out[others], axis=1)) for each in alone]
        np.testing.assert_array_equal(found.held_out[held], alone[int(np.argmin(rest))].held_out[held])


def test_cross_validate__labels_without_meaning_score_as_chance() -> None:
    """Choosing C among many on the scored rows themselves would look better than chance."""
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(20):
        features, true_ids = rng.normal(size=(40, 60)).astype(np.float32), np.arange(40) % 2
        found = cross_validate("logistic", (features, true_ids), folds_of(true_ids, 5), (1e-4, 1e-2, 1.0, 100.0), 0)
        hits.append(float((found.held_out.argmax(axis=1) == true_ids).mean()))
    assert np.mean(hits) < 0.56  # 800 rows: chance is 0.5 with a standard error of 0.018


def numbered_logits(candidates: int, rows: int) -> NDArray[np.float64]:
    """Logits (K, N, 1): ten times the number of the candidate plus that of the row."""
    return (10.0 * np.arange(candidates)[:, None] + np.arange(rows))[:, :, None]


def test_select_nested__by_hand() -> None:
    # Sums: 6, 5 and 8. Without rows 0 and 1: 0, 4 and 4. Without rows 2 and 3: 6, 1 and 4.
    losses = np.array([[3.0, 3.0, 0.0, 0.0], [1.0, 0.0, 2.0, 2.0], [2.0, 2.0, 2.0, 2.0]])
    folds = [(np.array([2, 3]), np.array([0, 1])), (np.array([0, 1]), np.array([2, 3]))]
    chosen, held_out = select_nested(numbered_logits(3, 4), losses, folds)
    assert chosen == 1
    assert held_out.ravel().tolist() == [0, 1, 12, 13]


def test_select_nested__the_first_of_equals() -> None:
    chosen, held_out = select_nested(numbered_logits(2, 2), np.ones((2, 2)), [(np.array([0]), np.array([1]))])
    assert (chosen, held_out.ravel().tolist()) == (0, [0, 1])


def test_select_nested__without_folds_all_rows_come_from_the_best() -> None:
    logits = numbered_logits(2, 3)
    before = logits.copy()
    chosen, held_out = select_nested(logits, np.array([[1.0, 1, 1], [0, 0, 2]]), [])
    assert (chosen, held_out.ravel().tolist()) == (1, [10, 11, 12])
    held_out += 1
    np.testing.assert_array_equal(logits, before)


def test_log_losses__by_hand() -> None:
    logits = np.array([[0.0, np.log(3)], [np.log(3), 0.0], [1000.0, 0.0]], np.float64)
    # Probabilities 3/4, 1/4 and exp(-1000); float64.
    np.testing.assert_allclose(log_losses(logits, np.array([1, 1, 1])), [np.log(4 / 3), np.log(4), 1000], rtol=1e-12)


def test_linear_head__logits_by_hand() -> None:
    head = LinearHead(np.array([[1.0, 2.0], [0.5, -1.0], [0.0, 0.0]]), np.array([0.0, 1.0, -1.0]), 1.0)
    logits = head.logits(np.array([[2, 4], [0, 0]], np.float32))
    assert logits.dtype == np.float64
    assert logits.tolist() == [[10, -2, -1], [0, 1, -1]]
