"""A CSV row made from a JSON row is the one that the result itself gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from tl.runtime.ensembles.taxonomy import Ranked
from tl.runtime.imaging.regions import Box
from tl.runtime.output.columns import build_columns
from tl.runtime.output.stored_rows import csv_row, parse_row
from tl.runtime.results import (
    ClassFields,
    Classification,
    Failure,
    Fields,
    Landmarks,
    MemberVotes,
    Multilabel,
    MultilabelFields,
    NoBox,
    PointFields,
    Regression,
    RegressionFields,
)

NAMES = ("a", "b,c", 'd"')


def classification(rng: np.random.Generator) -> Classification:
    p = rng.dirichlet(np.ones(3)).astype(np.float32)
    votes = MemberVotes(("a", "b,c"), np.stack([p, p]), *rng.random(4).tolist())
    box = Box(tuple(rng.random(4).tolist()), is_relative=True, confidence=float(rng.random()), category="fox", number=2)
    return Classification(
        *("x, y.jpg", NAMES[int(p.argmax())], float(p.max()), NAMES, p),
        votes=votes,
        class_set=("a", "b,c"),
        ood_score=float(rng.normal()),
        reason="why",
        ranked=Ranked("genus", "a", float(rng.random())),
        box=box,
    )


def landmarks(rng: np.random.Generator) -> Landmarks:
    return Landmarks(
        "x.jpg",
        *(("tip", "2"), rng.normal(size=(2, 2)) * 1000, rng.random(2).astype(np.float32), rng.random(2)),
        *(float(rng.random()), True, (7, 8), (0.0, 0.0, 8.0, 7.0), ()),
        mm_per_px=float(rng.random()),
    )


def regression(rng: np.random.Generator) -> Regression:
    values = rng.normal(size=(4, 2)).astype(np.float32) * np.float32(1e3)
    return Regression("x.jpg", ("m", "n"), values[0], rng.random(2) * 1e-3, values[1], values[2:])


def multilabel(rng: np.random.Generator) -> Multilabel:
    p = rng.random(3).astype(np.float32)
    return Multilabel(
        *("x.jpg", NAMES, p, ("a", 'd"'), ("a",), float(rng.random())),
        votes=(("a",), ()),
        ood_score=float(rng.random()),
    )


CLASSES = ClassFields(NAMES, ("u", "v"), True, True, True, True, "relative")
MAKERS: list[tuple[Any, Fields]] = [
    (classification, CLASSES),
    (landmarks, PointFields(("tip", "2"), True, True, True)),
    (regression, RegressionFields(("m", "n"), ("u", "v"), True)),
    (multilabel, MultilabelFields(NAMES, ("u", "v"), True, True)),
    (lambda rng: Failure("\N{SNOWMAN}.jpg", "no, not an image"), RegressionFields(("m",))),
    (lambda rng: Failure("x.jpg", "bad", Box((1, 2, 3, 4 / 3), number=1)), ClassFields(NAMES, boxes="pixels")),
    (lambda rng: NoBox("x.jpg", "no box"), CLASSES),
]


@pytest.mark.parametrize(("make", "fields"), MAKERS)
def test_csv_row__as_written_at_once(make: Any, fields: Fields) -> None:
    columns, rng = build_columns(fields), np.random.default_rng(0)
    for _ in range(200):
        result = make(rng)
        assert csv_row(parse_row(orjson.dumps(result.as_dict()).decode()), fields, columns) == columns.line(result)
