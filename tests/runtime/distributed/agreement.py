"""Compare the answers of a worker with those of the predictor whose models it opened."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import Any

import tl
from tl.runtime.distributed.worker import Recipe, Worker, dump_members
from tl.runtime.predictor import Predictor
from tl.runtime.streams import nothing_known


def make_recipe(predictor: Predictor[Any]) -> Recipe:
    return Recipe(
        dump_members(predictor.ensemble), predictor.with_votes, "cpu", 1, os.getcwd(), tl.__version__, 1 << 20
    )


def open_worker(recipe: Recipe) -> Worker:
    worker = Worker()
    worker.open(pickle.loads(pickle.dumps(recipe)))
    return worker


def assert_worker_agrees(predictor: Predictor[Any], sources: Sequence[Any]) -> None:
    """Each answer is equal, bit for bit: it is the same arithmetic, one image at a time."""
    items = list(predictor.items(sources))
    worker = open_worker(make_recipe(predictor))
    answers = worker.answer(pickle.loads(pickle.dumps(items)), None, hashes=True, only_digests=False)
    answers = pickle.loads(pickle.dumps(answers))
    expected = list(predictor.predict_unknown(items, nothing_known))
    assert [digest for digest, _ in answers] == [digest for digest, _ in expected]
    assert [(type(one), one.as_dict()) for _, one in answers] == [(type(one), one.as_dict()) for _, one in expected]
