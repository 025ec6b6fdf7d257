"""Tables of scores as text: CSV with technical names for programs, or aligned columns in words for people."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl.commands.console import show, warn
from tl.runtime.metric_names import plain_name

if TYPE_CHECKING:
    from tl.evaluation.evaluate import Row
    from tl.runtime.results import Failure

# Shares of images, which people read in percent.
_SHARES = (
    *("top1_accuracy", "ci_low", "ci_high", "gain", "extent_error"),
    *("sequence_top1_accuracy", "sequence_ci_low", "sequence_ci_high"),
)


def csv_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a header. Floats have four decimals, missing values are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    # Numbers in the user's unit may be small; shares, pixels and seconds have four decimals.
    digits = ".6g" if "mae" in columns else ".4f"
    for row in rows:
        writer.writerow(_number(row[column], digits) for column in columns)
    return text.getvalue()


def readable_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Aligned columns, named in words. Columns without any value are left out."""
    has_errors = any(name in columns for name in ("error_px", "mae", "map"))
    is_share = {name: name in _SHARES and not has_errors for name in columns}
    is_share |= {"extent_error": True, "coverage_90": True}
    kept = [name for name in columns if any(row[name] not in (None, "") for row in rows)]
    cells = [[plain_name(name) for name in kept]]
    cells += [[_words(row[name], is_share[name]) for name in kept] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_text = [all(isinstance(row[name], str | None) for row in rows) for name in kept]
    lines = [
        "  ".join(c.ljust(w) if left else c.rjust(w) for c, w, left in zip(line, widths, is_text, strict=True)).rstrip()
        for line in cells
    ]
    return "".join(f"{line}\n" for line in lines)


def _number(value: object, digits: str) -> object:
    if value is None:
        return ""
    return format(value, digits) if isinstance(value, float) else value


def _words(value: object, is_share: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.1%}" if is_share else f"{value:.3g}"
    return str(value)


@dataclass(frozen=True)
class Evaluated:
    """Rows to print, and the keys that become columns. `has_report`: False if it could not be written."""

    split: str
    rows: list[Row]
    columns: tuple[str, ...]
    failures: list[Failure]
    has_report: bool = True


def write_evaluated(done: Evaluated, output: Path | None, *, as_json: bool) -> None:
    """Write the rows to `output` or stdout: JSON, CSV, or on a terminal a table in words."""
    if as_json:
        failures = [failure.as_dict() for failure in done.failures]
        text = json.dumps({"split": done.split, "rows": done.rows, "failures": failures}) + "\n"
    elif output is None and sys.stdout.isatty():
        text = readable_table(done.columns, done.rows)
    else:
        text = csv_table(done.columns, done.rows)
    if output is None:
        show(text.removesuffix("\n"))
    else:
        from tl.runtime.output.files import write_text

        write_text(output, text)
        warn(f"rows: {output}")
    for failure in done.failures:
        warn(f"could not be read: {failure.path}: {failure.error}")
