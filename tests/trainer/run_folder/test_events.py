from __future__ import annotations

import dataclasses
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.trainer.make import NOT_TIMED, make_row
from tl.trainer.fit.loop import EpochRow
from tl.trainer.run_folder.checkpoints import EventLog


def make_history(epochs: int) -> list[EpochRow]:
    return [
        make_row(e, (1.0 / e, 0.5), (2.0 / e, 0.25), lr=0.5 / e, val_macro_f1=0.5 / e, val_ece=0.125)
        for e in range(1, epochs + 1)
    ]


def read_scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(scalar.step, scalar.value) for scalar in events.Scalars(name)]


def test_event_log__each_column_by_epoch(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.write(make_history(1), final=False)
    log.write(make_history(4), final=True)  # two intermediate epochs were not written
    for name in NOT_TIMED[1:]:
        wanted = [(row.epoch, row.columns()[name]) for row in make_history(4)]
        # Event files contain float32.
        assert [(step, round(value, 6)) for step, value in read_scalars(tmp_path, name)] == [
            (step, round(value, 6)) for step, value in wanted
        ]


def test_event_log__readable_before_it_is_closed(tmp_path: Path) -> None:
    EventLog(tmp_path).write(make_history(2), final=False)
    assert [step for step, _ in read_scalars(tmp_path, "lr")] == [1, 2]


def test_event_log__nothing_to_say_makes_no_file(tmp_path: Path) -> None:
    EventLog(tmp_path).write([], final=True)
    assert list(tmp_path.iterdir()) == []


def test_event_log__a_resumed_run_repeats_no_epoch(tmp_path: Path) -> None:
    EventLog(tmp_path).write(make_history(2), final=False)
    changed = [dataclasses.replace(row, figures={**row.figures, "val_loss": 9.0}) for row in make_history(3)]
    EventLog(tmp_path).write(changed, final=True)
    assert read_scalars(tmp_path, "val_loss") == [(1, 9.0), (2, 9.0), (3, 9.0)]
