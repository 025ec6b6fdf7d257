"""Vote weights on the command line: numbers, or the file that `tl evaluate --fit-vote-weights` writes.

Knows that file. Does not know how weights are fitted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl.commands.console import warn
from tl.errors import ConfigError

if TYPE_CHECKING:
    from tl.trainer.evaluate import Evaluation


def fit_vote_file(result: Evaluation, path: Path, *, select: bool) -> dict[str, Any]:
    """Write weights fitted to the pictures of an evaluation; returns the row of what they are worth.

    Raises `DataError`, `OutputError`.
    """
    from tl.runtime.files import write_text
    from tl.trainer.evaluate import fit_votes

    fitted = fit_votes(result, select=select)
    kept = {name: round(weight, 6) for name, weight in fitted.weights.items() if weight > 0}
    write_text(path, json.dumps({"vote_weights": kept}, indent=2, ensure_ascii=False) + "\n")
    warn(f"{path}: {', '.join(f'{name} {weight:.3g}' for name, weight in kept.items())}")
    if left_out := [name for name, weight in fitted.weights.items() if weight == 0]:
        warn(f"left out: {', '.join(left_out)}")
    losses = f"{fitted.log_loss:.4f} on pictures held out from fitting, {fitted.equal_log_loss:.4f} with equal weights"
    is_better = fitted.log_loss < fitted.equal_log_loss
    warn(f"log loss {losses}" + ("" if is_better else ": equal weights do as well"))
    return fitted.row


def parse_vote_weights(text: str | None, models: list[Path]) -> list[float] | None:
    """`2,1,1`, or the name of a file of `tl evaluate --fit-vote-weights` -> a number a model. Raises `ConfigError`."""
    if text is None:
        return None
    if Path(text).is_file():
        return _read_vote_weights(Path(text), models)
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--vote-weights: expected numbers such as 2,1,1, or a file, found '{text}'") from error


def _read_vote_weights(path: Path, models: list[Path]) -> list[float]:
    from tl.runtime.ensemble import member_names
    from tl.runtime.strict_json import parse_json

    try:
        plain = parse_json(path.read_text(encoding="utf-8"))
        weights = plain["vote_weights"] if isinstance(plain, dict) else None
        if not isinstance(weights, dict) or not all(isinstance(value, int | float) for value in weights.values()):
            raise ValueError("expected vote_weights with a number for each member")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"--vote-weights {path}: not a file of tl evaluate --fit-vote-weights ({error})") from error
    names = member_names([str(model) for model in models])
    if lacking := [name for name in weights if name not in names]:
        raise ConfigError(f"--vote-weights {path}: is also for {', '.join(lacking)}, which --ensemble does not name")
    if surplus := [name for name in names if name not in weights]:
        raise ConfigError(f"--vote-weights {path}: leaves out {', '.join(surplus)}; take it out of --ensemble too")
    return [float(weights[name]) for name in names]
