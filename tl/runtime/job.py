"""Many pictures predicted into one file, which may be stopped at any moment and taken up again.

Knows the order of things: what is known is kept, the rest is predicted, rows go out in input order. Does not know
formats, the terminal or exit codes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tl.errors import ImageReadError, OutputError
from tl.runtime.content import hash_file
from tl.runtime.decode import ImageSource
from tl.runtime.landmark_files.files import Format
from tl.runtime.ledger import KeptRow, ledger_path, open_ledger
from tl.runtime.predictor import Predictor
from tl.runtime.results import Failure, Result
from tl.runtime.strict_json import dump_json
from tl.runtime.writers import ResultWriter, open_writer, partial_path


@dataclass
class Tally:
    """How far a job has come. `kept`: rows from before, among those done. `failed`: pictures without a prediction."""

    done: int = 0
    kept: int = 0
    failed: int = 0


def run_job(
    predictor: Predictor[Any],
    sources: Iterable[ImageSource],
    output: str | os.PathLike[str] | None,
    tally: Tally,
    *,
    point_format: Format | None = None,
    batch_size: int | None = None,
    resume: bool = False,
    retry_failed: bool = False,
    fail_fast: bool = False,
    advance: Callable[[Tally], None] = lambda tally: None,
    see: Callable[[Result], None] = lambda result: None,
) -> None:
    """Predict `sources` into a .csv or .jsonl file, or as CSV to stdout for None; `tally` counts on the way.

    With `resume`, pictures keep their rows where path, content, models and votes are the same; `retry_failed` tries
    again those that gave no prediction. `fail_fast` stops at the first of these. `see` is given every new result.
    `point_format`: of the landmarks, None for what the name says. Raises `OutputError`, `ImageReadError` (with
    `fail_fast`) and what predicting raises.
    """
    if output is None:
        with open_writer(None, predictor.columns) as writer:
            for predicted in predictor.predict_iter(sources, batch_size=batch_size):
                _count(predicted, tally, fail_fast)
                see(predicted)
                writer.write(predicted)
                advance(tally)
        return
    if not resume and partial_path(output).exists() and ledger_path(output).exists():
        raise OutputError(
            f"{partial_path(output)}: an interrupted prediction is here; go on with it by --resume, or delete it and "
            f"{ledger_path(output).name} to begin anew"
        )
    with (
        open_writer(output, predictor.columns, point_format) as writer,
        open_ledger(output, _key(predictor, writer), resume=resume, retry_failed=retry_failed or fail_fast) as ledger,
    ):
        for digest, result in predictor.predict_unknown(sources, ledger.known, batch_size=batch_size):
            if isinstance(result, KeptRow):
                tally.kept += 1
                tally.failed += result.failed
                tally.done += 1
                writer.write_row(result.row)
            else:
                row = writer.row(result)
                ledger.add(result.path, digest, row, isinstance(result, Failure))
                _count(result, tally, fail_fast)
                see(result)
                writer.write_row(row)
            advance(tally)


def _count(result: Result, tally: Tally, fail_fast: bool) -> None:
    if isinstance(result, Failure):
        tally.failed += 1
        if fail_fast:
            raise ImageReadError(result.path, result.error)
    tally.done += 1


def _key(predictor: Predictor[Any], writer: ResultWriter) -> str:
    """Names all that a row depends on beside its picture."""
    ensemble = predictor.ensemble
    facts = {
        "models": [hash_file(session.path) for session in ensemble.sessions],
        "settings": ensemble.key,
        "columns": [type(writer).__name__, *predictor.columns.types],
    }
    return hashlib.sha256(dump_json(facts).encode(errors="surrogateescape")).hexdigest()
