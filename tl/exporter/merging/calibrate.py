"""Calibrate the confidence of votes on held-out labeled images.

Does not depend on graphs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tl.data.boxed import check_boxed
from tl.data.manifests import LabeledImage, class_ids
from tl.errors import DataError
from tl.evaluation.calibration import conformal_of, fit_useful_temperature
from tl.evaluation.evaluate import check_unseen
from tl.progress import Progress
from tl.runtime.ensembles.ensemble import Ensemble
from tl.runtime.ensembles.selective import conformal_limit
from tl.runtime.ensembles.voting import soften
from tl.runtime.model_file.contract import Conformal
from tl.runtime.predictor import Predictor
from tl.runtime.results import Classification

# Majority voting gives classes without a vote a share of 0, which no temperature changes.
_FLOOR = 1e-4


@dataclass(frozen=True)
class Calibration:
    """`temperature` that softens voted probabilities, and the true-class scores after it.

    `unknown_limit`: the threshold that the members' mean `ood_score` exceeds on a fraction `false_alarm` of the
    `images` images; None if a member has no such score.
    """

    temperature: float
    conformal: Conformal | None
    unknown_limit: float | None = None
    false_alarm: float = 0.0
    images: int = 0


def calibrate_votes(
    ensemble: Ensemble, held_out: Sequence[LabeledImage], progress: Progress, false_alarm: float
) -> Calibration:
    """Fit the temperature of voted probabilities. Temperature 1 without images. Raises `DataError`.

    `false_alarm`: fraction of the images that may be flagged as unknown.
    """
    if not held_out:
        return Calibration(1.0, None)
    if any(image.split == "val" for image in held_out):
        check_unseen(ensemble.sessions, "val")
    check_boxed(held_out, ensemble.crop, ensemble.sessions[0].path)
    true_ids = class_ids(held_out, ensemble.class_names)
    progress.start("calibrating", len(held_out), "images")
    voted, known, strange = [], [], []
    for true_id, result in zip(
        true_ids, Predictor(ensemble, with_votes=False).predict_iter([p.source for p in held_out]), strict=True
    ):
        progress.advance()
        if isinstance(result, Classification):
            voted.append(result.probabilities)
            known.append(true_id)
            if result.ood_score is not None:
                strange.append(result.ood_score)
    if len(known) < len(held_out):
        raise DataError(f"{len(held_out) - len(known)} of {len(held_out)} calibration images cannot be read")
    probabilities, truth = np.stack(voted), np.array(known, np.int64)
    temperature = fit_useful_temperature(np.log(np.maximum(probabilities, _FLOOR)), truth)
    temperature = float(np.float32(temperature))  # as in the graph
    conformal = conformal_of(soften(probabilities, temperature), truth, "given images")
    if not strange:
        return Calibration(temperature, conformal)
    limit = conformal_limit(strange, 1 - false_alarm)
    if limit == math.inf:
        least = math.ceil(1 / false_alarm - 1e-9) - 1
        progress.say(f"no out-of-distribution score: its limit requires at least {least} images, found {len(strange)}")
        return Calibration(temperature, conformal)
    alarms = float((np.array(strange) > limit).mean())
    return Calibration(temperature, conformal, limit, alarms, len(strange))
