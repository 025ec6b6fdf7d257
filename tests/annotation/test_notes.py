"""Notes: what is refused."""

from __future__ import annotations

import pytest

from tl.annotation.notes import MAX_NOTE, check_note
from tl.annotation.refusals import Refused


def test_check_note__keeps_lines() -> None:
    assert check_note(" a\n\tb \U0001f41c ") == "a\n\tb \U0001f41c"


@pytest.mark.parametrize("text", ["x" * (MAX_NOTE + 1), "a\0b", "half \ud83d"])
def test_check_note__refuses(text: str) -> None:
    with pytest.raises(Refused, match="at most 2,000 characters"):
        check_note(text)
