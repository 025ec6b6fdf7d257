"""Make a model from the labels so far, in the background: one at a time, with progress, and a way to cancel it."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from tl.annotation.model_making import MadeModel, Method
from tl.annotation.page_requests import Refused
from tl.errors import TlError
from tl.progress import Progress

State = Literal["idle", "running", "done", "failed"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", re.ASCII)
_SECONDS_TO_END = 10.0
# The name of the thread, which may outlive a session.
THREAD = "tl-model"
_log = logging.getLogger(__name__)


class MakeModel(Protocol):
    """Makes a model file of labels, as `model_making.make_model`. Raises `TlError`, and what `progress` raises."""

    def __call__(
        self, labels: Path, model: Path, *, run: Path, making: Path, method: Method, progress: Progress
    ) -> MadeModel:
        """Write the model file `model`, and the run folder `run`, which is the folder `making` until it is complete."""


@dataclass(frozen=True)
class ModelState:
    """What the page shows. `text`: progress, or why it failed. `run`, `file`: what was made, "" before that."""

    state: State = "idle"
    text: str = ""
    run: str = ""
    file: str = ""


def making_path(output: Path) -> Path:
    """Return where a session has the run in the making: `labels.csv` -> `.labels.csv.making`."""
    return output.with_name(f".{output.name}.making")


class _Canceled(BaseException):
    """Ends the work from within its progress; no handler of other errors takes it for one of them."""


class ModelJob:
    """Makes models beside the output of a session. Thread-safe. `told` is called when `state` has changed."""

    def __init__(self, output: Path, make: MakeModel, told: Callable[[], None]) -> None:
        self._output, self._make, self._told = output, make, told
        self.state = ModelState()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, method: Method, name: str, write_labels: Callable[[], str]) -> None:
        """Begin. `name`: of the run folder and, with .onnx, of the model file. Raises `Refused`, `OutputError`.

        `write_labels` writes the labels, and returns what it has left out, "" for nothing.
        """
        if not _NAME.fullmatch(name) or name.endswith("."):
            raise Refused("invalid", "a name has 1 to 80 letters, digits, points, hyphens and underscores")
        run, model = self._output.with_name(name), self._output.with_name(f"{name}.onnx")
        with self._lock:
            if self.state.state == "running":
                raise Refused("conflict", "a model is being made: wait for it, or cancel it")
            if taken := next((path for path in (run, model) if path.exists()), None):
                raise Refused("conflict", f"{taken.name} exists in {taken.parent.absolute()}: give another name")
            left_out = write_labels()
            self._stop.clear()
            self.state = ModelState("running", "starting")
            self._thread = threading.Thread(
                target=self._work, args=(method, run, model, left_out), name=THREAD, daemon=True
            )
            self._thread.start()
        self._told()

    def cancel(self) -> None:
        """End the work at its next step. Raises `Refused` if there is none."""
        if self.state.state != "running":
            raise Refused("conflict", "no model is being made")
        self._stop.set()

    def close(self) -> None:
        """End the work, and wait a while until it has ended; a long step of training ends with the process."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_SECONDS_TO_END)

    def _work(self, method: Method, run: Path, model: Path, left_out: str) -> None:
        try:
            making = making_path(self._output)
            told = _Told(self, making, run)
            made = self._make(self._output, model, run=run, making=making, method=method, progress=told)
            self._set(ModelState("done", _result_text(made, left_out), str(made.run or ""), str(made.model)))
        except _Canceled:
            self._set(ModelState("idle", "canceled"))
        except TlError as error:
            self._set(ModelState("failed", str(error)))
        except ImportError as error:
            missing = f"{error.name} is missing: pip install 'tl-toolkit[train]'"
            self._set(ModelState("failed", f"models cannot be made here: {missing}"))
        except Exception:
            _log.exception("a fault of this program while a model was made")
            self._set(ModelState("failed", "a fault of this program: the terminal says more"))

    def say(self, text: str) -> None:
        """Show progress. Ends the work if it was canceled."""
        if self._stop.is_set():
            raise _Canceled
        if text != self.state.text:
            self._set(replace(self.state, text=text))

    def _set(self, state: ModelState) -> None:
        self.state = state
        self._told()


class _Told:
    """Progress as a text for the page, with the name that the run will have."""

    def __init__(self, job: ModelJob, making: Path, run: Path) -> None:
        self._job, self._making, self._run = job, making, run
        self._task, self._unit, self._total, self._done = "", "", 0, 0

    def start(self, task: str, total: int, unit: str) -> None:
        """A task of `total` steps begins."""
        self._task, self._total, self._unit, self._done = task, total, unit, 0
        self._job.say(task)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Steps are done."""
        self._done += steps
        text = f"{self._task}: {self._done} of {self._total} {self._unit}"
        self._job.say(f"{text}, {note}" if note else text)

    def say(self, line: str) -> None:
        """A line worth showing."""
        self._job.say(line.replace(str(self._making), str(self._run)))


def _result_text(made: MadeModel, left_out: str) -> str:
    """What was made, how good it is, and which labeled images are not in it."""
    scores = made.metrics["val"]
    accuracy = f"{scores['top1_accuracy']:.1%} ({scores['ci_low']:.1%} to {scores['ci_high']:.1%})"
    images = f"{scores['n']} random images" if made.is_random else f"all {scores['n']} labeled images, chosen ones too"
    text = f"{made.model.name}: accuracy {accuracy} on {images}"
    return f"{text}. {left_out}" if left_out else text
