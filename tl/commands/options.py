"""Options that several commands share, and what they open.

Knows typer. One definition each, so that commands cannot differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl.commands.console import warn
from tl.errors import ConfigError

if TYPE_CHECKING:
    from tl.runtime.predictor import Predictor

ModelFile = Annotated[Path | None, typer.Option("--model", "-m", help="One model file.")]
EnsembleFiles = Annotated[list[Path] | None, typer.Option(help="Model files that vote, all after one flag.")]
VoteWeights = Annotated[str | None, typer.Option(help="One number a member, as in 2,1,1.")]
Vote = Annotated[Literal["soft", "hard", "max"], typer.Option(help="How an ensemble decides.")]
Classes = Annotated[Literal["same", "union"], typer.Option(help="union lets members with different classes vote.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all cores.")]


def open_predictor(
    model: Path | None,
    ensemble: list[Path] | None,
    *,
    vote: Literal["soft", "hard", "max"] = "soft",
    vote_weights: str | None = None,
    classes: Literal["same", "union"] = "same",
    device: str = "auto",
    threads: int | None = None,
) -> Predictor:
    """Load what --model or --ensemble names and say on stderr what runs it."""
    models = ensemble or model
    if models is None or (ensemble and model):
        raise ConfigError("give either --model a.onnx or --ensemble a.onnx b.onnx c.onnx")
    from tl.runtime.predictor import load

    weights = _parse_weights(vote_weights)
    predictor = load(models, device=device, threads=threads, vote=vote, weights=weights, classes=classes)
    warn(f"running on {predictor.provider}" + (f" (no CUDA: {predictor.fault})" if predictor.fault else ""))
    return predictor


def _parse_weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--vote-weights: expected numbers such as 2,1,1, found '{text}'") from error
