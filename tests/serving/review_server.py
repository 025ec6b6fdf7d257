"""The page of `tl review` as a process of its own, and what looks at it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.serving.page_steps import Step
from tests.serving.web_driver import Driven, drive


@contextmanager
def serving(data: Path, output: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a process, and the link that opens its page once."""
    command = [sys.executable, "-m", "tl", "review", str(data), "-o", str(output), "--json", "--no-browser"]
    command += ["--backbone", "smallcnn", "--device", "cpu", "--threads", "1", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()
        yield process, json.loads(line)["link"]
    finally:
        process.kill()
        process.communicate()


def stop(process: subprocess.Popen[str]) -> str:
    """Stop it in order; returns what it said."""
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    return told


def look(
    npm: Path, link: str, steps: Sequence[Step], tmp_path: Path, *, ready: str = "#overview h2", **job: Any
) -> Driven:
    """Drive the page; all that it asks for must be of its server."""
    driven = drive(npm, link, steps, tmp_path, script="drive_images.mjs", ready=ready, **job)
    assert all(url.startswith((link.partition("?")[0], "blob:", "data:")) for url in driven.requests)
    return driven
