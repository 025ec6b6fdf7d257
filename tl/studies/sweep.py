"""Run all cells of a study in child processes that end with their parent; resumable, with one lock per folder.

Does not rank (`leaderboard`) or select (`selection`) runs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from tl.errors import DataError, RunError, RunInterrupted, TlError
from tl.progress import Progress, Silent
from tl.runtime.devices import usable_cores
from tl.runtime.metric_names import main_metric, plain_name
from tl.runtime.output.files import output_errors, write_text
from tl.studies.study import Cell
from tl.text import time_in_words
from tl.trainer.run_folder.run import Run

P = ParamSpec("P")
T = TypeVar("T")
# Ctrl-C also signals the process; a signal sent only to the parent is forwarded after the first wait.
_SECONDS_TO_STOP_BY_ITSELF, _SECONDS_TO_STOP = 5.0, 20.0


class Worker:
    """A process that runs one task at a time, so that a crash can be attributed to its task."""

    def __init__(self) -> None:
        self._open()

    def begin(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `work` in the process. The future raises `BrokenProcessPool` if the process is killed meanwhile."""
        try:
            self._work: Future[T] = self._pool.submit(work, *args, **kwargs)
        except BrokenProcessPool:  # it died while idle
            self._open()
            self._work = self._pool.submit(work, *args, **kwargs)
        return self._work

    def renew(self) -> None:
        """Continue in a new process."""
        self._pool.shutdown(wait=True)
        self._open()

    def stop(self) -> None:
        """End the process. Running work is interrupted as by Ctrl-C, and has some time to save its state."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        work = getattr(self, "_work", None)
        if work is not None and wait([work], timeout=_SECONDS_TO_STOP_BY_ITSELF).not_done:
            with suppress(OSError, BrokenProcessPool):
                os.kill(self._pid.result(timeout=1), signal.SIGINT)
            if wait([work], timeout=_SECONDS_TO_STOP).not_done:
                with suppress(OSError):
                    os.kill(self._pid.result(timeout=1), signal.SIGTERM)
        self._pool.shutdown(wait=True)

    def _open(self) -> None:
        # A fork would inherit the state of torch's and onnxruntime's threads, but not the threads
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent)
        self._pid: Future[int] = self._pool.submit(os.getpid)


def _end_with_parent() -> None:
    """Exit with the parent: an orphan would keep writing, unnoticed, to files that its successor resumes."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait_for([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True, name="tl-parent").start()


State = Literal["done", "failed", "open"]
_FAILURE = "failure.txt"
_KILLED = "its process was killed, by the system because memory ran out, or by the user\n"
# Options that determine a run's images and splits.
_DATA_OPTIONS = (
    *("data", "images", "split_column", "path_column", "label_column", "val_fraction", "per_class", "seed"),
    *("boxes", "min_box_confidence", "box_categories", "box_labels"),
)


@dataclass(frozen=True)
class CellRun:
    """A cell and its folder."""

    cell: Cell
    folder: Path

    @property
    def state(self) -> State:
        """Whether it has finished, has failed, or is still to do."""
        if (self.folder / "metrics.json").is_file():
            return "done"
        return "failed" if self.failure_path.is_file() else "open"

    @property
    def failure_path(self) -> Path:
        """Stored beside the run's folder, which a failed run may not have."""
        return self.folder.with_name(f"{self.folder.name}.{_FAILURE}")

    @property
    def error(self) -> str:
        """The last line of the failure, '' if there is none."""
        if self.state != "failed":
            return ""
        return self.failure_path.read_text(encoding="utf-8").strip().splitlines()[-1]

    def metrics(self) -> dict[str, Any]:
        """Metrics of a finished run."""
        found: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))
        return found


def cell_runs(cells: Sequence[Cell], out: str | Path) -> list[CellRun]:
    """Every cell with its folder under `out`."""
    return [CellRun(cell, Path(out) / "runs" / cell.name) for cell in cells]


@contextmanager
def hold(out: Path) -> Iterator[None]:
    """Lock a study's folder, created if missing. Raises `RunError`, `OutputError`."""
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / "sweep.lock").open("w")
    with lock:
        try:
            import fcntl
        except ImportError:  # Windows: no lock
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system releases it when the process ends
        except BlockingIOError as error:
            raise RunError(
                f"{out}: another tl sweep is running here; wait for it, or use another folder", options=["out=FOLDER"]
            ) from error
        yield


def check_same_data(runs: Sequence[CellRun]) -> None:
    """Raise `DataError` if finished runs that name the same data were trained on different images, labels or splits."""
    seen: dict[str, tuple[CellRun, str]] = {}
    for run in runs:
        if run.state != "done":
            continue
        named = json.dumps([getattr(run.cell.config, name) for name in _DATA_OPTIONS])
        own = Run(run.folder).data_hash()
        first, digest = seen.setdefault(named, (run, own))
        if own != digest:
            raise DataError(
                f"{run.cell.config.data}: has changed between runs of this study ({first.folder.name} and "
                f"{run.folder.name} differ), so their scores are not comparable; use another output folder, or delete "
                "the older runs",
                options=["out=FOLDER"],
            )


def run_cells(
    runs: Sequence[CellRun],
    progress: Progress,
    *,
    jobs: int = 1,
    ends: float | None = None,
    retry_failed: bool = False,
) -> None:
    """Train all open runs; an interrupted run is resumed. `ends`: time, in `time.monotonic` seconds, after which no run
    is started.

    A failed run leaves its error beside its folder, and the others continue. Each of `jobs` processes trains one run at
    a time with its share of the cores. Raises `RunInterrupted`.
    """
    todo = [run for run in runs if run.state == "open" or (retry_failed and run.state == "failed")]
    progress.start("runs", len(todo), "runs")  # counts open runs only; finished ones would distort the speed
    started = time.monotonic()
    try:
        for number, (run, seconds) in enumerate(_train_all(todo, jobs, ends), start=1):
            left = (time.monotonic() - started) / number * (len(todo) - number)
            progress.advance(note=run.cell.setting)
            progress.say(f"{_outcome(run)} ({seconds:.0f} s; about {time_in_words(left)} left for the runs)")
    except (KeyboardInterrupt, RunInterrupted) as stop:  # in this process, or first in a run's own process
        raise RunInterrupted("interrupted; run the same command again to resume") from stop
    if unbegun := [run for run in todo if run.state == "open"]:
        progress.say(
            f"the time budget is used up: {len(unbegun)} runs have not started or not finished; "
            "run the same command again to resume"
        )


def _train_all(todo: Sequence[CellRun], jobs: int, ends: float | None) -> Iterator[tuple[CellRun, float]]:
    """Finished and failed runs as they end, with the time each took."""
    waiting = list(reversed(todo))
    threads = None if jobs == 1 else max(1, usable_cores() // jobs)
    workers = [Worker() for _ in range(min(jobs, len(todo)))]
    free = list(workers)
    under_way: dict[Future[bool], tuple[Worker, CellRun, float]] = {}
    try:
        while waiting or under_way:
            while waiting and free and (ends is None or time.monotonic() < ends):
                worker, run = free.pop(), waiting.pop()
                run.failure_path.unlink(missing_ok=True)
                under_way[worker.begin(train_cell, run, threads)] = (worker, run, time.monotonic())
            if not under_way:
                return
            ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in ended:
                worker, run, begun = under_way.pop(future)
                if not _end(future, run):
                    worker.renew()
                free.append(worker)
                yield run, time.monotonic() - begun
    finally:
        for worker in workers:
            worker.stop()


def _end(future: Future[bool], run: CellRun) -> bool:
    """Whether the run's process can be reused. Raises `RunInterrupted`."""
    try:
        return future.result()
    except BrokenProcessPool:
        write_text(run.failure_path, _KILLED)
        return False


def train_cell(run: CellRun, threads: int | None) -> bool:
    """Train one run; errors are written beside its folder. Returns whether this process can be reused.

    Raises only `RunInterrupted`.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        _train(run, threads)
    except RunInterrupted:
        raise
    except TlError as error:
        write_text(run.failure_path, f"{error}\n")
    except Exception:  # an error in one run must not end a whole study; its effect on the GPU may persist
        write_text(run.failure_path, traceback.format_exc())
        return False
    return True


def _train(run: CellRun, threads: int | None) -> None:
    from tl.trainer.train import train

    if (run.folder / "last.pt").is_file() and (run.folder / "config.yaml").is_file():
        begun = Run(run.folder)
        try:
            train(begun.load_config(), Silent(), resume=begun)
            return
        except RunInterrupted:
            raise
        except RunError:  # damaged, from another version, or with data that have changed since
            pass
    if run.folder.is_dir():
        shutil.rmtree(run.folder)
    config = run.cell.config
    train(replace(config, out=str(run.folder), threads=config.threads or threads), Silent())


def _outcome(run: CellRun) -> str:
    if run.state == "failed":
        return f"{run.cell.setting} seed {run.cell.seed}: failed, {run.error[:200]}"
    val = run.metrics()["val"]
    name = main_metric(val)
    return f"{run.cell.setting} seed {run.cell.seed}: val {plain_name(name)} {val[name]:.4g}"
