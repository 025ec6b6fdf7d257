"""Files of an output: set aside under names of their own, and written by a thread."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from tests.full_disk import largest_file
from tl.annotation.outputs import Writer, copy_aside, journal_path, may_be_edited, modified, set_aside
from tl.errors import OutputError
from tl.runtime.output.files import write_text


def test_set_aside__all_files_get_one_number_that_none_has(tmp_path: Path) -> None:
    output, said = tmp_path / "my.labels.csv", list[str]()
    notes = tmp_path / "my.labels.notes.csv"
    for path in (output, journal_path(output), tmp_path / "my.labels.1.notes.csv"):
        path.write_text(path.name)
    set_aside([output, journal_path(output), notes], said.append)
    assert said == [
        "my.labels.csv is now my.labels.2.csv",
        "my.labels.journal.jsonl is now my.labels.2.journal.jsonl",
    ]
    aside = tmp_path / "my.labels.2.csv"
    assert journal_path(aside).read_text() == "my.labels.journal.jsonl"  # a session that can go on
    assert not output.exists()
    assert copy_aside(aside) == tmp_path / "my.labels.2.1.csv"


def test_may_be_edited__only_what_is_much_newer_than_the_journal(tmp_path: Path) -> None:
    output = tmp_path / "labels.csv"
    assert not may_be_edited(output, 0)
    output.touch()
    os.utime(output, (1000, 1000))
    assert [may_be_edited(output, at) for at in (1000, 998, 990)] == [False, False, True]
    assert not may_be_edited(output, modified(tmp_path / "none"))


def test_writer__writes_actions_together_and_at_the_end(tmp_path: Path) -> None:
    taken: list[float] = []

    def write() -> None:
        taken.append(time.monotonic())
        write_text(tmp_path / "labels.csv", str(len(taken)))

    writer = Writer(write, lambda: None)
    began = time.monotonic()
    while not taken and time.monotonic() - began < 30:
        writer.wake()
        time.sleep(0.01)
    assert len(taken) == 1
    assert began + 0.3 < taken[0]
    count = len(taken)
    writer.wake()
    writer.close()
    assert len(taken) > count
    assert (tmp_path / "labels.csv").exists()


def test_writer__tells_what_it_cannot_write_and_tries_again(tmp_path: Path) -> None:
    told = threading.Event()
    writer = Writer(lambda: write_text(tmp_path / "labels.csv", "path,label,split"), told.set)
    with largest_file(10):
        writer.wake()
        assert told.wait(30)
        assert "labels.csv: cannot be written" in writer.fault
        with pytest.raises(OutputError, match="cannot be written"):
            writer.write_now()
    told.clear()
    assert told.wait(30)  # without being asked
    assert writer.fault == ""
    writer.close()
    assert list(tmp_path.glob(".*partial")) == []


def test_writer__outlives_a_fault_of_the_program(caplog: pytest.LogCaptureFixture) -> None:
    faults, told = [ValueError("lone surrogate")], threading.Event()
    written: list[int] = []

    def write() -> None:
        if faults:
            raise faults[0]
        written.append(1)

    writer = Writer(write, told.set)
    writer.wake()
    assert told.wait(30)
    assert writer.fault.endswith("the journal has everything: lone surrogate")
    assert "a fault of this program while writing" in caplog.text
    faults.clear()
    writer.close()
    assert written == [1]
    Writer(write, told.set).close()  # nothing to write
    assert written == [1]
