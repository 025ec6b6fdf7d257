from __future__ import annotations

from pathlib import Path

import pytest

from tl.errors import DataError
from tl.runtime.landmarks.files import is_landmark_file, read_landmarks
from tl.runtime.sources.tables import decode_text, parse_table, read_table

ROWS = (("1.png", "Käfer"), ("2.png", "a,b"))


@pytest.mark.parametrize(
    "content",
    [
        'path,label\n1.png,Käfer\n2.png,"a,b"\n'.encode(),
        'path,label\r1.png,Käfer\r2.png,"a,b"\r'.encode(),  # line ends of old Macs
        "\ufeffpath;label\r\n1.png;Käfer\r\n2.png;a,b\r\n".encode(),  # Excel, where a comma is the decimal sign
        "sep=;\r\npath;label\r\n1.png;Käfer\r\n2.png;a,b\r\n".encode(),
        "sep=\t\r\npath\tlabel\r\n1.png\tKäfer\r\n2.png\ta,b\r\n".encode(),
        "path\tlabel\r\n1.png\tKäfer\r\n2.png\ta,b\r\n".encode("utf-16"),  # Excel's "Unicode text"
        'path,label\n1.png,Käfer\n2.png,"a,b"\n'.encode("utf-16"),
    ],
)
def test_read_table__as_programs_write_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    table = read_table(tmp_path / "t.csv")
    assert table.columns == ("path", "label")
    assert tuple(tuple(row.values()) for _, row in table.rows) == ROWS


def test_read_table__counts_lines_as_an_editor_does() -> None:
    assert [line for line, _ in parse_table('sep=;\npath;label\n\n"a\nb";x\nc;y\n', "t").rows] == [5, 6]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("path,label\n".encode("utf-16")[2:], "contains NUL bytes: save it as UTF-8"),
        (b"\xff\xfep\0\0\xd8", "damaged UTF-16"),
    ],
)
def test_decode_text__names_the_cure(content: bytes, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        decode_text(content, "t.csv")


def test_decode_text__keeps_the_bytes_of_file_names() -> None:
    assert decode_text(b"\xe4.png", "t") == "\udce4.png"


def test_parse_table__more_cells_than_columns() -> None:
    with pytest.raises(DataError, match=r"t\.csv row 2: has 3 cells for 2 columns: put quotes around"):
        parse_table("path,label\n1.png,red, green\n", "t.csv")
    assert parse_table("path,label\n1.png,red,,\n", "t.csv").rows == ((2, {"path": "1.png", "label": "red"}),)


def test_number__decimal_comma() -> None:
    assert parse_table("x;y\n1,5;2\n", "t").number("1,5") == 1.5
    with pytest.raises(ValueError, match="could not convert"):
        parse_table("x,y\n1,2\n", "t").number("1,5")  # could be a thousand and five hundred


@pytest.mark.parametrize(
    "text",
    [
        "path;x0;y0\na.png;1,5;2\n",
        "sep=;\nPath;x0;y0\na.png;1.5;2\n",
        "path;point;x;y\na.png;0;1,5;2\n",
        "scorer;me;me\nbodyparts;0;0\ncoords;x;y\na.png;1,5;2\n",
    ],
)
def test_read_landmarks__of_spreadsheets_with_decimal_commas(tmp_path: Path, text: str) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "points.csv").write_text(text, encoding=encoding)
        assert is_landmark_file(tmp_path / "points.csv")
        (image,) = read_landmarks(tmp_path / "points.csv").images
        assert (image.name, image.keypoints_xy.tolist()) == ("a.png", [[1.5, 2.0]])
