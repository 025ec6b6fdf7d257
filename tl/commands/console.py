"""Progress, summaries and warnings on stderr, and exit codes. stdout is reserved for data."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tl.errors import MissingExtraError, TlError
from tl.text import printable, time_in_words

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar
    from rich.progress import ProgressColumn, TaskID

_SECONDS_BETWEEN_LINES = 20.0
# Limits updates of the bar, each of which can cost more than a fast prediction.
_SECONDS_BETWEEN_STEPS = 0.05

EXIT_FAULT, EXIT_SOME_FAILED, EXIT_INTERRUPTED = 1, 3, 130


def warn(line: str) -> None:
    """Print a line on stderr."""
    print(printable(line), file=sys.stderr, flush=True)  # noqa: T201


def show(text: str) -> None:
    """Print a line of data on stdout. On a terminal, characters that control it become escapes."""
    print(printable(text) if sys.stdout.isatty() else text)  # noqa: T201


def show_json(value: object, *, indent: int | None = None) -> None:
    """Print a value as JSON on stdout, in which control characters are escapes."""
    print(json.dumps(value, indent=indent))  # noqa: T201


def show_table(rows: Iterable[Iterable[object]]) -> None:
    """Print rows as CSV on stdout."""
    from tl.runtime.sources.tables import csv_text

    show(csv_text(rows).removesuffix("\n"))


def device_name(provider: str) -> str:
    """`CPUExecutionProvider` -> `the CPU`."""
    from tl.runtime import providers

    return providers.device_name(provider)


def write_beside(write: Callable[[], Path]) -> bool:
    """Write a report beside the main output and print its path, or why there is none. Returns whether it was written.

    The main job has its result already, so an error does not end it.
    """
    try:
        warn(f"report: {write()}")
    except (TlError, OSError) as error:
        warn(f"no report: {error}")
        return False
    return True


@contextmanager
def packages_of(extra: Literal["train", "edit", "cli"]) -> Iterator[None]:
    """Wrap imports of an optional extra. Raises `MissingExtraError` if one fails."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"this command requires additional packages ({error.name} is missing): pip install 'tl-toolkit[{extra}]'"
        ) from error


class ConsoleProgress:
    """Progress with speed and remaining time on stderr: a bar on a terminal, otherwise a line from time to time."""

    def __init__(self, bar: RichBar | None) -> None:
        self._bar = bar
        self._task: TaskID | None = None
        self._name, self._unit, self._total, self._done = "", "", 0, 0
        self._started = self._spoken = time.monotonic()

    def start(self, task: str, total: int, unit: str) -> None:
        """Start a task of `total` steps."""
        self._name, self._unit, self._total, self._done = task, unit, total, 0
        self._started = self._spoken = time.monotonic()
        if self._bar is None:
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(task, total=total, unit=unit, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Record finished steps."""
        self._done += steps
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            if note or self._done >= self._total or now - self._spoken > _SECONDS_BETWEEN_STEPS:
                self._spoken = now
                self._bar.update(self._task, completed=self._done)
                if note:
                    self._bar.update(self._task, note=printable(note))
        elif now - self._spoken > _SECONDS_BETWEEN_LINES:
            self._spoken = now
            warn(self._line(note))

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            warn(line)
        else:
            self._bar.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def _line(self, note: str) -> str:
        speed = self._done / (time.monotonic() - self._started)
        left = time_in_words((self._total - self._done) / max(speed, 1e-9))
        state = f"{self._name}: {self._done}/{self._total} {self._unit}, {speed:.1f}/s, about {left} left"
        return f"{state}, {note}" if note else state


@contextmanager
def console_progress() -> Iterator[ConsoleProgress]:
    """Show progress for one command and silence Pillow's warnings: the same faults are also raised as errors."""
    warnings.filterwarnings("ignore", module="PIL")
    if not sys.stderr.isatty():
        yield ConsoleProgress(None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: tuple[ProgressColumn, ...] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        _speed_column(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield ConsoleProgress(bar)


def _speed_column() -> ProgressColumn:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class SpeedColumn(ProgressColumn):
        """Steps per second."""

        def render(self, task: Task) -> Text:
            """Return the speed, or an empty text until it is known."""
            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    return SpeedColumn()
