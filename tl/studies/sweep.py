"""The runs of a study, one after the other or several at once, each kept whatever becomes of the others.

Knows cells, processes and run folders. Does not compare runs (`leaderboard`) or choose among them (`selection`).
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tl.errors import RunInterrupted, TlError
from tl.runtime.devices import usable_cores
from tl.runtime.files import write_text
from tl.studies.study import Cell, Study
from tl.trainer.config import TrainConfig
from tl.trainer.progress import Progress, Silent
from tl.trainer.runs import Run

State = Literal["done", "failed", "open"]
_FAILURE = "failure.txt"


@dataclass(frozen=True)
class CellRun:
    """A cell and its folder. `error`: why it failed, in a line."""

    cell: Cell
    folder: Path

    @property
    def state(self) -> State:
        """Whether it is finished, has failed, or is still to be done."""
        if (self.folder / "metrics.json").is_file():
            return "done"
        return "failed" if self.failure_path.is_file() else "open"

    @property
    def failure_path(self) -> Path:
        """Beside the run's folder, which a failed run may not have."""
        return self.folder.with_name(f"{self.folder.name}.{_FAILURE}")

    @property
    def error(self) -> str:
        """The failure's last line, '' without one."""
        if self.state != "failed":
            return ""
        return self.failure_path.read_text(encoding="utf-8").strip().splitlines()[-1]

    def metrics(self) -> dict[str, Any]:
        """Of a finished run."""
        found: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))
        return found


def cell_runs(study: Study, out: str | Path) -> list[CellRun]:
    """Every cell with its folder under `out`."""
    return [CellRun(cell, Path(out) / "runs" / cell.name) for cell in study.cells]


def run_cells(
    runs: Sequence[CellRun],
    progress: Progress,
    *,
    jobs: int = 1,
    budget_s: float | None = None,
    retry_failed: bool = False,
) -> None:
    """Train what is not done yet; an interrupted run goes on where it was. `budget_s`: begin nothing after so long.

    A run that fails leaves its reason beside its folder, and the others go on. Each of `jobs` processes trains one run
    at a time with its share of the cores. Raises `RunInterrupted`.
    """
    todo = [run for run in runs if run.state == "open" or (retry_failed and run.state == "failed")]
    progress.start("runs", len(runs), "runs")
    progress.advance(len(runs) - len(todo))
    started = time.monotonic()
    threads = None if jobs == 1 else max(1, usable_cores() // jobs)
    try:
        for number, (run, seconds) in enumerate(_train_all(todo, jobs, threads, started, budget_s), start=1):
            left = (time.monotonic() - started) / number * (len(todo) - number)
            progress.advance(note=run.cell.setting)
            progress.say(f"{_outcome(run)} ({seconds:.0f} s; about {_shown(left)} left)")
    except (KeyboardInterrupt, RunInterrupted) as stop:  # here, or first in a run's own process
        raise RunInterrupted("interrupted; the same command goes on where this one stopped") from stop
    if unbegun := [run for run in todo if run.state == "open"]:
        progress.say(f"the time is up: {len(unbegun)} runs are not begun or not finished; the same command goes on")


def _train_all(
    todo: Sequence[CellRun], jobs: int, threads: int | None, started: float, budget_s: float | None
) -> Iterator[tuple[CellRun, float]]:
    """Finished and failed runs as they end, and how long each took."""
    waiting = list(reversed(todo))
    under_way: dict[Future[None], tuple[CellRun, float]] = {}
    pool = _open_pool(jobs)
    try:
        while waiting or under_way:
            while waiting and len(under_way) < jobs and (budget_s is None or time.monotonic() - started < budget_s):
                run = waiting.pop()
                run.failure_path.unlink(missing_ok=True)
                under_way[pool.submit(train_cell, run, threads)] = (run, time.monotonic())
            if not under_way:
                return
            ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
            if any(isinstance(future.exception(), BrokenProcessPool) for future in ended):
                pool.shutdown(wait=False)
                if len(under_way) > 1:  # nobody knows whose process was killed: each gets a chance alone
                    waiting += [run for run, _ in under_way.values()]
                    under_way, jobs = {}, 1
                    pool = _open_pool(jobs)
                    continue
                pool = _open_pool(jobs)
            for future in ended:
                run, begun = under_way.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    write_text(
                        run.failure_path, "its process was killed, by the system for want of memory or by hand\n"
                    )
                else:
                    future.result()
                yield run, time.monotonic() - begun
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _open_pool(jobs: int) -> ProcessPoolExecutor:
    # A fork would inherit torch's and onnxruntime's threads, which do not come along.
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


def train_cell(run: CellRun, threads: int | None) -> None:
    """Train one run, in a process that may have trained others; what goes wrong is written beside its folder.

    Raises `RunInterrupted` alone.
    """
    from tl.trainer.train import train

    run.folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        resumed = _resumable(run.folder)
        config = resumed.load_config() if resumed else _final(run.cell.config, run.folder, threads)
        train(config, Silent(), resume=resumed)
    except RunInterrupted:
        raise
    except TlError as error:
        write_text(run.failure_path, f"{error}\n")
    except Exception:  # a fault of one run is not to end a night's study
        write_text(run.failure_path, traceback.format_exc())


def _resumable(folder: Path) -> Run | None:
    """The run that was begun there, if any of it can be used; what cannot is removed."""
    if (folder / "last.pt").is_file() and (folder / "config.yaml").is_file():
        return Run(folder)
    if folder.is_dir():
        shutil.rmtree(folder)
    return None


def _final(config: TrainConfig, folder: Path, threads: int | None) -> TrainConfig:
    return replace(config, out=str(folder), threads=config.threads or threads)


def _outcome(run: CellRun) -> str:
    if run.state == "failed":
        return f"{run.cell.setting} seed {run.cell.seed}: failed, {run.error[:200]}"
    val = run.metrics()["val"]
    score = f"val error {val['error_px']:.2f} px" if "error_px" in val else f"val accuracy {val['top1_accuracy']:.4f}"
    return f"{run.cell.setting} seed {run.cell.seed}: {score}"


def _shown(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
