"""Sessions of labeling for tests: their photos and output, and what is done to them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.annotation.photos import make_photos
from tl.annotation.opening import SessionPlan, open_session
from tl.annotation.page_requests import Seen
from tl.annotation.session import LabelSession

COUNT = 60


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", COUNT, folders=("a", "b", "c", "d"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def label(session: LabelSession, *ids: int, name: str = "red", window: str = "w") -> None:
    seen = [Seen(i, int(session.labels.version[i])) for i in ids]
    assert session.act(window, seen, "label", label=name).conflicts == []


def labels_of(plan: SessionPlan) -> list[str | None]:
    """The label of each image, at the next start."""
    with open_session(plan, None) as session:
        return [record["label"] for record in session.records(range(len(session.photos)))]
