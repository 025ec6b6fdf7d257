from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.models import color_probabilities, solid
from tl.errors import ParityError
from tl.exporter.parity import Original, check_outputs, spread
from tl.runtime.session import Session

ORIGINAL = Original("the net", "its way", "the tool")
# The second is a tie between red and blue.
INPUTS = np.stack([solid((200, 30, 90)), solid((120, 30, 120)), solid((10, 20, 250))])


@pytest.fixture
def session(color_model: Path) -> Session:
    return Session(color_model, device="cpu", threads=1)


def wanted() -> np.ndarray:
    return np.stack([color_probabilities(image) for image in INPUTS])


def test_check_outputs__report(session: Session) -> None:
    report = check_outputs(session, list(INPUTS), INPUTS, {"probabilities": wanted()}, ORIGINAL)
    assert (report.images, report.batch_sizes, report.tolerance, report.top1_agreement) == (3, (1, 8), 1e-4, 1.0)
    # float32 softmax of three classes against float64.
    assert max(report.pipeline_max_abs_diff, report.session_max_abs_diff["probabilities"]) < 1e-6


@pytest.mark.parametrize("tilt", [5e-6, -5e-6])
def test_check_outputs__a_tie_agrees_with_either(session: Session, tilt: float) -> None:
    tilted = wanted()
    tilted[1] += np.array([tilt, 0, -tilt], np.float32) / 2
    report = check_outputs(session, list(INPUTS), INPUTS, {"probabilities": tilted}, ORIGINAL)
    assert report.top1_agreement == 1.0


def test_check_outputs__another_label_within_the_tolerance(session: Session) -> None:
    flipped = wanted()
    flipped[1] += np.array([-3e-3, 0, 3e-3], np.float32)
    with pytest.raises(ParityError, match=r"only 66.7% of the labels agree"):
        check_outputs(session, list(INPUTS), INPUTS, {"probabilities": flipped}, ORIGINAL, 1e-2)


def test_check_outputs__a_wider_tolerance(session: Session) -> None:
    other = wanted() + np.array([[5e-3, 0, -5e-3], [0, 0, 0], [0, 0, 0]], np.float32)
    with pytest.raises(ParityError, match=r"differs by 0.005 between the net and onnxruntime; .*between its way and"):
        check_outputs(session, list(INPUTS), INPUTS, {"probabilities": other}, ORIGINAL)
    assert check_outputs(session, list(INPUTS), INPUTS, {"probabilities": other}, ORIGINAL, 2e-2).tolerance == 2e-2


@pytest.mark.parametrize(
    ("count", "paths", "chosen"),
    [(3, "ab", "ab"), (2, "abcde", "ae"), (3, "abcde", "ace"), (3, "abcdef", "acf"), (4, "abcdefg", "aceg")],
)
def test_spread(count: int, paths: str, chosen: str) -> None:
    assert "".join(spread(list(paths), count)) == chosen
