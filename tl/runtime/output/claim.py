"""The hidden folder of an output: a lock, the rows so far, and the ledger for --resume.

One process at a time writes an output. The lock is the operating system's, so that a dead process cannot keep it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tl.errors import OutputError
from tl.runtime.output.files import check_output, no_follow, output_errors


@dataclass(frozen=True)
class Claim:
    """The files beside `output` that belong to this process until it has finished."""

    output: Path

    @property
    def folder(self) -> Path:
        """The hidden folder."""
        return self.output.with_name(f".{self.output.name}.tl")

    @property
    def rows(self) -> Path:
        """The rows of an unfinished output."""
        return self.folder / "rows"

    @property
    def ledger(self) -> Path:
        """Finished rows by image."""
        return self.folder / "ledger"

    @property
    def failed_list(self) -> Path:
        """The list of failed images, for formats that have no rows for them."""
        return self.output.with_name(f"{self.output.name}.failed.csv")

    @property
    def is_interrupted(self) -> bool:
        """Whether an earlier process was stopped before the output was complete."""
        return self.rows.exists() and self.ledger.exists()

    def wrote(self, key: str) -> bool:
        """Whether the existing output is what a finished job of this key has written, unchanged."""
        try:
            with open(self._finished, "rb", opener=no_follow) as stream:
                found = json.load(stream)
                return isinstance(found, dict) and {**found, "failed_list": None} == self._facts(key)
        except (OSError, ValueError):
            return False

    def wrote_failed_list(self) -> bool:
        """Whether the existing list of failed images is what a finished job has written, unchanged."""
        try:
            with open(self._finished, "rb", opener=no_follow) as stream:
                return bool(json.load(stream)["failed_list"] == _stamp(self.failed_list))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def finish(self, key: str) -> None:
        """Record that the output is complete."""
        with output_errors(self._finished), open(self._finished, "w", encoding="utf-8", opener=no_follow) as stream:
            listed = _stamp(self.failed_list) if self.failed_list.is_file() else None
            json.dump(self._facts(key) | {"failed_list": listed}, stream)

    @property
    def _finished(self) -> Path:
        return self.folder / "finished.json"

    def _facts(self, key: str) -> dict[str, Any]:
        return {"key": key, **_stamp(self.output), "failed_list": None}


def _stamp(path: Path) -> dict[str, Any]:
    found = path.stat()
    return {"bytes": found.st_size, "modified_ns": found.st_mtime_ns}


@contextmanager
def claim_output(output: str | os.PathLike[str]) -> Iterator[Claim]:
    """Claim an output for this process. Raises `OutputError` if it cannot be written, or if another process writes it.

    An existing file is no error here: see `Claim.wrote` and `check_output`.
    """
    check_output(output, overwrite=True)
    claim = Claim(Path(output))
    if claim.folder.is_symlink():
        raise OutputError(f"{claim.folder}: is a symbolic link: remove it")
    with output_errors(claim.folder):
        claim.folder.mkdir(exist_ok=True)
        lock = claim.folder / "lock"
        try:
            with hold(lock, claim.folder / "holder.json", str(claim.output)):
                try:
                    yield claim
                finally:
                    if not claim.ledger.exists():  # refused before the first row: leave nothing behind
                        with suppress(OSError):
                            lock.unlink()
        finally:
            if not lock.exists():
                with suppress(OSError):
                    claim.folder.rmdir()


@contextmanager
def hold(lock: Path, holder: Path, what: str, *, leaves_lock: bool = True) -> Iterator[None]:
    """Be the only process that writes `what`. The lock is the operating system's and ends with the process.

    `holder`: file that describes this process to others meanwhile. Raises `OutputError` that names the holder.
    """
    from filelock import FileLock, Timeout

    locked = FileLock(lock, timeout=0)
    with output_errors(what):
        try:
            locked.acquire()
        except Timeout:
            raise OutputError(f"{what}: is being written by {_name_holder(holder)}: wait for it") from None
        try:
            with suppress(OSError), open(holder, "w", encoding="utf-8", opener=no_follow) as stream:
                json.dump(_describe_process(), stream)  # without it, the holder remains unnamed
            yield
        finally:
            with suppress(OSError):
                holder.unlink(missing_ok=True)
            if not leaves_lock:
                with suppress(OSError):
                    lock.unlink()
            locked.release()


def _describe_process() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().isoformat(" ", "seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200],
    }


def _name_holder(path: Path) -> str:
    """`process 123 on HOST since TIME (COMMAND)`."""
    try:
        with open(path, "rb", opener=no_follow) as stream:
            found = json.load(stream)
        return f"process {found['pid']} on {found['host']} since {found['since']} ({found['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
