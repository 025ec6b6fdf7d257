"""What a review makes of a data set: its rows with other labels, and what has changed, as a table and as a text.

Changes no file of the data.
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Literal

from tl.annotation.groups import Grouped, group_images
from tl.annotation.outputs import journal_path, relative_name
from tl.annotation.review_table import ReviewTable
from tl.data.manifests import LabeledImage
from tl.runtime.output.files import write_text
from tl.runtime.sources.tables import csv_text
from tl.text import printable

Do = Literal["keep", "relabel", "drop", "duplicate", "group"]
CHANGE_COLUMNS = (
    *("path", "change", "old_label", "new_label", "of", "kinds", "reason", "note"),
    *("old_split", "new_split", "new_group"),
)
# Change -> its heading, in the order in which the text lists them.
_HEADINGS = {
    "relabel": "Other labels",
    "duplicate": "Removed: duplicates of another image",
    "drop": "Removed",
    "group": "Put into one group, on one side of the split",
    "keep": "Looked at and kept as they are",
    "note": "Notes",
}


@dataclass(frozen=True)
class Decision:
    """What was decided about an image. `label`: the new one of `relabel`, "" otherwise. `of`: place of the image that
    it is a duplicate of, or shares a group with.
    """

    do: Do
    label: str = ""
    of: int | None = None

    @property
    def removes(self) -> bool:
        """Whether the image leaves the data."""
        return self.do in ("drop", "duplicate")


def find_lost(decisions: Mapping[int, Decision]) -> set[int]:
    """Return images removed as duplicates of which no copy is left: the other one is removed too, in whatever way."""
    return {place for place, made in decisions.items() if made.do == "duplicate" and not _is_left(made.of, decisions)}


def _is_left(place: int | None, decisions: Mapping[int, Decision]) -> bool:
    """Whether an image stays in the data, or one of which it was removed as a duplicate does."""
    passed: set[int] = set()
    while place is not None and place not in passed:
        if place not in decisions or not decisions[place].removes:
            return True
        passed.add(place)
        place = decisions[place].of
    return False


@dataclass(frozen=True)
class Remark:
    """Why an image was looked at: kinds of problems and their reasons; and what a person noted."""

    kinds: tuple[str, ...] = ()
    reason: str = ""
    note: str = ""


@dataclass(frozen=True)
class Change:
    """One line of the changes. Labels, splits and groups are those before and after.

    `path`, `of`: names within the data; `opens`, `of_opens`: paths that open these images.
    """

    path: str
    change: str
    old_label: str
    new_label: str = ""
    of: str = ""
    remark: Remark = Remark()
    old_split: str = ""
    new_split: str = ""
    new_group: str = ""
    opens: str = ""
    of_opens: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of `CHANGE_COLUMNS`, with names within the data."""
        remark = self.remark
        told = (";".join(remark.kinds), remark.reason, remark.note)
        first = (self.path, self.change, self.old_label, self.new_label, self.of)
        return (*first, *told, self.old_split, self.new_split, self.new_group)

    def beside(self, folder: Path) -> Change:
        """Return the change with paths relative to a folder instead of names."""
        of = relative_name(self.of_opens, folder) if self.of_opens else self.of
        return dataclasses.replace(self, path=relative_name(self.opens, folder), of=of)


@dataclass(frozen=True)
class ReviewedFiles:
    """The files that a review writes beside its output."""

    output: Path

    @property
    def all(self) -> tuple[Path, ...]:
        """All of them, with the output."""
        return self.output, self.changes, self.text, self.journal

    @property
    def changes(self) -> Path:
        """Every decision, one row an image."""
        return self.output.with_name(f"{self.output.stem}.changes.csv")

    @property
    def text(self) -> Path:
        """The same, to read."""
        return self.output.with_name(f"{self.output.stem}.changes.md")

    @property
    def journal(self) -> Path:
        """What people did, in order."""
        return journal_path(self.output)


@dataclass(frozen=True)
class Result:
    """What decisions and remarks, by place, make of a data set."""

    table: ReviewTable
    decisions: Mapping[int, Decision]
    remarks: Mapping[int, Remark] = field(default_factory=dict)

    @cached_property
    def _grouped(self) -> dict[int, Grouped]:
        return group_images(self.table.images, self.decisions)

    def write(self, files: ReviewedFiles) -> None:
        """Write the data set after the review, and its changes. Raises `OutputError`."""
        write_text(files.output, self.text(files.output))
        title = f"Changes of labels: {self.table.source.name} to {files.output.name}"
        write_changes(self.changes(), files, title)

    def changes(self) -> tuple[Change, ...]:
        """Return what was decided about each image, in the order of the images; also images that only have a note."""
        decisions, grouped, images = self.decisions, self._grouped, self.table.images
        noted = {place for place, remark in self.remarks.items() if remark.note}
        # An image may share its group with one that was decided about, without a decision of its own.
        partners = {made.of: place for place, made in decisions.items() if made.do == "group"}
        changes = []
        for place in sorted({*decisions, *noted, *grouped}):
            decision, now = decisions.get(place), grouped.get(place)
            other = decision.of if decision is not None else None if now is None else partners.get(place, now.of)
            of = None if other is None else images[other]
            changes.append(_change(images[place], decision, now, of, self.remarks.get(place, Remark())))
        return tuple(changes)

    def text(self, output: Path) -> str:
        """Return the data set as CSV, with all columns that it had and paths relative to the output."""
        table, grouped = self.table, self._grouped
        group = table.group or ("group" if grouped else "")
        header = (*table.columns, *((group,) if group and group not in table.columns else ()))
        folder = Path(os.path.abspath(output)).parent
        rows: list[Sequence[str]] = [header]
        for place, (image, cells) in enumerate(zip(table.images, table.rows, strict=True)):
            decision = self.decisions.get(place)
            if decision is not None and decision.removes:
                continue
            row = dict.fromkeys(header, "") | cells | {table.path: relative_name(image.path, folder)}
            if decision is not None and decision.label:
                row[table.label] = decision.label
            if place in grouped:
                row[group] = grouped[place].group
                if table.split and grouped[place].split != image.split:
                    row[table.split] = grouped[place].split
            rows.append([row[name] for name in header])
        return _separated(rows, table.separator)


def _change(
    image: LabeledImage, decision: Decision | None, grouped: Grouped | None, of: LabeledImage | None, remark: Remark
) -> Change:
    change = decision.do if decision is not None else "note" if grouped is None else "group"
    moved = grouped is not None and grouped.split != image.split
    return Change(
        image.name,
        change,
        image.label,
        "" if decision is None else decision.label,
        "" if of is None else of.name,
        remark,
        image.split if moved else "",
        grouped.split if grouped is not None and moved else "",
        "" if grouped is None else grouped.group,
        image.path,
        "" if of is None else of.path,
    )


def write_changes(changes: Sequence[Change], files: ReviewedFiles, title: str) -> None:
    """Write the changes as a table, whose paths are those of the output, and as a text. Raises `OutputError`."""
    folder = Path(os.path.abspath(files.changes)).parent
    write_text(files.changes, csv_text([CHANGE_COLUMNS, *(change.beside(folder).cells for change in changes)]))
    write_text(files.text, changes_text(changes, title))


def changes_text(changes: Sequence[Change], title: str) -> str:
    """Return the changes as Markdown, grouped by what was done, with counts before the images."""
    found = {do: [one for one in changes if one.change == do] for do in _HEADINGS}
    counts = [f"- {heading}: {len(found[do])}" for do, heading in _HEADINGS.items() if found[do]]
    parts = [f"# {printable(title)}", "\n".join(counts) or "Nothing has been decided yet."]
    for do, heading in _HEADINGS.items():
        if found[do]:
            parts += [f"## {heading} ({len(found[do])})", *_sections(do, found[do])]
    return "\n\n".join(parts) + "\n"


def _sections(do: str, changes: Sequence[Change]) -> Iterable[str]:
    if do != "relabel":
        yield "\n".join(map(_line, changes))
        return
    pairs: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        pairs.setdefault((change.old_label, change.new_label), []).append(change)
    for (old, new), members in sorted(pairs.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        yield f"### ~~{_code(old)}~~ → {_code(new)} ({len(members)})"
        yield "\n".join(map(_line, members))


def _line(change: Change) -> str:
    parts = [f"- {_code(change.path)}"]
    if change.change in ("drop", "keep", "note"):
        parts.append(f"({_code(change.old_label)})")
    if change.of:
        parts.append(f"{'with' if change.change == 'group' else 'of'} {_code(change.of)}")
    if change.new_split:
        parts.append(f"split ~~{_code(change.old_split)}~~ → {_code(change.new_split)}")
    text = " ".join(parts)
    text += f": {_plain(change.remark.reason)}" if change.remark.reason else ""
    return text + (f" Note: {_plain(change.remark.note)}" if change.remark.note else "")


def _code(text: str) -> str:
    """A code span, in which nothing is markup. Source: CommonMark 0.31, 6.1."""
    text = _one_line(text)
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"{fence}{text or ' '}{fence}"


def _plain(text: str) -> str:
    """Text in which nothing is markup. Source: CommonMark 0.31, 2.4: a backslash before punctuation."""
    return "".join(f"\\{sign}" if sign in r"\`*_[]<>&#|~" else sign for sign in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


def _separated(rows: Iterable[Sequence[str]], separator: str) -> str:
    """The rows as CSV with the separator of the data, whose numbers may have decimal commas."""
    if separator == ",":
        return csv_text(rows)
    lines = []
    for row in rows:
        line = StringIO()
        csv.writer(line, delimiter=separator, lineterminator="\r\n").writerow(row)
        lines.append(line.getvalue()[:-2] + "\n")
    return "".join(lines)
