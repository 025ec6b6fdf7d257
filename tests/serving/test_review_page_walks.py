"""Random actions in two windows of `tl review` on a slow connection: in the end, both show what the server keeps.

`TL_TEST_WALKS=40` walks 40 times, by the seeds 0 to 39; times differ from run to run.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.annotation.review_data import COLORS
from tests.serving.page_steps import Step, agree, evaluate, keep, pause, press
from tests.serving.review_server import look, serving

pytest.importorskip("tl.serving.local.app", reason="needs the packages of the extra serve", exc_type=ImportError)
pytestmark = pytest.mark.slow
SEEDS = range(int(os.environ.get("TL_TEST_WALKS", "1")))
STEPS = 120
KINDS = ("", "label", "duplicate")
ACTIONS = ["k", "1", "2", "3", "Enter", "d", "m", "Shift+M", "g", "u", "u", "u", "Control+Shift+Z", "Escape"]
MOVES = ["ArrowDown", "ArrowUp", " ", "Shift+ArrowDown", "Home", "End", "Control+a"]
PAGE = Path(__file__).with_name("review_walk.js").read_text(encoding="utf-8")


def walk(seed: int, url: str) -> list[Step]:
    chance, now = random.Random(seed), 0
    steps: list[Step] = [{"do": "window", "url": url}, {"do": "visible", "selector": "#overview h2"}]
    for _ in range(STEPS):
        what = chance.choices(["act", "move", "kind", "window", "pause", "large", "status"], [10, 5, 2, 2, 2, 1, 1])[0]
        if what == "window":
            now = 1 - now
            steps += [{"do": "switch", "number": now}]
        elif what == "kind":
            steps += [evaluate(f"document.querySelector('[data-kind=\"problems {chance.choice(KINDS)}\"]').click()")]
        elif what == "status":
            steps += [evaluate(f"document.getElementById('show-{chance.choice(['open', 'decided'])}').click()")]
        elif what == "pause":
            steps += [pause(chance.choice([50, 300, 1500]))]
        elif what == "large":
            steps += [press("z"), pause(100), press(*chance.choices("123kd", k=2)), press("Escape")]
        else:
            steps += [press(*chance.choices(ACTIONS if what == "act" else MOVES, k=chance.randint(1, 3)))]
    for number in (0, 1):
        steps += [{"do": "switch", "number": number}, press("Escape", "Escape")]
        steps += [keep(f"window {number}", agree(PAGE))]
    return steps


@pytest.mark.parametrize("seed", SEEDS)
def test_page__a_random_walk(seed: int, data: Path, npm: Path, tmp_path: Path) -> None:
    classes = list(COLORS)
    for n in range(2, 8):  # wrong labels, and copies with the same and with another label
        name = classes[n % 3]
        (data / name / f"{n:02d}.png").rename(data / classes[(n + 1) % 3] / f"wrong-{n}.png")
        shutil.copy(data / name / "11.png", data / classes[(n + n // 3) % 3] / f"copy-{n}.png")
    with serving(data, tmp_path / "reviewed.csv", "--kinds", "label,duplicate") as (_, link):
        driven = look(npm, link, walk(seed, link.partition("?")[0]), tmp_path, lag=150)
    assert [error for error in driven.errors if "status of 409" not in error] == []  # there may be nothing to undo
    for window in ("window 0", "window 1"):
        for what, (shown, kept) in driven.named[window].items():
            assert shown == kept, (window, what)
