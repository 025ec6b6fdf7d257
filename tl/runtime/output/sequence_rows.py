"""Write the decisions on sequences beside the rows of their images, as these are predicted or kept.

A sequence is decided when the last of its images has its row, so that only unfinished sequences are in memory.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from tl.runtime.ensembles.sequences import SequenceResult, vote_sequence
from tl.runtime.ensembles.taxonomy import Taxonomy
from tl.runtime.ensembles.voting import Voting
from tl.runtime.imaging.regions import Box
from tl.runtime.output.claim import claim_output
from tl.runtime.output.columns import ColumnType, number, shortest
from tl.runtime.output.files import check_output
from tl.runtime.output.stored_rows import parse_row, read_result
from tl.runtime.output.writers import ResultWriter, open_writer
from tl.runtime.results import ClassFields, Classification, Failure, NoBox
from tl.runtime.sources.boxed_images import BoxList
from tl.runtime.sources.tables import csv_line

# Columns of a box: its sides, confidence and category.
_BOX_CELLS = 6
_FRAME = re.compile(r"(.+)#t=\d+\.\d{3}", re.DOTALL)


def file_of(path: str) -> str:
    """Return the file of an image: of a frame `film.mp4#t=12.000` its film, of any other image itself."""
    frame = _FRAME.fullmatch(path)
    return frame[1] if frame else path


@dataclass(frozen=True)
class SequencePlan(Mapping[str, str]):
    """Maps every image to its sequence, and says how sequences are decided. `of`: file -> sequence.

    A file that is not listed is a sequence of its own. `voting`, `min_confidence`, `taxonomy`: as in `vote_sequence`.
    """

    of: Mapping[str, str] = field(default_factory=dict)
    voting: Voting = "soft"
    min_confidence: float | None = None
    taxonomy: Taxonomy | None = None

    def __getitem__(self, path: str) -> str:
        """Return the sequence of an image or frame."""
        file = file_of(path)
        return self.of.get(file, file)

    def __iter__(self) -> Iterator[str]:
        return iter(self.of)

    def __len__(self) -> int:
        return len(self.of)


@dataclass(frozen=True)
class SequenceColumns:
    """Table of sequences.

    `sequence,label,confidence,p:<class>...,images[,boxes],rejected,failed,agreement[,reason][,rank,rank_label,
    rank_confidence],error`.
    """

    fields: ClassFields

    @property
    def types(self) -> dict[str, ColumnType]:
        """All columns in order, with their types."""
        types: dict[str, ColumnType] = {"sequence": "text", "label": "text", "confidence": "number"}
        types |= {f"p:{name}": "number" for name in self.fields.class_names}
        types["images"] = "count"
        if self.fields.boxes is not None:
            types["boxes"] = "count"
        types |= {"rejected": "count", "failed": "count", "agreement": "number"}
        if self.fields.with_reason:
            types["reason"] = "text"
        if self.fields.with_rank:
            types |= {"rank": "text", "rank_label": "text", "rank_confidence": "number"}
        return {**types, "error": "text"}

    def values(self, line: dict[str, Any]) -> list[Any]:
        """Return one value per column."""
        flat = line | {f"p:{name}": value for name, value in line.get("probabilities", {}).items()}
        return [flat.get(name) for name in self.types]

    def line(self, result: SequenceResult) -> str:
        """Return a CSV row with its line end."""
        if not result.label:
            cells = dict.fromkeys(self.types, "") | {"sequence": result.sequence}
            cells |= {name: str(count) for name, count in result.counts.items()}
            cells |= {"error": result.error} if result.error else {"reason": result.reason}
            return csv_line(cells.values())
        more: list[object] = [*result.counts.values(), number(result.agreement)]
        if self.fields.with_reason:
            more.append(result.reason)
        if self.fields.with_rank:
            ranked = result.ranked
            more += ["", "", ""] if ranked is None else [ranked.rank, ranked.name, number(ranked.confidence)]
        first = csv_line([result.sequence, result.label, shortest(np.float32(result.confidence))])
        return f"{first[:-1]},{shortest(result.probabilities)[1:-1]},{csv_line([*more, ''])}"


def sequence_path(output: Path) -> Path:
    """Return the file of sequences beside a file of images: `out.csv` -> `out.sequences.csv`."""
    return output.with_name(f"{output.stem}.sequences{output.suffix}")


class SequenceRows:
    """Collect the results of images in input order, and write each sequence when it is complete.

    An image that is given twice has one vote, or one for each of its `boxes`.
    """

    def __init__(
        self, plan: SequencePlan, fields: ClassFields, writer: ResultWriter, boxes: BoxList | None = None
    ) -> None:
        self._plan, self._fields, self._writer, self._boxes = plan, fields, writer, boxes
        self._missing = Counter(plan.of.values())  # files that have not ended yet
        self._open: dict[str, list[Classification | Failure]] = {}
        self._ended: set[str] = set()  # files; those of a finished sequence stay
        self._file, self._path = "", ""
        self._results_left = 0  # of the image `_path`
        self.count = 0

    def see(self, result: Classification | Failure) -> None:
        """Take the result of the next image."""
        file = file_of(result.path)
        if file != self._file:
            self._end_file()
            self._file, self._path = file, ""
        if result.path != self._path:
            self._path = result.path
            self._results_left = 1 if self._boxes is None else self._boxes.count([result.path])
        if file in self._ended or not self._results_left:
            return
        self._results_left -= 1
        self._open.setdefault(self._plan[file], []).append(result)

    def see_row(self, row: str, *, is_csv: bool) -> None:
        """Take the row of the next image from an earlier run."""
        self.see(_read_csv(row, self._fields) if is_csv else _read_json(row, self._fields))

    def close(self) -> None:
        """Write the sequences that are left."""
        self._end_file()
        for sequence in list(self._open):
            self._decide(sequence)

    def _end_file(self) -> None:
        file, sequence = self._file, self._plan[self._file]
        if not file or file in self._ended:
            return
        self._ended.add(file)
        self._missing[sequence] -= 1
        if self._missing[sequence] <= 0:
            self._decide(sequence)

    def _decide(self, sequence: str) -> None:
        plan = self._plan
        decided = vote_sequence(
            self._open.pop(sequence),
            plan.voting,
            sequence=sequence,
            min_confidence=plan.min_confidence,
            taxonomy=plan.taxonomy,
        )
        if self._fields.boxes is not None and decided.boxes is None:  # no image could be read
            decided = replace(decided, boxes=0)
        self._writer.write(decided)
        self.count += 1


@contextmanager
def open_sequences(
    output: Path,
    plan: SequencePlan,
    fields: ClassFields,
    key: str,
    boxes: BoxList | None = None,
    *,
    overwrite: bool,
    for_excel: bool,
) -> Iterator[SequenceRows]:
    """Write sequences beside `output`, in the same format and by the same rules. `boxes`: those of the images.

    Raises `OutputError`.
    """
    path = sequence_path(output)
    with claim_output(path) as claim:
        check_output(path, overwrite=overwrite or claim.wrote(key))
        columns = SequenceColumns(fields)
        with open_writer(path, fields, partial=claim.rows, for_excel=for_excel, columns=columns) as writer:
            rows = SequenceRows(plan, fields, writer, boxes)
            yield rows
            rows.close()
        claim.finish(key)


def _read_csv(row: str, fields: ClassFields) -> Classification | Failure:
    path, *cells = next(csv.reader(StringIO(row, newline="")))
    box = None
    if fields.boxes is not None:
        place, cells = cells[:_BOX_CELLS], cells[_BOX_CELLS:]
        box = _box([float(cell) for cell in place[:4]], fields) if place[0] else None
    if cells[-1]:
        return Failure(path, cells[-1], box)
    label, confidence, *cells = cells
    names = tuple(fields.class_names)
    reason = ""
    if fields.with_reason:
        reason = cells[len(names) + fields.with_set + fields.with_ood_score]
    if not label:
        return NoBox(path, reason)
    probabilities = np.array(cells[: len(names)], np.float64).astype(np.float32)
    return Classification(path, label, float(confidence), names, probabilities, reason=reason, box=box)


def _read_json(row: str, fields: ClassFields) -> Classification | Failure:
    result = read_result(parse_row(row), fields)
    if not isinstance(result, Classification | Failure):
        raise TypeError(f"expected the row of a classifier, got {type(result).__name__}")
    return result


def _box(xywh: Sequence[float], fields: ClassFields) -> Box:
    x, y, width, height = xywh
    return Box((x, y, width, height), is_relative=fields.boxes == "relative")
