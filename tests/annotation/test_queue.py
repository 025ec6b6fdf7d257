"""What a window is offered next."""

from __future__ import annotations

import numpy as np
import pytest

from tl.annotation.queue import SECONDS_OFFERED, Queue


def offers(count: int = 100, reserve: int = 20) -> tuple[Queue, np.ndarray]:
    images = np.arange(count)
    return Queue(images[:reserve], images[reserve:], 0.2), np.ones(count, bool)


def test_queue__mixes_random_images_evenly() -> None:
    queue, is_open = offers()
    chosen = np.arange(99, 19, -1)
    offered = queue.offer("a", 40, chosen, is_open)
    assert [i for i in offered if i < 20] == list(range(8))  # in the order of the reserve
    assert [i for i in offered if i >= 20] == list(range(99, 67, -1))
    places = [place for place, i in enumerate(offered) if i < 20]
    assert max(np.diff(places)) <= 6
    assert places[0] < 6


def test_queue__what_is_in_view_stays_and_the_share_is_of_all_that_was_decided() -> None:
    """A window that shows twelve images, and a choice that is another one after each label."""
    images, rng = np.arange(1000), np.random.default_rng(0)
    queue, is_open, decided = Queue(images[:200], images[200:], 0.2), np.ones(1000, bool), []
    shown = queue.offer("a", 40, images[200:], is_open)
    for _ in range(300):
        decided.append(shown[0])
        is_open[shown[0]] = False
        kept = shown[1:12]
        shown = queue.offer("a", 40, rng.permutation(images[200:]), is_open, kept=kept)
        assert shown[:11] == kept
        assert len(set(shown)) == 40
        assert is_open[shown].all()
    is_random = np.array(decided) < 200
    assert [i for i in decided if i < 200] == list(range(is_random.sum()))  # in the order of the reserve
    assert is_random.mean() == pytest.approx(0.2, abs=0.01)
    assert is_random[:50].mean() == pytest.approx(0.2, abs=0.05)


def test_queue__another_window_gets_others_for_a_while() -> None:
    queue, is_open = offers()
    chosen = np.arange(99, 19, -1)
    first = queue.offer("a", 40, chosen, is_open, now=0)
    assert not set(first) & set(queue.offer("b", 40, chosen, is_open, now=1))
    assert queue.offer("a", 40, chosen, is_open, now=2) == first
    queue.offer("b", 40, chosen, is_open, now=3)
    assert queue.offer("c", 40, chosen, is_open, now=4)  # what is left
    assert queue.offer("d", 40, chosen, is_open, now=5)  # nothing is left, so others' images are offered again
    assert queue.offer("e", 40, chosen, is_open, now=SECONDS_OFFERED + 10) == first


def test_queue__what_is_left() -> None:
    queue, is_open = offers()
    none = np.zeros(0, np.intp)
    assert len(queue.offer("a", 40, none, is_open)) == 40  # before anything was chosen
    is_open[20:] = False
    assert queue.offer("a", 40, none, is_open) == list(range(20))  # only the reserve is left
    is_open[:20] = False
    assert queue.offer("a", 40, none, is_open) == []
    is_open[20:] = True
    assert len(set(queue.offer("a", 100, np.array([50, 51]), is_open))) == 80
