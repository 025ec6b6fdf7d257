"""`tl predict`: pictures and model files in, one row a picture out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl.commands.console import EXIT_INTERRUPTED, EXIT_SOME_FAILED, console_progress, warn
from tl.commands.options import Classes, Device, EnsembleFiles, ModelFile, Threads, Vote, VoteWeights, open_predictor
from tl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tl.runtime.inputs import Inputs
    from tl.runtime.predictor import Predictor

Images = Annotated[
    list[str] | None,
    typer.Argument(help="Files, folders, patterns such as 'photos/**/*.jpg', zip and tar archives."),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="A .csv, .jsonl or .parquet file. Default: CSV on stdout."),
]
FilesFrom = Annotated[
    str | None, typer.Option(help="Also the files named in this list, one a line; - for stdin.", metavar="FILE")
]
Null = Annotated[
    bool, typer.Option("--null", "-0", help="Names in --files-from end with NUL, as find -print0 writes them.")
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Pictures a run. Default: what suits the device.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Keep the rows of an earlier call whose pictures and models are the same.")
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="As --resume, and try pictures again that could not be read.")
]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first picture that cannot be read.")]


def command(
    images: Images = None,
    model: ModelFile = None,
    ensemble: EnsembleFiles = None,
    output: Output = None,
    files_from: FilesFrom = None,
    null: Null = False,
    vote: Vote = "soft",
    vote_weights: VoteWeights = None,
    classes: Classes = "same",
    device: Device = "auto",
    batch_size: BatchSize = None,
    threads: Threads = None,
    resume: Resume = False,
    retry_failed: RetryFailed = False,
    fail_fast: FailFast = False,
) -> None:
    """Predict pictures with one model file or an ensemble.

    Examples:
    - `tl predict images/ --model beetles.onnx -o out.csv`

    - `tl predict images/ --ensemble a.onnx b.onnx c.onnx`

    - `tl predict images/ --ensemble a.onnx b.onnx --vote hard --vote-weights 2,1 -o out.jsonl`

    - `find photos -newer last.txt -print0 | tl predict --files-from - --null --model beetles.onnx -o new.csv`

    - `tl predict photos.zip 'more/**/*.jpg' --model beetles.onnx -o out.csv --resume` goes on after an interrupt

    Columns: path, label, confidence, p:CLASS of each class, error; ensembles add agreement, entropy and vote:MEMBER.
    Exit code 3 says that some pictures could not be read: their rows hold the reason. Beside OUT lies OUT.ledger, by
    which --resume knows what is done; without need for it, delete it.
    """
    if output is None and (resume or retry_failed):
        raise ConfigError("--resume and --retry-failed need a file: give --output")
    pictures = _find_pictures(images or [], files_from, null)
    predictor = open_predictor(
        model, ensemble, vote=vote, vote_weights=vote_weights, classes=classes, device=device, threads=threads
    )
    options = {"batch_size": batch_size, "resume": resume or retry_failed, "retry_failed": retry_failed}
    failed = _write_predictions(predictor, pictures, output, {**options, "fail_fast": fail_fast})
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _find_pictures(images: list[str], files_from: str | None, null: bool) -> Inputs:
    from tl.runtime.inputs import find_inputs
    from tl.runtime.path_list import read_path_list

    if not images and files_from is None:
        raise ConfigError("nothing to predict: name pictures or folders, or give --files-from")
    listed = read_path_list(files_from, null=null) if files_from is not None else []
    found = find_inputs(images, listed=listed)
    if found.passed_over:
        warn(f"passed over: {found.passed_over}")
    if not found:
        raise DataError(f"no pictures found in {', '.join([*images, *([files_from] if files_from else [])])}")
    return found


def _write_predictions(
    predictor: Predictor,
    pictures: Inputs,
    output: Path | None,
    options: dict[str, Any],
) -> int:
    """Predict and write row by row; returns how many pictures could not be read."""
    from tl.runtime.job import Tally, run_job

    tally = Tally()
    started = time.monotonic()
    try:
        with predictor, console_progress() as progress:
            progress.start("predicting", len(pictures), "pictures")
            run_job(predictor, pictures, output, tally, advance=lambda tally: progress.advance(), **options)
    except KeyboardInterrupt:
        cure = "; go on by adding --resume" if output else ""
        warn(f"interrupted after {tally.done} of {len(pictures)} pictures{cure}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    new = tally.done - tally.kept
    speed = new / max(time.monotonic() - started, 1e-9)
    kept = f"{tally.kept} rows kept from before, " if tally.kept else ""
    where = f"; {output}" if output else ""
    warn(
        f"{kept}{tally.done - tally.failed} pictures predicted, {tally.failed} could not be read, {speed:.0f}/s{where}"
    )
    return tally.failed
