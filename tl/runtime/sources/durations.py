"""Read durations such as 30s, 0.5s, 10m and 2h."""

from __future__ import annotations

import re

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_seconds(text: str) -> float | None:
    """`500ms`, `90s`, `10m`, `1.5h` -> seconds; None for anything else."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h)", text.strip(), re.ASCII)
    return float(match[1]) * _SECONDS[match[2]] if match else None
