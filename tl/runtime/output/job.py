"""Predict many images into one file, in a job that can be interrupted at any time and resumed from its ledger.

Keeps known rows, predicts the rest and writes rows in input order. Independent of output formats, the terminal and exit
codes.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from tl.errors import ImageReadError, OutputError
from tl.runtime.labeling.label_studio_tasks import TaskLinks
from tl.runtime.model_file.strict_json import dump_json
from tl.runtime.output.claim import Claim, claim_output
from tl.runtime.output.columns import build_columns
from tl.runtime.output.files import check_output, no_follow, output_errors
from tl.runtime.output.notes import NotedColumns, Notes
from tl.runtime.output.places import KEY_BYTES, Places
from tl.runtime.output.sequence_rows import SequencePlan, SequenceRows, open_sequences
from tl.runtime.output.writers import GivenFormat, ResultWriter, lists_failures, open_writer
from tl.runtime.predictor import Predictor
from tl.runtime.results import ClassFields, Classification, Failure, NoBox, Result
from tl.runtime.sources.boxed_images import PredictionSource
from tl.runtime.sources.paths import hash_file
from tl.runtime.streams import nothing_known

_VERSION = 1
# A crash loses at most this much work.
_SECONDS_BETWEEN_FLUSHES = 1.0


@dataclass(frozen=True)
class KeptRow:
    """A row kept from an earlier run. `failed`: whether it contains an error instead of a prediction."""

    path: str
    row: str
    failed: bool


class Ledger:
    """Rows by path and content. `known` may be called from several threads, `add` from one."""

    def __init__(self, path: Path, places: Places, reader: BinaryIO, writer: BinaryIO) -> None:
        self._path, self._places, self._reader, self._writer = path, places, reader, writer
        self._lock = threading.Lock()
        self._flushed = time.monotonic()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def lookup(self) -> Callable[[str, str], KeptRow | None]:
        """`known`, or `nothing_known` if no row is: a cluster then predicts without asking for digests first."""
        return self.known if self._places else nothing_known

    def known(self, name: str, digest: str) -> KeptRow | None:
        """Return the row of an image with this path and content, or None."""
        place = self._places.get(_row_key(name, digest))
        if place is None:
            return None
        with self._lock:
            self._reader.seek(place)
            line = json.loads(self._reader.readline())
        return KeptRow(name, line["row"], line["failed"])

    def add(self, name: str, digest: str, row: str, failed: bool) -> None:
        """Add a finished row. Without a digest (the file could not be read), the image will be tried again."""
        line = {"path": name, "sha256": digest, "failed": failed, "row": row}
        with output_errors(self._path):
            self._writer.write(_dump(line))
            if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
                self._writer.flush()
                self._flushed = time.monotonic()


@contextmanager
def open_ledger(path: Path, key: str, *, resume: bool, retry_failed: bool = False) -> Iterator[Ledger]:
    """Open a ledger. `key`: everything its rows depend on, besides the images.

    With `resume`, rows of an earlier run with the same key are kept, except failed ones with `retry_failed`. Otherwise
    the ledger starts empty. Raises `OutputError`.
    """
    places, end = _read_places(path, key, retry_failed) if resume else (Places(), 0)
    with (
        output_errors(path),
        open(path, "r+b" if end else "w+b", opener=no_follow) as writer,
        open(path, "rb", opener=no_follow) as reader,
    ):
        writer.truncate(end)
        writer.seek(end)
        if not end:
            writer.write(_header(key))
        yield Ledger(path, places, reader, writer)
        writer.flush()
        os.fsync(writer.fileno())


def _read_places(path: Path, key: str, retry_failed: bool) -> tuple[Places, int]:
    """Return each row's line offset and the end of the last complete line; none and 0 without a ledger of this key."""
    places = Places()
    if not path.exists():
        return places, 0
    with output_errors(path), open(path, "rb", opener=no_follow) as stream:
        if stream.readline() != _header(key):
            return places, 0
        end = stream.tell()
        for line in stream:
            try:
                entry = json.loads(line)
                name, digest, failed = entry["path"], entry["sha256"], entry["failed"]
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            # A later line replaces an earlier one, for example of a retried failure.
            if digest and not (failed and retry_failed):
                places.add(_row_key(name, digest), end)
            end += len(line)
    places.sort()
    return places, end


def _dump(line: dict[str, object]) -> bytes:
    try:
        return orjson.dumps(line) + b"\n"  # ten times as fast for a row of a thousand numbers
    except orjson.JSONEncodeError:  # a path that is not valid UTF-8, with its bytes as surrogates
        return json.dumps(line).encode() + b"\n"


def _header(key: str) -> bytes:
    return json.dumps({"ledger": _VERSION, "key": key}).encode() + b"\n"


def _row_key(name: str, digest: str) -> bytes:
    return blake2b(f"{digest} {name}".encode(errors="surrogateescape"), digest_size=KEY_BYTES).digest()


@dataclass
class Tally:
    """Progress of a job. `kept`: rows of an earlier run, included in `done`. `failed`: images without a prediction.

    `sequences`: number of sequences written.
    """

    done: int = 0
    kept: int = 0
    failed: int = 0
    sequences: int = 0


def run_job(
    predictor: Predictor[Any],
    sources: Iterable[PredictionSource],
    output: str | os.PathLike[str] | None,
    tally: Tally,
    *,
    point_format: GivenFormat | None = None,
    links: TaskLinks | None = None,
    batch_size: int | None = None,
    resume: bool = False,
    retry_failed: bool = False,
    fail_fast: bool = False,
    overwrite: bool = False,
    for_excel: bool = False,
    notes: Notes | None = None,
    sequences: SequencePlan | None = None,
    advance: Callable[[Tally], None] = lambda tally: None,
    see: Callable[[Result], None] = lambda result: None,
) -> None:
    """Predict `sources` into a .csv or .jsonl file, or as CSV to stdout if `output` is None; update `tally` on the way.

    With `resume`, images with the same path, content, models and votes keep their rows; `retry_failed` retries those
    without a prediction. `fail_fast` stops at the first failed image. An existing file is replaced only with
    `overwrite`, or if a job with the same models and votes has written it and it is unchanged. `see` is called with
    every new result. `point_format`: None to select the format by the file name. `links`: see `open_writer`.
    `for_excel`: see `write_excel_csv`. `notes`: further columns. `sequences`: also decide on sequences, in the second
    file `sequence_path(output)`. Raises `OutputError`, `ImageReadError` (with `fail_fast`), the errors of prediction.
    """
    notes = notes or Notes()
    columns = NotedColumns(build_columns(predictor.fields), notes.types)
    rows = _Rows(notes, tally, fail_fast, see, advance)
    sources = notes.watch(predictor.items(sources))
    if output is None:
        with open_writer(None, predictor.fields, columns=columns) as writer:
            for predicted in predictor.predict_iter(sources, batch_size=batch_size):
                rows.take(predicted, writer.row(predicted), writer)
        return
    with claim_output(output) as claim:
        key = job_key(predictor, claim.output, "excel" if for_excel else point_format)
        finished = key if not notes.types else f"{key} {','.join(notes.types)}"  # the ledger's rows are without notes
        has_list = lists_failures(claim.output, point_format)
        _check_claim(claim, key, finished, has_list, resume=resume, overwrite=overwrite)
        with (
            _open_sequences(claim.output, sequences, predictor, finished, overwrite, for_excel) as groups,
            open_writer(
                *(claim.output, predictor.fields, point_format, claim.rows, for_excel, predictor.boxes, columns, links)
            ) as writer,
            open_ledger(claim.ledger, key, resume=resume, retry_failed=retry_failed or fail_fast) as ledger,
        ):
            for digest, result in predictor.predict_unknown(sources, ledger.lookup, batch_size=batch_size):
                if isinstance(result, KeptRow):
                    rows.keep(result, writer, groups)
                else:
                    row = writer.row(result)
                    ledger.add(result.path, digest, row, _has_failed(result))
                    rows.take(result, row, writer, groups)
        tally.sequences = groups.count if groups is not None else 0
        if has_list and not tally.failed:  # what an earlier job has listed is out of date
            claim.failed_list.unlink(missing_ok=True)
        claim.finish(finished)


@dataclass(frozen=True)
class _Rows:
    """Where a row goes: into the output, the count, and the sequences if there are any."""

    notes: Notes
    tally: Tally
    fail_fast: bool
    see: Callable[[Result], None]
    advance: Callable[[Tally], None]

    def take(self, result: Result, row: str, writer: ResultWriter, groups: SequenceRows | None = None) -> None:
        """Write a new row."""
        failed = _has_failed(result)
        _count(result, self.tally, self.fail_fast)
        self.see(result)
        if groups is not None and isinstance(result, Classification | Failure):
            groups.see(result)
        self._write(result.path, row, failed, writer)

    def keep(self, kept: KeptRow, writer: ResultWriter, groups: SequenceRows | None) -> None:
        """Write a row of an earlier run."""
        self.tally.kept += 1
        self.tally.failed += kept.failed
        self.tally.done += 1
        if groups is not None:
            groups.see_row(kept.row, is_csv=writer.is_csv)
        self._write(kept.path, kept.row, kept.failed, writer)

    def _write(self, path: str, row: str, failed: bool, writer: ResultWriter) -> None:
        writer.write_row(self.notes.add(path, row, is_csv=writer.is_csv, failed=failed))
        self.advance(self.tally)


def _open_sequences(
    output: Path,
    plan: SequencePlan | None,
    predictor: Predictor[Any],
    key: str,
    overwrite: bool,
    for_excel: bool,
) -> AbstractContextManager[SequenceRows | None]:
    fields = predictor.fields
    if plan is None or not isinstance(fields, ClassFields):
        return nullcontext()
    return open_sequences(output, plan, fields, key, predictor.boxes, overwrite=overwrite, for_excel=for_excel)


def _check_claim(claim: Claim, key: str, finished: str, has_list: bool, *, resume: bool, overwrite: bool) -> None:
    """Raise `OutputError` for outputs that this job has not made, before any prediction."""
    if claim.is_interrupted and not resume and not overwrite:
        raise OutputError(
            f"{claim.output}: a prediction into it was interrupted: resume it, or start again",
            options=["resume", "overwrite"],
        )
    if claim.is_interrupted and not overwrite and not _is_of(claim.ledger, key):
        raise OutputError(
            f"{claim.output}: the interrupted prediction into it used other models, votes or columns: finish that one, "
            "give another name, or start again",
            options=["overwrite"],
        )
    check_output(claim.output, overwrite=overwrite or claim.wrote(finished))
    if has_list:
        check_output(claim.failed_list, overwrite=overwrite or claim.wrote_failed_list())


def _is_of(ledger: Path, key: str) -> bool:
    """Whether a ledger has rows of a job with this key, or none."""
    with output_errors(ledger), open(ledger, "rb", opener=no_follow) as stream:
        return stream.readline() in (b"", _header(key))


def _count(result: Result, tally: Tally, fail_fast: bool) -> None:
    if isinstance(result, Failure) and _has_failed(result):
        tally.failed += 1
        if fail_fast:
            raise ImageReadError(result.path, result.error)
    tally.done += 1


def _has_failed(result: Result) -> bool:
    return isinstance(result, Failure) and not isinstance(result, NoBox)


def job_key(predictor: Predictor[Any], output: Path, written_as: str | None) -> str:
    """Return a hash of everything that a row depends on, besides its image."""
    ensemble = predictor.ensemble
    facts = {
        "models": [hash_file(session.path) for session in ensemble.sessions],
        "settings": ensemble.key,
        **({"bf16": bf16} if any(bf16 := [session.precision == "bf16" for session in ensemble.sessions]) else {}),
        **({"boxes": hash_file(predictor.boxes.file)} if written_as == "megadetector" and predictor.boxes else {}),
        "columns": [output.suffix.lower(), written_as or "", *build_columns(predictor.fields).types],
    }
    return hashlib.sha256(dump_json(facts).encode(errors="surrogateescape")).hexdigest()
