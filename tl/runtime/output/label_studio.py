"""Write classifications as tasks for Label Studio."""

from __future__ import annotations

import json
from pathlib import Path

from tl.runtime.labeling.label_studio_tasks import TaskLinks, class_task, dump_tasks
from tl.runtime.output.files import atomic_path, write_text
from tl.runtime.sources.tables import csv_text


def write_class_tasks(lines: Path, final: Path, links: TaskLinks) -> None:
    """Write one task per row of `lines`; failed rows go to `NAME.failed.csv` beside it.

    Raises `OutputError`, and `DataError` for an image that is not below the root of the links.
    """
    with lines.open(encoding="utf-8", errors="surrogateescape") as stream:
        rows = [json.loads(line) for line in stream]
    tasks = [class_task(row, links) for row in rows if "error" not in row]
    with atomic_path(final) as temporary:
        temporary.write_bytes(dump_tasks(tasks))
    failed = [(row["path"], row["error"]) for row in rows if "error" in row]
    if failed:
        write_text(f"{final}.failed.csv", csv_text([("path", "error"), *failed]))
