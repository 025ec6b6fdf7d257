"""`tl predict`: pictures and model files in, one row a picture out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl.commands.console import EXIT_INTERRUPTED, EXIT_SOME_FAILED, console_progress, warn
from tl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tl.runtime.predictor import Predictor


def command(
    images: Annotated[
        list[str], typer.Argument(help="Picture files and folders (searched through).", show_default=False)
    ],
    model: Annotated[Path | None, typer.Option("--model", "-m", help="One model file.")] = None,
    ensemble: Annotated[list[Path] | None, typer.Option(help="Model files that vote, all after one flag.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .csv or .jsonl file. Default: CSV on stdout.")
    ] = None,
    vote: Annotated[Literal["soft", "hard", "max"], typer.Option(help="How an ensemble decides.")] = "soft",
    vote_weights: Annotated[str | None, typer.Option(help="One number a member, as in 2,1,1.")] = None,
    classes: Annotated[
        Literal["same", "union"], typer.Option(help="union lets members with different classes vote.")
    ] = "same",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a batch.")] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads for inference. Default: all cores.")] = None,
) -> None:
    """Predict pictures with one model file or an ensemble.

    Examples:
    - `tl predict images/ --model beetles.onnx -o out.csv`

    - `tl predict images/ --ensemble a.onnx b.onnx c.onnx`

    - `tl predict images/ --ensemble a.onnx b.onnx --vote hard --vote-weights 2,1 -o out.jsonl`

    Columns: path, label, confidence, p:CLASS of each class, error; ensembles add agreement, entropy and vote:MEMBER.
    Exit code 3 says that some pictures could not be read: their rows hold the reason.
    """
    from tl.runtime.results import Failure
    from tl.runtime.sources import find_pictures
    from tl.runtime.writers import open_writer, partial_path

    found = find_pictures(images)
    if found.hidden or found.not_pictures:
        warn(
            f"passed over: {found.hidden} hidden files, {found.not_pictures} files that are no pictures by their names"
        )
    if not found.paths:
        raise DataError(f"no pictures found in {', '.join(images)}")
    done = failed = 0
    predictor = open_predictor(
        model, ensemble, vote=vote, vote_weights=vote_weights, classes=classes, device=device, threads=threads
    )
    member_names = predictor.member_names if ensemble else ()
    started = time.monotonic()
    try:
        with (
            predictor,
            console_progress() as progress,
            open_writer(output, predictor.class_names, member_names) as writer,
        ):
            progress.start("predicting", len(found.paths), "pictures")
            for result in predictor.predict_iter(found.paths, batch_size=batch_size):
                writer.write(result)
                done += 1
                failed += isinstance(result, Failure)
                progress.advance()
    except KeyboardInterrupt:
        rows = f"; their rows are in {partial_path(output)}" if output else ""
        warn(f"interrupted after {done} of {len(found.paths)} pictures{rows}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    speed = done / max(time.monotonic() - started, 1e-9)
    where = f"; {output}" if output else ""
    warn(f"{done - failed} pictures predicted, {failed} could not be read, {speed:.0f}/s{where}")
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)


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
    warn(f"running on {predictor.provider}")
    return predictor


def _parse_weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--vote-weights: expected numbers such as 2,1,1, found '{text}'") from error
