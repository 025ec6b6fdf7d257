from __future__ import annotations

from pathlib import Path

import pytest

from tl.errors import ConfigError
from tl.exporter.adoption.labels import check_names, names_from_mapping, read_labels


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "ant\nbee\n"),
        ("names.txt", "\ufeffant \r\n  bee\r\n\r\n"),
        ("names.json", '["ant", "bee"]'),
        ("names.json", '{"1": "bee", "0": "ant"}'),
        ("names.json", '{"bee": 1, "ant": 0}'),
    ],
)
def test_read_labels__forms(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert read_labels(path) == ("ant", "bee")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("names.txt", b"ant\n\nbee\n", "line 2 is empty"),
        ("names.txt", b"", "line 1 is empty"),
        ("names.txt", b"\xff\xfe", "not UTF-8 text"),
        ("names.json", b"{", "not JSON"),
        ("names.json", b'"ant"', "expected a list of class names"),
        ("names.json", b'{"0": "ant", "2": "bee"}', "expected the ids 0 to 1, each once"),
        ("names.json", b'{"ant": 0, "bee": 0}', "expected the ids 0 to 1, each once"),
        ("names.json", b'["ant", 7]', "the name of class 1 is 7, expected a non-empty string"),
        ("names.json", b'["ant", " "]', "the name of class 1 is ' '"),
    ],
)
def test_read_labels__refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_labels(path)


def test_read_labels__no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.txt: No such file"):
        read_labels(tmp_path / "gone.txt")


def test_names_from_mapping__python_ids() -> None:
    assert names_from_mapping({1: "bee", 0: "ant"}, "here") == ("ant", "bee")


def test_check_names__repeated_ones_are_listed_with_the_cure() -> None:
    names = ("crane", "ant", "maillot", "crane", "maillot")
    with pytest.raises(ConfigError, match=r"'crane' is class 0 and 3; 'maillot' is class 2 and 4: rename all but one"):
        check_names(names, 5, "names.txt")


def test_check_names__their_number() -> None:
    check_names(("a", "b"), 2, "names.txt")
    with pytest.raises(ConfigError, match="2 class names, but the network has 3 outputs"):
        check_names(("a", "b"), 3, "names.txt")
