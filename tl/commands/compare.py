"""`tl compare`: compare finished runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tl.commands.console import packages_of, show_json, show_table, warn
from tl.errors import RunError


def command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Compare finished runs side by side: scores, cost, and the options that differ.

    Examples:
    - `tl compare runs/photos-finetune runs/quick`

    - `tl compare runs/*/ --json`

    Columns: run, same_data (same images, labels and splits as the first run), the validation and test scores with
    their 95% intervals, best_epoch, train_seconds, trained_parameters, then each option that differs between runs.
    """
    with packages_of("train"):
        from tl.studies.compare import compare_runs
        from tl.trainer.run_folder.run import Run

    finished = [run for run in runs if (run / "metrics.json").is_file()]
    for run in runs:
        if run not in finished:
            warn(f"left out: {run} has no metrics.json, so it is not a finished run")
    if not finished:
        raise RunError("none of these folders contains a finished run")
    rows = compare_runs([Run(run) for run in finished])
    if as_json:
        show_json(rows)
    else:
        cells = ([f"{value:.6g}" if isinstance(value, float) else value for value in row.values()] for row in rows)
        show_table([list(rows[0]), *cells])
    if "crop" in rows[0]:
        warn("the runs use different regions of the images (crop): their errors are not comparable")
    if not all(row["same_data"] for row in rows):
        warn("the runs do not all use the same data: their scores are not comparable")
