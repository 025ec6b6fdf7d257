"""Write one shard of a prediction, and join all shards to the file that a single run would have written.

A shard is a file of JSON lines, which any format can be made from, and two files beside it: `.json` says what it is of,
`.npy` where its rows stand among those of all shards. A shard is finished when its `.json` fits it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import json
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from tl.errors import DataError
from tl.runtime.labeling.label_studio_tasks import TaskLinks
from tl.runtime.model_file.strict_json import parse_json
from tl.runtime.output.claim import Claim, claim_output
from tl.runtime.output.columns import ColumnType, build_columns
from tl.runtime.output.files import atomic_path, check_output, write_text
from tl.runtime.output.job import job_key
from tl.runtime.output.notes import NotedColumns, Notes, insert_cells
from tl.runtime.output.shard_checks import FIELDS, ShardFacts, StoredShard, check_shards
from tl.runtime.output.stored_rows import csv_row, parse_row
from tl.runtime.output.writers import GivenFormat, ResultWriter, lists_failures, open_writer
from tl.runtime.predictor import Predictor
from tl.runtime.sources.boxed_images import BoxList
from tl.runtime.sources.inputs import Inputs
from tl.runtime.sources.paths import hash_file
from tl.runtime.sources.shards import Listing, Shard

_VERSION = 1
_PIECE_BYTES = 1 << 18  # of a shard, in memory at a time


def shard_facts(predictor: Predictor[Any], output: Path, notes: Notes) -> ShardFacts:
    """Return the facts of a prediction into the file `output`."""
    sessions = predictor.ensemble.sessions
    names = [os.path.basename(str(session.path)) for session in sessions]
    models = {f"{i}:{name}": hash_file(sessions[i].path) for i, name in enumerate(names)}
    has_boxes = predictor.boxes is not None or predictor.ensemble.key.get("boxes") is not None
    return ShardFacts(models, job_key(predictor, output, None), predictor.fields, notes.types, has_boxes)


def finish_shard(
    output: Path, shard: Shard, facts: ShardFacts, inputs: Inputs, listing: Listing, boxes: BoxList | None
) -> None:
    """Record that the rows of a shard, of the images `inputs`, are complete. Raises `OutputError`, `DataError`."""
    counts = (1 if boxes is None else boxes.count([name]) for name in inputs.names())
    positions = array("Q")
    for position, count in zip(listing.positions, counts, strict=True):
        positions.extend([position] * count)
    rows, failed, digest = _survey(output)
    if rows != len(positions):
        raise DataError(
            f"{output}: has {rows} rows, but {len(positions)} were expected: an archive has changed meanwhile; "
            "predict this shard again"
        )
    with atomic_path(output.with_suffix(".npy")) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.frombuffer(positions, np.uint64))
    plain = {
        "tl_shard": _VERSION,
        "shard": shard.number,
        "of": shard.total,
        "rows": rows,
        "failed": failed,
        "list": {"images": listing.count, "digest": listing.digest},
        "models": facts.models,
        "key": facts.key,
        "notes": facts.notes,
        "boxes": facts.has_boxes,
        "task": facts.task,
        "fields": dataclasses.asdict(facts.fields),
        "sha256": digest,
    }
    write_text(output.with_suffix(".json"), json.dumps(plain, indent=1, ensure_ascii=False) + "\n")


def _survey(output: Path) -> tuple[int, int, str]:
    """Return the number of rows, of those with an error, and the SHA-256 of a shard."""
    rows = failed = 0
    digest = hashlib.sha256()
    with output.open("rb") as stream:
        for line in stream:
            digest.update(line)
            rows += 1
            failed += b'"error":' in line and "error" in parse_row(line.decode(errors="surrogateescape"))
    return rows, failed, digest.hexdigest()


def read_shards(folder: str | os.PathLike[str]) -> list[StoredShard]:
    """Return all shards in a folder, in order.

    Raises `DataError` that names every shard that is missing, doubled, unfinished, changed, or of another prediction.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of shards")
    problems: list[str] = []
    found: list[StoredShard] = []
    described = set()
    unfinished: set[int] = set()
    for path in sorted(root.glob("*.json")):
        try:
            stored = _read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if path.name.startswith("shard-"):
                problems.append(f"{path.name} cannot be read ({type(error).__name__}: {' '.join(str(error).split())})")
                described.add(path.stem)
            continue
        described.add(path.stem)
        found.append(stored)
        if fault := _fault(stored, path):
            problems.append(fault)
    for stem in sorted(_begun(root) - described):
        problems.append(f"{stem} is unfinished: resume it")
        unfinished.add(int(stem.split("-")[1]))
    check_shards(root, found, problems, unfinished)
    return sorted(found, key=lambda stored: stored.shard.number)


def _begun(root: Path) -> set[str]:
    """Names, without extension, of shards that have rows or were begun."""
    rows = {path.stem for path in root.glob("shard-*-of-*.jsonl")}
    rows |= {path.name[1:].removesuffix(".jsonl.tl") for path in root.glob(".shard-*-of-*.jsonl.tl")}
    return {stem for stem in rows if re.fullmatch(r"shard-\d+-of-\d+", stem)}


def _read(path: Path) -> StoredShard:
    """Raises OSError, ValueError, KeyError, TypeError for a file that does not describe a shard."""
    plain = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(plain, dict) or plain["tl_shard"] != _VERSION:
        raise ValueError("not written by this version of tl")
    what: Any = plain
    kind: type[Any] = FIELDS[what["task"]]
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in what["fields"].items()}
    if not set(what["notes"].values()) <= set(get_args(ColumnType)):
        raise ValueError("unknown types of columns")
    has_boxes = bool(what.get("boxes", values.get("boxes") is not None))  # older shards do not say so of landmarks
    facts = ShardFacts(dict(what["models"]), what["key"], kind(**values), dict(what["notes"]), has_boxes)
    shard = Shard(int(what["shard"]), int(what["of"]))
    listed = what["list"]
    return StoredShard(
        path.with_suffix(".jsonl"),
        shard,
        facts,
        what["rows"],
        what["failed"],
        listed["images"],
        listed["digest"],
        what["sha256"],
    )


def _fault(stored: StoredShard, path: Path) -> str:
    """Say what is wrong with the files of a shard, "" if nothing is."""
    name = stored.path.stem
    if Claim(stored.path).is_interrupted:
        return f"{name} is unfinished: resume it"
    if not stored.path.is_file() or not path.with_suffix(".npy").is_file():
        lacking = stored.path if not stored.path.is_file() else path.with_suffix(".npy")
        return f"{lacking.name} is missing beside {path.name}"
    if hash_file(stored.path) != stored.sha256:
        return f"{stored.path.name} has changed since it was finished: predict the shard again"
    try:
        has_places = len(_positions(stored)) == stored.rows
    except (OSError, ValueError):
        has_places = False
    return "" if has_places else f"{path.with_suffix('.npy').name} is damaged: resume the shard"


def join_shards(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    point_format: GivenFormat | None = None,
    links: TaskLinks | None = None,
    for_excel: bool = False,
    overwrite: bool = False,
    advance: Callable[[], None] = lambda: None,
    shards: list[StoredShard] | None = None,
) -> int:
    """Write the rows of all shards in a folder, in the order of a single run. Returns the number of failed rows.

    `shards`: those of `read_shards`, if they are known. Other arguments as in `run_job`. Memory is bounded by the
    places of rows, 8 bytes each. Raises `OutputError`, and as `read_shards`.
    """
    shards = read_shards(folder) if shards is None else shards
    facts = shards[0].facts
    columns = NotedColumns(build_columns(facts.fields), facts.notes)
    with claim_output(output) as claim:
        check_output(claim.output, overwrite=overwrite)
        if lists_failures(claim.output, point_format):
            check_output(claim.failed_list, overwrite=overwrite)
            claim.failed_list.unlink(missing_ok=True)
        opened = open_writer(
            *(claim.output, facts.fields, point_format, claim.rows, for_excel), columns=columns, links=links
        )
        with opened as writer:
            for _, row in heapq.merge(*map(_rows, shards), key=itemgetter(0)):
                writer.write_row(_as_written(row, facts, columns, writer))
                advance()
    return sum(stored.failed for stored in shards)


def iter_paths(shards: Iterable[StoredShard]) -> Iterator[str]:
    """Yield the path of each row, shard by shard."""
    for stored in shards:
        for _, row in _rows(stored):
            yield str(parse_row(row)["path"])


def _as_written(row: str, facts: ShardFacts, columns: NotedColumns, writer: ResultWriter) -> str:
    if not writer.is_csv:
        return row
    line = parse_row(row)
    text = csv_row(line, facts.fields, columns)
    if not facts.notes:
        return text
    return insert_cells(text, [line.get(name) for name in facts.notes], failed="error" in line)


def _rows(stored: StoredShard) -> Iterator[tuple[int, str]]:
    """Yield each row with its place among all. Keeps no file open meanwhile: there may be more shards than handles."""
    positions = iter(_positions(stored))
    offset = 0
    while True:
        with stored.path.open("rb") as stream:
            stream.seek(offset)
            lines = stream.readlines(_PIECE_BYTES)
            offset = stream.tell()
        if not lines:
            return
        for line in lines:
            yield int(next(positions)), line.decode(errors="surrogateescape")


def _positions(stored: StoredShard) -> NDArray[np.uint64]:
    found: NDArray[np.uint64] = np.load(stored.path.with_suffix(".npy"), allow_pickle=False)
    return found
