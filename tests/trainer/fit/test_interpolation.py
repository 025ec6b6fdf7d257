from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tl.trainer.fit.interpolation import SHARES, average, choose_share, interpolate


@pytest.mark.parametrize(
    ("share", "wanted"), [(0.0, [1.0, -2.0]), (0.5, [2.0, 0.0]), (0.25, [1.5, -1.0]), (1.0, [3.0, 2.0])]
)
def test_interpolate__by_hand(share: float, wanted: list[float]) -> None:
    start = {"weight": torch.tensor([1.0, -2.0]), "num_batches_tracked": torch.tensor(3)}
    end = {"weight": torch.tensor([3.0, 2.0]), "num_batches_tracked": torch.tensor(8)}
    found = interpolate(start, end, share)
    assert found["weight"].tolist() == wanted
    assert found["num_batches_tracked"] == 8
    assert (start["weight"].tolist(), end["weight"].tolist()) == ([1.0, -2.0], [3.0, 2.0])


def test_average__by_hand() -> None:
    states = [{"weight": torch.tensor([value, 2 * value])} for value in (1.0, 5.0, 6.0)]
    assert average(states)["weight"].tolist() == [4.0, 8.0]
    assert average(states[:2])["weight"].tolist() == [3.0, 6.0]
    assert average(states[:1])["weight"].tolist() == [1.0, 2.0]


def logits_of(wrong: list[list[int]], count: int = 16) -> NDArray[np.float64]:
    """For each position, logits (N, 2) of class 0 with a margin of 2, except for the images that are wrong."""
    logits = np.tile([2.0, 0.0], (len(wrong), count, 1))
    for position, places in enumerate(wrong):
        logits[position, places] = [0.0, 2.0]
    return logits


@pytest.mark.parametrize(
    ("wrong", "chosen"),
    [
        ([[0, 1, 2, 3], [0, 1, 2], [0, 1], [0], []], 4),
        # The best position is in the middle; one more error, of another image, is within one standard error of it.
        ([[0, 1, 2, 3], [0, 1, 2], [0, 1], [0, 2, 4], [4, 5, 6, 7, 8, 9, 10, 11]], 3),
        # No position differs from another.
        ([[0, 1], [0, 1], [0, 1], [0, 1], [0, 1]], 4),
        ([[], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]], 0),
    ],
)
def test_choose_share__the_farthest_within_a_standard_error(wrong: list[list[int]], chosen: int) -> None:
    logits, ids = logits_of(wrong), np.zeros(16, np.int64)
    found, held_out = choose_share(logits, ids, [""] * 16, [])
    assert SHARES[found] == SHARES[chosen]
    np.testing.assert_array_equal(held_out, logits[chosen])


def test_choose_share__images_of_a_group_count_as_one() -> None:
    # One group of four is lost in the beginning, and two others in the end.
    logits, ids = logits_of([[0, 1, 2, 3], *[[4, 5, 6, 7, 8, 9, 10, 11]] * 4]), np.zeros(16, np.int64)
    assert choose_share(logits, ids, [""] * 16, [])[0] == 0  # 4 more, of a standard error of the root of 12
    assert choose_share(logits, ids, [f"group {i // 4}" for i in range(16)], [])[0] == 4
    assert choose_share(logits, ids, ["all"] * 16, [])[0] == 0  # nothing is known of the error of one group


def test_choose_share__is_not_confused_by_overconfidence() -> None:
    # Ten times as confident and one error less: a higher log loss, but not after scaling by a temperature.
    logits = logits_of([[0, 1], [0, 1], [0, 1], [0, 1], [0]])
    logits[4] *= 10
    assert choose_share(logits, np.zeros(16, np.int64), [""] * 16, [])[0] == 4


def test_choose_share__scores_each_image_by_a_choice_without_it() -> None:
    # Images 0 to 7 are right only at the end, images 8 to 15 only at the start.
    first, second = list(range(8)), list(range(8, 16))
    logits = logits_of([first, first, first, first, second])
    every = np.arange(16)
    _, held_out = choose_share(
        logits, np.zeros(16, np.int64), [""] * 16, [(every[8:], every[:8]), (every[:8], every[8:])]
    )
    # Each half is scored by the position that suits the other half, and is wrong.
    assert (held_out.argmax(axis=1) == 1).all()
