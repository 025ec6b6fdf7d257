"""Tables of scores as text: CSV with technical names for programs, or aligned columns in words for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from tl.runtime.metric_names import plain_name

# Shares of images, which people read in percent.
_SHARES = ("top1_accuracy", "ci_low", "ci_high", "gain", "extent_error")


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
