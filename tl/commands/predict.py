"""`tl predict`: pictures and model files in, one row a picture out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl.commands.console import EXIT_INTERRUPTED, EXIT_SOME_FAILED, console_progress, warn
from tl.commands.options import Classes, Device, EnsembleFiles, ModelFile, Threads, Vote, VoteWeights, open_predictor
from tl.errors import DataError

if TYPE_CHECKING:
    from tl.runtime.predictor import Predictor


def command(
    images: Annotated[list[str], typer.Argument(help="Picture files and folders.", show_default=False)],
    model: ModelFile = None,
    ensemble: EnsembleFiles = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .csv or .jsonl file. Default: CSV on stdout.")
    ] = None,
    vote: Vote = "soft",
    vote_weights: VoteWeights = None,
    classes: Classes = "same",
    device: Device = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures a run. Default: what suits the device.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Predict pictures with one model file or an ensemble.

    Examples:
    - `tl predict images/ --model beetles.onnx -o out.csv`

    - `tl predict images/ --ensemble a.onnx b.onnx c.onnx`

    - `tl predict images/ --ensemble a.onnx b.onnx --vote hard --vote-weights 2,1 -o out.jsonl`

    Columns: path, label, confidence, p:CLASS of each class, error; ensembles add agreement, entropy and vote:MEMBER.
    Exit code 3 says that some pictures could not be read: their rows hold the reason.
    """
    from tl.runtime.sources import find_pictures

    found = find_pictures(images)
    if found.hidden or found.not_pictures:
        warn(f"passed over: {found.hidden} hidden, {found.not_pictures} files that are no pictures by their names")
    if not found.paths:
        raise DataError(f"no pictures found in {', '.join(images)}")
    predictor = open_predictor(
        model, ensemble, vote=vote, vote_weights=vote_weights, classes=classes, device=device, threads=threads
    )
    failed = _write_predictions(predictor, found.paths, output, batch_size, with_votes=bool(ensemble))
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _write_predictions(
    predictor: Predictor, paths: Sequence[str], output: Path | None, batch_size: int | None, *, with_votes: bool
) -> int:
    """Predict and write row by row; returns how many pictures could not be read."""
    from tl.runtime.results import Failure
    from tl.runtime.writers import open_writer, partial_path

    done = failed = 0
    started = time.monotonic()
    member_names = predictor.member_names if with_votes else ()
    writing = open_writer(output, predictor.class_names, member_names)
    try:
        with predictor, console_progress() as progress, writing as writer:
            progress.start("predicting", len(paths), "pictures")
            for result in predictor.predict_iter(paths, batch_size=batch_size):
                writer.write(result)
                done += 1
                failed += isinstance(result, Failure)
                progress.advance()
    except KeyboardInterrupt:
        rows = f"; their rows are in {partial_path(output)}" if output else ""
        warn(f"interrupted after {done} of {len(paths)} pictures{rows}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    speed = done / max(time.monotonic() - started, 1e-9)
    where = f"; {output}" if output else ""
    warn(f"{done - failed} pictures predicted, {failed} could not be read, {speed:.0f}/s{where}")
    return failed
