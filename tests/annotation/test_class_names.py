"""Names of classes: what is refused, and how the others are written."""

from __future__ import annotations

import pytest

from tl.annotation.class_names import check_class_name
from tl.annotation.refusals import Refused


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
