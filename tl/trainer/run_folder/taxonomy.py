"""The taxonomy of a run: read when training begins, kept in `taxonomy.csv`, and used again by the export."""

from __future__ import annotations

from collections.abc import Sequence

from tl.runtime.ensembles.taxonomy import Taxonomy, read_taxonomy
from tl.runtime.output.files import write_text
from tl.runtime.sources.tables import csv_text
from tl.trainer.run_folder.run import Run

_FILE = "taxonomy.csv"


def save_taxonomy(run: Run, taxonomy: Taxonomy, class_names: Sequence[str]) -> None:
    """Write `taxonomy.csv`: each class with its groups, the most special rank first."""
    rows = zip(class_names, *taxonomy.groups, strict=True)
    write_text(run.folder / _FILE, csv_text([taxonomy.ranks, *rows]))


def load_taxonomy(run: Run, class_names: Sequence[str]) -> Taxonomy | None:
    """Return the taxonomy that a run was trained with, None if there was none. Raises `DataError`."""
    path = run.folder / _FILE
    return read_taxonomy(path, class_names) if path.is_file() else None
