"""What `tl evaluate` does with models of numbers and of several labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl.commands.console import console_progress, warn
from tl.commands.options import ModelFlags, PointFlags, open_multilabel_predictor, open_regression_predictor
from tl.commands.tables import Evaluated

if TYPE_CHECKING:
    from tl.data.manifests import LabeledImage, ManifestColumns
    from tl.evaluation.multilabel import LabelEvaluation
    from tl.evaluation.regression import NumberEvaluation
    from tl.runtime.predictor import Predictor
    from tl.runtime.session import Session

_WORST = 3


@dataclass(frozen=True)
class TargetData:
    """A CSV with a label or a number for each image, how to read it, and the split to evaluate."""

    data: Path
    columns: ManifestColumns
    split: str | None


def evaluate_number_files(
    data: TargetData, sessions: list[Session], models: ModelFlags, points: PointFlags
) -> Evaluated:
    """Evaluate models that predict numbers."""
    from tl.data.targets import read_numbers_of
    from tl.evaluation.regression import evaluate_numbers

    names = () if sessions[0].contract is None else sessions[0].contract.target_names
    found = read_numbers_of(data.data, names, data.columns, warn)
    return _evaluate(
        data,
        found,
        lambda: open_regression_predictor(sessions, models, points),
        evaluate_numbers,
        lambda error: f"error of {error:.2g} standard deviations",
    )


def evaluate_label_files(data: TargetData, sessions: list[Session], models: ModelFlags) -> Evaluated:
    """Evaluate models that give an image several labels."""
    from tl.data.label_sets import read_label_sets_of
    from tl.evaluation.multilabel import evaluate_labels

    names = () if sessions[0].contract is None else sessions[0].contract.class_names
    found = read_label_sets_of(data.data, names, data.columns, warn)
    return _evaluate(
        data,
        found,
        lambda: open_multilabel_predictor(sessions, models),
        evaluate_labels,
        lambda wrong: f"{wrong} of {len(names)} labels are wrong",
    )


def _evaluate(
    data: TargetData,
    found: list[LabeledImage],
    open_predictor: Callable[[], Predictor[Any]],
    evaluate: Callable[..., NumberEvaluation | LabelEvaluation],
    say: Callable[[Any], str],
) -> Evaluated:
    from tl.evaluation.evaluate import choose_split

    name, images = choose_split(found, data.split)
    say_split(name, len(images), "RUN/manifest.csv")
    with open_predictor() as predictor, console_progress() as progress:
        result = evaluate(predictor, images, progress)
    for path, fault in result.worst[:_WORST]:
        warn(f"worst: {path}: {say(fault)}")
    return Evaluated(name, result.rows, result.columns, result.failures)


def say_split(name: str, count: int, held_out: str) -> None:
    """Say which images are evaluated."""
    warn(f"evaluating on split '{name}': {count} images")
    if name == "all":
        warn(f"scores are too optimistic if a model was trained on these images; held out: {held_out} --split val")
