"""`tl sweep`: train a study of many runs from one file."""

from __future__ import annotations

import re
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl.commands.console import EXIT_SOME_FAILED, console_progress, packages_of, show, show_json, warn, write_beside
from tl.errors import ConfigError, DataError, TlError
from tl.text import time_in_words

if TYPE_CHECKING:
    from tl.studies.study import Cell, Study
    from tl.studies.sweep import CellRun


def command(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Study file.", show_default=False)],
    data: Annotated[str | None, typer.Option(help="Data to use instead of the study's own.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the study. Default: runs/NAME.")] = None,
    forced: Annotated[
        list[str] | None, typer.Option("--set", help="Set an option in every run, as in epochs=3. Repeatable.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of parallel runs; they share the cores.")] = 1,
    budget: Annotated[
        str | None, typer.Option(help="Start no further run after this time, such as 2h, 30m or 90s.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the runs without starting them.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Retry failed runs.")] = False,
    test: Annotated[
        bool, typer.Option("--test/--no-test", help="Evaluate the selected settings on the test split.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Use a folder that exists and is not that of this study.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the leaderboard as JSON.")] = False,
) -> None:
    """Train every combination of a study, select on validation data, and evaluate the selected settings on test data.

    Examples:
    - `tl sweep recipes/cartoons.yaml --data photos/ --dry-run`

    - `tl sweep study.yaml --jobs 2 --budget 8h`

    - `tl sweep recipes/optimizers.yaml --data photos/ --set backbone=mobilenet_v2 --set epochs=5`

    Run the same command again to resume after an interruption. Finished runs are kept; a run with changed options is a
    new run. Failed runs record their reason and do not stop the others (exit code 3). The study folder contains
    leaderboard.csv and .json, report.html, the runs, and models/ with the selected models. docs/how-to/studies.md
    describes the study file.
    """
    with packages_of("train"):
        from tl.studies.plan import parse_forced
        from tl.studies.study import read_study
        from tl.studies.study_files import check_study_folder, mark_study_folder
        from tl.studies.sweep import cell_runs, hold

    budget_s = None if budget is None else _seconds(budget)
    options = parse_forced(forced or []) | ({"data": data} if data else {})
    study = read_study(study_file, options)
    folder = out or Path("runs") / study.plan.name
    runs = cell_runs(study.cells, folder)
    for line in study.doubled:
        warn(f"duplicate setting skipped: {line}")
    if dry_run:
        _show_plan(study, runs, folder, test=test and study.plan.test)
        return
    check_study_folder(folder, study.plan.name, overwrite=overwrite)
    with hold(folder):
        mark_study_folder(folder, study.plan.name)
        ends = None if budget_s is None else time.monotonic() + budget_s
        _train(study, runs, folder, jobs=jobs, ends=ends, retry_failed=retry_failed)
        is_whole = _finish(study, runs, folder, test=test and study.plan.test, as_json=as_json)
    if not is_whole:
        raise typer.Exit(EXIT_SOME_FAILED)


def _train(
    study: Study, runs: list[CellRun], folder: Path, *, jobs: int, ends: float | None, retry_failed: bool
) -> None:
    """Train the runs, and those that a search adds, which are added to `runs`."""
    from tl.studies.sweep import cell_runs, run_cells

    while True:
        with console_progress() as progress:
            run_cells(runs, progress, jobs=jobs, ends=ends, retry_failed=retry_failed)
        following = _following(study, runs)
        if not following:
            return
        warn(f"{len(following)} runs of {len(runs)} continue for more epochs")
        runs += cell_runs(following, folder)


def _following(study: Study, runs: list[CellRun]) -> list[Cell]:
    """Return the runs that a search adds once all current runs have ended."""
    from tl.studies.leaderboard import build_settings, next_rung

    if study.plan.search is None or study.plan.search.factor is None or any(run.state == "open" for run in runs):
        return []
    return next_rung(build_settings(runs, study.task), study.plan.search, study.last_epochs)


def _finish(study: Study, runs: list[CellRun], folder: Path, *, test: bool, as_json: bool) -> bool:
    """Select settings, evaluate them, and write the results. Returns whether nothing failed."""
    from tl.studies.ensembles import judge_ensemble
    from tl.studies.leaderboard import best_of_variants, build_settings
    from tl.studies.report.sweep_page import Outcome, write_sweep_report
    from tl.studies.selection import judge_selected
    from tl.studies.study_files import leaderboard_rows, write_leaderboard
    from tl.studies.sweep import check_same_data

    check_same_data(runs)
    settings = build_settings(runs, study.task)
    failures = [run for run in runs if run.state == "failed"]
    for run in failures:
        warn(f"failed: {run.cell.setting} seed {run.cell.seed}: {run.error}")
    if not any(setting.done for setting in settings):
        raise DataError(f"{folder}: no run has finished")
    # An unfinished study has no selection yet and must not use test data.
    chosen = best_of_variants(settings, study.plan.apart) if all(run.state != "open" for run in runs) else []
    write_leaderboard(leaderboard_rows(study, settings, []), folder)
    with console_progress() as progress:
        judged, faults = judge_selected(chosen, study.task, folder, progress, test=test)
        together = None
        if study.plan.ensemble and len(judged) > 1:
            try:
                together = judge_ensemble(judged, study.task, folder, progress, test=test)
            except TlError as error:
                faults.append(str(error))
    for fault in faults:
        warn(f"not evaluated: {fault}")
    rows = leaderboard_rows(study, settings, judged)
    write_leaderboard(rows, folder)
    shown = Outcome(settings, judged, rows, test, together, faults)
    warn(f"leaderboard: {folder / 'leaderboard.csv'}")
    has_report = write_beside(lambda: write_sweep_report(study, shown, folder, shlex.join(["tl", *sys.argv[1:]])))
    if as_json:
        show_json(rows)
    else:
        show((folder / "leaderboard.csv").read_text(encoding="utf-8").removesuffix("\n"))
    return has_report and not failures and not faults


def _show_plan(study: Study, runs: list[CellRun], folder: Path, *, test: bool) -> None:
    for run in runs:
        show(f"{run.state}\t{run.cell.setting}\tseed {run.cell.seed}")
    left = [run for run in runs if run.state == "open"]
    warn(f"{study.plan.name}: {len(runs)} runs, {len(left)} to do")
    if left:
        _show_estimate(study, runs, folder, test=test)


def _show_estimate(study: Study, runs: list[CellRun], folder: Path, *, test: bool) -> None:
    """Print the estimated time, or why there is none; the plan is useful without it."""
    from tl.studies.estimate import estimate_after, estimate_seconds

    try:
        seconds, after = estimate_seconds(runs), estimate_after(study, runs, folder, test=test)
    except TlError as error:
        warn(f"no time estimate: {error}")
    else:
        what = "exporting and testing" if test else "exporting"
        total, own, later = map(time_in_words, (seconds + after.seconds, seconds, after.seconds))
        warn(
            f"about {total} in total on this machine: {own} for the runs and "
            f"{later} for {what} {after.models} selected models. Estimated from what has finished, "
            "else from one step of each network, scaled to all its epochs; decoding and augmentation add to it, early "
            "stopping reduces it"
        )


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if found is None:
        raise ConfigError(f"--budget: expected a time such as 2h, 30m or 90s, found '{text}'")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]
