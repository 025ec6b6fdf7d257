from __future__ import annotations

import csv
import json
import os
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models import make_model, solid
from tl.errors import OutputError
from tl.runtime import Classification, Failure, MemberVotes, load
from tl.runtime.output.columns import ClassColumns, join_set
from tl.runtime.output.writers import CsvWriter, JsonLinesWriter, open_writer
from tl.runtime.results import ClassFields

CLASSES = ("ant", "bee, wild")
PLAIN = Classification("a.jpg", "ant", 0.75, CLASSES, np.array([0.75, 0.25], np.float32))
FAILED = Failure("b.jpg", "empty file")
VOTED = Classification(
    "c.jpg",
    "ant",
    2 / 3,
    CLASSES,
    np.array([2 / 3, 1 / 3], np.float32),
    MemberVotes(("ant", "bee, wild"), np.array([[1, 0], [0.25, 0.75]], np.float32), 0.5, 0.636514, 0.25, 0.125),
)


def csv_rows(text: str) -> list[list[str]]:
    rows = list(csv.reader(StringIO(text)))
    assert len({len(row) for row in rows}) == 1
    return rows


def test_csv_writer__single_model() -> None:
    stream = StringIO()
    writer = CsvWriter(stream, ClassColumns(CLASSES))
    for result in PLAIN, FAILED:
        writer.write(result)
    assert stream.getvalue() == (
        'path,label,confidence,p:ant,"p:bee, wild",error\na.jpg,ant,0.75,0.75,0.25,\nb.jpg,,,,,empty file\n'
    )


def test_csv_writer__ensemble() -> None:
    stream = StringIO()
    writer = CsvWriter(stream, ClassColumns(CLASSES, ["m1", "m2"]))
    for result in VOTED, FAILED:
        writer.write(result)
    header, voted, failed = csv_rows(stream.getvalue())
    assert header == [
        *("path", "label", "confidence", "p:ant", "p:bee, wild"),
        *("agreement", "entropy", "mutual_information", "margin", "vote:m1", "vote:m2", "error"),
    ]
    assert voted == [
        *("c.jpg", "ant", "0.6666667", "0.6666667", "0.33333334"),  # all digits of a float32
        *("0.5", "0.636514", "0.25", "0.125", "ant", "bee, wild", ""),
    ]
    assert failed == ["b.jpg", *[""] * 10, "empty file"]


def test_csv_writer__awkward_texts_survive() -> None:
    name, reason = 'a "b",\nc.jpg', 'said "no", twice'
    stream = StringIO()
    CsvWriter(stream, ClassColumns(CLASSES)).write(Failure(name, reason))
    assert csv_rows(stream.getvalue())[1] == [name, "", "", "", "", reason]


def test_json_lines_writer__one_object_a_line() -> None:
    stream = StringIO()
    writer = JsonLinesWriter(stream)
    for result in PLAIN, FAILED, VOTED:
        writer.write(result)
    plain, failed, voted = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert plain == {
        "path": "a.jpg",
        "label": "ant",
        "confidence": 0.75,
        "probabilities": {"ant": 0.75, "bee, wild": 0.25},
    }
    assert failed == {"path": "b.jpg", "error": "empty file"}
    assert voted["votes"] == ["ant", "bee, wild"]
    assert (voted["agreement"], voted["entropy"]) == (0.5, 0.636514)


@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".jsonl"])
def test_open_writer__file_appears_when_all_is_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    with open_writer(path, ClassColumns(CLASSES)) as writer:
        writer.write(PLAIN)
        assert not path.exists()
    assert os.listdir(tmp_path) == [path.name]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == (1 if suffix == ".jsonl" else 2)


def test_open_writer__half_written_results_stand_under_another_name(tmp_path: Path) -> None:
    def interrupted() -> None:
        with open_writer(tmp_path / "out.csv", ClassColumns(CLASSES)) as writer:
            writer.write(PLAIN)
            raise KeyboardInterrupt

    (tmp_path / "out.csv").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "out.csv").read_text() == "old"
    assert len((tmp_path / "out.csv.partial").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["out.txt", "out", "out.json", ".csv"])
def test_open_writer__other_names_are_refused(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(OutputError, match=r"ends in \.csv, \.jsonl, \.xlsx or \.parquet"),
        open_writer(tmp_path / name, ClassColumns(CLASSES)),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_open_writer__no_place_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match="cannot be written"),
        open_writer(tmp_path / "file" / "out.csv", ClassColumns(CLASSES)),
    ):
        pass


def test_open_writer__stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with open_writer(None, ClassColumns(CLASSES)) as writer:
        writer.write(PLAIN)
    assert capsys.readouterr().out == 'path,label,confidence,p:ant,"p:bee, wild",error\na.jpg,ant,0.75,0.75,0.25,\n'


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_open_writer__unicode_and_file_names_that_are_no_unicode(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    odd = os.fsdecode(b"k\xe4fer.jpg")  # Latin-1, as left by old cameras and archives on Linux
    with open_writer(path, ClassColumns(CLASSES)) as writer:
        writer.write(Failure("Käfer.jpg", "empty file"))
        writer.write(Failure(odd, "empty file"))
    written = path.read_bytes().splitlines()
    assert "Käfer.jpg".encode() in written[-2]
    assert b"fer.jpg" in written[-1]


def test_open_writer__results_of_a_predictor(tmp_path: Path) -> None:
    models = [make_model(tmp_path / "a.onnx"), make_model(tmp_path / "b.onnx", ("blue", "green", "red"))]
    with (
        load(models, device="cpu", threads=1) as model,
        open_writer(tmp_path / "out.csv", model.fields) as writer,
    ):
        for result in model.predict_iter([solid((200, 0, 0)), b"", solid((0, 0, 200))]):
            writer.write(result)
    rows = list(csv.DictReader(StringIO((tmp_path / "out.csv").read_text(encoding="utf-8"))))
    assert [row["label"] for row in rows] == ["red", "", "blue"]
    assert [row["error"] for row in rows] == ["", "empty file", ""]
    assert [row["vote:b"] for row in rows] == ["red", "", "blue"]
    good = rows[0]
    assert abs(sum(float(good[f"p:{name}"]) for name in model.class_names) - 1) < 5e-6  # of float32


def test_as_dict__is_plain() -> None:
    def check(value: Any) -> None:
        assert type(value) in (str, float, list, dict)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(item)

    for result in PLAIN, FAILED, VOTED:
        check(result.as_dict())


def test_csv_writer__quotes_a_lone_carriage_return() -> None:
    stream = StringIO(newline="")
    writer = CsvWriter(stream, ClassColumns(CLASSES))
    writer.write(Failure("a\r.jpg", "line\rend"))
    stream.seek(0)
    assert list(csv.reader(stream))[1] == ["a\r.jpg", "", "", "", "", "line\rend"]


def test_join_set__names_that_contain_the_mark() -> None:
    assert join_set(["a", "b"]) == "a|b"
    assert join_set(["a|b"]) == r"a\|b"
    assert join_set(["a\\", "b"]) == r"a\\|b"  # not the same as of the name "a|b"


RISKY = Classification("=1+1.jpg", "@home", 0.75, ("@home", "-b"), np.array([0.75, 0.25], np.float32))
RISKY_FIELDS = ClassFields(("@home", "-b"))


def test_open_writer__excel_file_without_formulas(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed")
    pytest.importorskip("xlsxwriter", reason="xlsxwriter is not installed")
    with open_writer(tmp_path / "out.xlsx", RISKY_FIELDS) as writer:
        writer.write(RISKY)
        writer.write(Failure("b\udce4\x1b.jpg", "empty file"))
    header, *rows = openpyxl.load_workbook(tmp_path / "out.xlsx").active.iter_rows()
    assert [cell.value for cell in header] == ["path", "label", "confidence", "p:@home", "p:-b", "error"]
    assert [cell.value for cell in rows[0]] == ["=1+1.jpg", "@home", 0.75, 0.75, 0.25, None]
    assert [cell.data_type for cell in rows[0][:3]] == ["s", "s", "n"]
    assert [cell.value for cell in rows[1]][:2] == [
        "b\\xe4_x001B_.jpg",
        None,
    ]  # a control character, as Excel stores it
    assert os.listdir(tmp_path) == ["out.xlsx"]


def test_open_writer__more_than_excel_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xlsxwriter", reason="xlsxwriter is not installed")
    monkeypatch.setattr("tl.runtime.output.spreadsheets._MAX_ROWS", 2)
    with (
        pytest.raises(OutputError, match=r"more than 1 rows: write \.csv or \.parquet"),
        open_writer(tmp_path / "out.xlsx", RISKY_FIELDS) as writer,
    ):
        list(map(writer.write, [RISKY, RISKY]))
    assert os.listdir(tmp_path) == ["out.xlsx.partial"]  # the rows, for a file of another kind


def test_open_writer__csv_for_excel(tmp_path: Path) -> None:
    with open_writer(tmp_path / "out.csv", RISKY_FIELDS, for_excel=True) as writer:
        writer.write(RISKY)
    assert (tmp_path / "out.csv").read_bytes().decode("utf-8-sig") == (
        "path,label,confidence,p:@home,p:-b,error\n'=1+1.jpg,'@home,0.75,0.75,0.25,\n"
    )
    with open_writer(tmp_path / "plain.csv", RISKY_FIELDS) as writer:
        writer.write(RISKY)
    assert (tmp_path / "plain.csv").read_text().splitlines()[1].startswith("=1+1.jpg,@home,")  # byte for byte
    with (
        pytest.raises(OutputError, match="only a CSV table can be written for Excel"),
        open_writer(tmp_path / "out.jsonl", RISKY_FIELDS, for_excel=True),
    ):
        pass
