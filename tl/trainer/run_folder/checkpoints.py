"""Training state on disk: `last.pt`, `history.csv`, `best.safetensors`, and TensorBoard events.

Contains no training.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tl.errors import RunError
from tl.runtime.output.files import atomic_path, output_errors
from tl.trainer.config import Log
from tl.trainer.fit.loop import EpochRow
from tl.trainer.run_folder.mlflow_log import MlflowLog
from tl.trainer.run_folder.network_card import RUN_VERSION, NetworkCard, rename_tensors
from tl.trainer.run_folder.run import Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class EventLog:
    """Appends epochs to a run's event file, opened at the first write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._written = 0

    def write(self, history: Sequence[EpochRow], *, final: bool) -> None:
        """Write the epochs not yet written; close the file after the final ones."""
        for row in history[self._written :]:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                # A resumed run may repeat epochs that an earlier file contains.
                self._writer = SummaryWriter(str(self._folder), purge_step=row.epoch)
            for name, value in row.columns().items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, row.epoch)
        self._written = len(history)
        if self._writer is not None:
            self._writer.flush()
            if final:
                self._writer.close()
                self._writer = None


_SECONDS_BETWEEN_SAVES = 2.0


def load_best(run: Run) -> tuple[dict[str, Tensor], NetworkCard]:
    """Read `best.safetensors`. Raises `RunError`."""
    card = run.load_card()
    try:
        return rename_tensors(load_file(run.best_path)), card
    except (SafetensorError, ValueError, OSError) as error:
        raise RunError(f"{run.best_path}: damaged, or made by another version of tl ({error})") from error


class RunCheckpoints:
    """Saves `last.pt`, `history.csv` and logs of a run; states in quick succession are not all written.

    `stage`: appended to both names for a second training in the same run, which is not logged.
    """

    def __init__(self, run: Run, log: Log | None = None, *, writes: bool = True, stage: str = "") -> None:
        self._run, self._writes = run, writes
        self._last_path = run.last_path.with_stem(run.last_path.stem + stage)
        self._history = f"history{stage}.csv"
        self._logs: list[EventLog | MlflowLog] = [] if stage else [EventLog(run.folder)]
        if log == "mlflow" and not stage:
            self._logs.append(MlflowLog(run.folder))
        self._saved_at = time.monotonic() - _SECONDS_BETWEEN_SAVES

    def load_last(self) -> dict[str, Any] | None:
        """The newest state, or None. Raises `RunError` if it is damaged or contains more than tensors."""
        path = self._last_path
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever zip and pickle raise
            raise RunError(f"{path}: cannot be resumed from ({' '.join(str(error).split())[:200]})") from error
        if not isinstance(state, dict) or state.get("run_version") != RUN_VERSION:
            raise RunError(f"{path}: made by another version of tl; train again, or use that version")
        for part in ("module", "average", "best"):
            if state.get(part):
                state[part] = rename_tensors(state[part])
        if self._writes and "history" in state:  # the process may have been killed before writing the history
            self._save_history([EpochRow(**row) for row in state["history"]])
        return state

    def save(self, state: dict[str, Any], history: list[EpochRow], *, final: bool) -> None:
        """Write the state if it is final or the last write was some seconds ago."""
        if not self._writes or (not final and time.monotonic() - self._saved_at < _SECONDS_BETWEEN_SAVES):
            return
        # Serialize to memory first: on a full disk torch raises RuntimeError, while a plain write reports the cause.
        buffer = io.BytesIO()
        torch.save({"run_version": RUN_VERSION, **state}, buffer)
        with atomic_path(self._last_path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
        self._save_history(history)
        with output_errors(self._run.folder):
            for log in self._logs:
                log.write(history, final=final)
        self._saved_at = time.monotonic()

    def _save_history(self, history: list[EpochRow]) -> None:
        self._run.save_table(self._history, [row.columns() for row in history])
