"""What test-time augmentation gains and costs: the same models with and without it on labelled pictures.

Knows predictors and rows of an evaluation. Does not know views or voting.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from tl.runtime.predictor import Predictor
from tl.runtime.results import Classification, Failure
from tl.trainer.data import Picture, class_ids
from tl.trainer.evaluate import Decided, Evaluation, Row, score_results
from tl.trainer.metrics import mcnemar_p
from tl.trainer.progress import Progress

TTA_COLUMNS = ("tta", "gain", "gain_p", "images_per_s")
# Pictures between two changes of turn, at most; of few pictures there are eight turns.
_TURN, _TURNS = 64, 8


def evaluate_tta(
    plain: Predictor[Classification],
    augmented: Predictor[Classification],
    pictures: Sequence[Picture],
    progress: Progress,
) -> Evaluation:
    """The rows of `plain`, each but the oracle's followed by that of `augmented`, which has the same models.

    Both have `tta` and `images_per_s`, decoding included, of what was run as a whole. Those of `augmented` have `gain`,
    the difference in accuracy, and `gain_p`: how likely such a one is if both are equally good (McNemar's exact test).
    Raises as `evaluate`.
    """
    true_ids = class_ids(pictures, plain.class_names)
    progress.start("evaluating", len(pictures), "pictures")
    both = (plain, augmented)
    results: tuple[list[Classification | Failure], ...] = ([], [])
    seconds = [0.0, 0.0]
    for each in both:  # the first inference of a session takes longer
        each.predict_batch([picture.path for picture in pictures[:1]])
    size = min(_TURN, math.ceil(len(pictures) / _TURNS))
    for turn, start in enumerate(range(0, len(pictures), size)):
        chunk = pictures[start : start + size]
        # In turns, so that neither has all the files warm, or all of another program's load.
        for which in (turn % 2, 1 - turn % 2):
            started = time.monotonic()
            results[which].extend(both[which].predict_iter([picture.path for picture in chunk]))
            seconds[which] += time.monotonic() - started
        progress.advance(len(chunk))
    before, after = (score_results(each, true_ids, found) for each, found in zip(both, results, strict=True))
    rates = [len(pictures) / duration for duration in seconds]
    kinds = ",".join(augmented.ensemble.key["tta"])
    rows: list[Row] = []
    for row, new, old_said, new_said in zip(before.rows, after.rows, before.decided, after.decided, strict=False):
        is_whole = old_said.model == "ensemble" or len(before.decided) == 1
        speeds = rates if is_whole else (None, None)
        rows.append(row | {"tta": "", "gain": None, "gain_p": None, "images_per_s": speeds[0]})
        gain = new["top1_accuracy"] - row["top1_accuracy"]
        told = {"tta": kinds, "gain": gain, "gain_p": _p(old_said, new_said, before), "images_per_s": speeds[1]}
        rows.append(new | told)
    oracle = [row | dict.fromkeys(TTA_COLUMNS) for row in before.rows[len(before.decided) :]]
    return replace(before, rows=[*rows, *oracle])


def _p(before: Decided, after: Decided, evaluation: Evaluation) -> float:
    truth = evaluation.true_ids
    return mcnemar_p(after.label_ids == truth, before.label_ids == truth)
