"""What self-training adds to a head that was fitted to the labels of `tl label`, and the choice of its share.

A fifth of a pool (70% of the images; at most 400) is labeled as in `labeling.py`, ten labels at a time. C is chosen by
cross-validation on the labels. `plain` is the head of `tl train --method features`, `balanced` the same with equal
weight of the classes; a number is the share of unlabeled images whose answers a balanced head is fitted to. `all` is
the plain head of all labels of the pool.

    TL_SHARED=... python benchmarks/self_training.py SEEDS coins imagenet-val-500 brain-mri ...
"""

import sys

import numpy as np
from labeling import Session
from labeling_data import divide, load

from tl.data.splits import find_folds
from tl.trainer.defaults import C_VALUES, SOLVER_FOLDS
from tl.trainer.heads import self_training
from tl.trainer.heads.solvers import LinearHead, cross_validate

SHARES = (0.3, 0.6, 0.9, 1.0)


def solve(features: np.ndarray, ids: np.ndarray, is_balanced: bool = False) -> LinearHead:
    folds = find_folds(ids, [str(i) for i in range(len(ids))], [""] * len(ids), SOLVER_FOLDS, 0)
    assert folds is not None
    return cross_validate("logistic", (features, ids), folds, C_VALUES["linear"], 0, is_balanced=is_balanced).head


def scores(features: np.ndarray, ids: np.ndarray, seed: int) -> dict[str, float]:
    """Accuracy on the test images of each head, for one draw."""
    pool, test = divide(ids, seed)
    session = Session(features[pool], ids[pool], "tl", 0.2, seed)
    budget = min(len(pool) // 5, 400)
    while len(session.labeled) < budget:
        session.label(min(10, budget - len(session.labeled)))
    rows = np.array(session.labeled)
    rest = np.setdiff1d(np.arange(len(pool)), rows)
    known, own = np.unique(session.ids[rows], return_inverse=True)
    labeled = session.features[rows], own

    def accuracy(head: LinearHead, names: np.ndarray = known) -> float:
        return float((names[head.logits(features[test]).argmax(axis=1)] == ids[test]).mean())

    every, all_ids = np.unique(ids[pool], return_inverse=True)
    balanced = solve(*labeled, is_balanced=True)
    found = {"all": accuracy(solve(features[pool], all_ids), every), "plain": accuracy(solve(*labeled))}
    found["balanced"] = accuracy(balanced)
    for share in SHARES:
        self_training.SHARE = share
        args = ("logistic", balanced, labeled, session.features[rest], 0)
        found[f"{share:g}"] = accuracy(self_training.self_train(*args, is_balanced=True))
    return found


def main() -> None:
    seeds = int(sys.argv[1])
    names = ("all", "plain", "balanced", *(f"{share:g}" for share in SHARES))
    print(f"| set | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for name in sys.argv[2:]:
        features, ids = load(name)
        found = [scores(features, ids, seed) for seed in range(seeds)]
        print(f"| {name} | {' | '.join(f'{np.mean([one[key] for one in found]):.4f}' for key in names)} |", flush=True)


if __name__ == "__main__":
    main()
