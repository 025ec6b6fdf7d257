"""Names of classes, notes and windows: what is refused, and how the others are written."""

from __future__ import annotations

import pytest

from tl.annotation.page_requests import IMPORT, MAX_NOTE, START, Refused, check_class_name, check_note, check_window


def test_check_class_name__is_composed_with_single_spaces() -> None:
    assert check_class_name(" re\u0301sume\u0301  x ", []) == "r\u00e9sum\u00e9 x"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "1 to 100"),
        ("x" * 101, "1 to 100"),
        ("?", "cannot be"),
        ("a\0b", "cannot be"),
        ("a\u200bb", "cannot be"),
        ("a\ud83d", "cannot be"),
        ("ANT", "there is a class 'ant' already"),
        ("\uff41nt", "there is a class 'ant' already"),  # full width
        ("re\u0301", "there is a class 'r\u00e9' already"),
    ],
)
def test_check_class_name__refuses_what_training_refuses(name: str, told: str) -> None:
    with pytest.raises(Refused, match=told) as raised:
        check_class_name(name, ["ant", "r\u00e9"])
    raised.value.reason.encode()  # can be sent to a page


def test_check_note__keeps_lines() -> None:
    assert check_note(" a\n\tb \U0001f41c ") == "a\n\tb \U0001f41c"


@pytest.mark.parametrize("text", ["x" * (MAX_NOTE + 1), "a\0b", "half \ud83d"])
def test_check_note__refuses(text: str) -> None:
    with pytest.raises(Refused, match="at most 2,000 characters"):
        check_note(text)


@pytest.mark.parametrize("name", ["", "a" * 41, "a b", "\u00e9", IMPORT, START])
def test_check_window__refuses(name: str) -> None:
    assert check_window("k3-F_9") == "k3-F_9"
    with pytest.raises(Refused, match="the name of a window"):
        check_window(name)
