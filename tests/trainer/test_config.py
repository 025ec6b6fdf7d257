from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_type_hints

import pytest

from tl.trainer.config import Head, Method, Optimizer, TrainConfig
from tl.trainer.defaults import BY_METHOD, C_VALUES, CLASSES, FROM_SOLVED_HEAD, HEAD_SIZES, LANDMARKS, LEARNING_RATES

# Method auto has no defaults of its own: it chooses among the others.
METHODS = [method for method in get_args(Method) if method != "auto"]


def test_train_config__every_option_has_help_and_panel() -> None:
    for field in dataclasses.fields(TrainConfig):
        assert field.metadata["help"].endswith("."), field.name
        assert field.metadata["panel"] in ("Data", "Boxes", "Model", "Images", "Optimization", "Machine")


def test_train_config__defaults_are_among_the_choices() -> None:
    hints = get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        kinds = get_args(hints[field.name])
        choices = kinds if kinds and all(isinstance(kind, str) for kind in kinds) else ()
        assert not choices or field.default in choices, field.name


def test_by_method__fills_open_options_alone() -> None:
    open_options = {field.name for field in dataclasses.fields(TrainConfig) if field.default is None}
    assert set(BY_METHOD) == set(METHODS)
    for values in (*BY_METHOD.values(), FROM_SOLVED_HEAD, LANDMARKS, CLASSES):
        assert set(values) <= open_options


@pytest.mark.parametrize("method", METHODS)
def test_learning_rates__one_for_every_optimizer_that_steps(method: Method) -> None:
    assert set(LEARNING_RATES[method]) == {name for name in get_args(Optimizer) if name != "lbfgs"}


def test_head_defaults__for_every_head() -> None:
    known: tuple[Any, ...] = get_args(Head)
    assert set(HEAD_SIZES) == set(known)
    assert set(C_VALUES) == {"linear", "svm", "ridge"}
