"""Small model files of every task that the server offers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
from onnx import helper

from tests.models import COLORS, make_contract, make_model
from tl.runtime.model_file.contract import METADATA_KEY, Conformal, RegressionFacts, dump_contract
from tl.runtime.model_file.label_facts import MultilabelFacts, RiskCurve


def make_careful_model(path: Path) -> Path:
    """The color model, with conformal scores of held-out images."""
    contract = dataclasses.replace(make_contract(), conformal=Conformal((0.3, 0.4, 0.5, 0.6, 0.9), "test"))
    return make_model(path, contract=contract)


def make_multilabel_model(path: Path) -> Path:
    """The color model for several labels: each color with a probability of at least 0.3."""
    curve = RiskCurve((0.0, 0.1, 0.5), (0.0, 0.05, 0.4), 50, "test")
    facts = MultilabelFacts((1.0,) * 3, (0.3,) * 3, "fixed", None, curve)
    return make_model(path, contract=make_contract(task="multilabel", multilabel=facts))


def make_regression_model(path: Path) -> Path:
    """The color model, whose probabilities are numbers with units."""
    errors = tuple(n / 100 for n in range(1, 31))
    facts = RegressionFacts(COLORS, ("mm", "g", ""), (1.0,) * 3, (errors,) * 3, "test")
    contract = dataclasses.replace(
        make_contract(), task="regression", class_names=(), regression=facts, outputs=("values",)
    )
    model = onnx.load(make_model(path))
    model.graph.node[-1].output[0] = model.graph.output[0].name = "values"
    helper.set_model_props(model, {METADATA_KEY: dump_contract(contract)})
    path.write_bytes(model.SerializeToString())
    return path
