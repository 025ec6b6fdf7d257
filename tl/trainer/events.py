"""TensorBoard events of a run: the columns of `history.csv` by epoch.

Knows TensorBoard's writer. The only file that imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tl.trainer.loop import EpochRow

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class EventLog:
    """Appends epochs to a run's event file, opened at the first one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._written = 0

    def write(self, history: Sequence[EpochRow], *, final: bool) -> None:
        """Write the epochs not yet written; close after the final ones."""
        for row in history[self._written :]:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                # A resumed run may repeat epochs that an earlier file holds.
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
