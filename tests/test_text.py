from __future__ import annotations

import os

import pytest

from tl.commands.console import ConsoleProgress, show_json, show_table, warn
from tl.studies.report.page import Page, render
from tl.text import encodable, printable, time_in_words

HOSTILE = "beetle\x1b[31m\x07\r\x9b2J\u202egnp.exe"
SAFE = "beetle\\x1b[31m\\x07\\r\\x9b2J\\u202egnp.exe"


def test_printable__controls_become_escapes_and_letters_stay() -> None:
    assert printable(HOSTILE) == SAFE
    assert printable("Käfer 日本\tא\n") == "Käfer 日本\tא\n"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (45, "45 s"), (119, "119 s"), (725, "12 min"), (12600, "3.5 h")]
)
def test_time_in_words(seconds: float, words: str) -> None:
    assert time_in_words(seconds) == words


def test_encodable__replaces_bytes_that_are_not_utf8() -> None:
    assert encodable(os.fsdecode("Käfer-".encode() + b"\xff.jpg")) == "Käfer-\ufffd.jpg"


def test_warn__and_progress_show_no_controls(capsys: pytest.CaptureFixture[str]) -> None:
    warn(f"tl: {HOSTILE}")
    ConsoleProgress(None).say(HOSTILE)
    assert capsys.readouterr().err == f"tl: {SAFE}\n{SAFE}\n"


def test_render__pages_contain_no_controls() -> None:
    page = render(Page(HOSTILE, "", [(HOSTILE, HOSTILE)]))
    assert SAFE in page
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(page)


def test_show__terminals_get_no_controls_and_files_get_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show_table([("path",), (HOSTILE,)])
    assert capsys.readouterr().out == f'path\n"{HOSTILE}"\n'
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show_table([("path",), (HOSTILE,)])
    show_json({"path": HOSTILE})
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(capsys.readouterr().out)
