from __future__ import annotations

import csv
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.models import assert_same_table, make_model, solid
from tl.errors import ImageReadError, OutputError
from tl.runtime import Predictor, load
from tl.runtime.output.claim import Claim
from tl.runtime.output.job import Tally, run_job

COLORS = {"a": (200, 10, 10), "b": (10, 200, 10), "c": (10, 10, 200), "d": (90, 10, 10), "e": (10, 90, 10)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "m.onnx")


@pytest.fixture
def predictor(model: Path) -> Iterator[Predictor]:
    with load(model, device="cpu") as predictor:
        yield predictor


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """a.png to e.png, of which d cannot be read."""
    paths = [tmp_path / f"{name}.png" for name in COLORS]
    for path, color in zip(paths, COLORS.values(), strict=True):
        Image.fromarray(solid(color)).save(path)
    paths[3].write_bytes(b"torn")
    return [str(path) for path in paths]


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        return list(csv.DictReader(stream))


class StopHereError(Exception):
    """Stands for any interruption of a program."""


def run(predictor: Predictor, images: list[str], output: Path, *, stop_at: int = 0, **options: Any) -> Tally:
    tally = Tally()

    def advance(tally: Tally) -> None:
        if tally.done == stop_at:
            raise StopHereError

    run_job(predictor, images, output, tally, advance=advance, **options)
    return tally


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_run_job__stopped_and_resumed_is_as_never_stopped(
    predictor: Predictor, images: list[str], tmp_path: Path, suffix: str, stop_at: int
) -> None:
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    assert run(predictor, images, whole) == Tally(done=5, kept=0, failed=1)
    with pytest.raises(StopHereError):
        run(predictor, images, out, stop_at=stop_at)
    assert not out.exists()
    assert run(predictor, images, out, resume=True) == Tally(done=5, kept=stop_at, failed=1)
    assert_same_table(out, whole)
    assert not Claim(out).rows.exists()


def test_run_job__what_is_new_is_added_in_its_place(predictor: Predictor, images: list[str], tmp_path: Path) -> None:
    run(predictor, images[1:3], tmp_path / "out.csv")
    assert run(predictor, images, tmp_path / "out.csv", resume=True).kept == 2
    assert [row["path"] for row in read_rows(tmp_path / "out.csv")] == images


def test_run_job__a_changed_image_is_done_again(predictor: Predictor, images: list[str], tmp_path: Path) -> None:
    run(predictor, images[:3], tmp_path / "out.jsonl")
    Image.fromarray(solid(COLORS["c"])).save(images[0])
    tally = run(predictor, images[:3], tmp_path / "out.jsonl", resume=True)
    labels = [json.loads(line)["label"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (tally.kept, labels) == (2, ["blue", "green", "blue"])


def test_run_job__another_model_or_vote_begins_anew(model: Path, images: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    other = make_model(tmp_path / "other.onnx", gain=0.01)
    kept = []
    for models, options in (
        (model, {}),
        (other, {}),
        (other, {}),
        ([model, other], {}),
        ([model, other], {"vote": "max"}),
        ([model, other], {"vote": "max", "weights": [2, 1]}),
        ([model, other], {"vote": "max", "weights": [2, 1]}),
    ):
        with load(models, device="cpu", **options) as predictor:  # type: ignore[arg-type]
            kept.append(run(predictor, images[:3], out, resume=True, overwrite=True).kept)
    assert kept == [0, 0, 3, 0, 0, 0, 3]


def test_run_job__rows_of_another_model_are_not_discarded_unasked(
    model: Path, images: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    (tmp_path / "broken.png").write_bytes(b"torn")
    with load(model, device="cpu") as predictor, pytest.raises(ImageReadError):
        run(predictor, [*images[:3], str(tmp_path / "broken.png")], out, fail_fast=True)
    other = make_model(tmp_path / "other.onnx", gain=0.01)
    with load(other, device="cpu") as predictor:
        with pytest.raises(OutputError, match="the interrupted prediction into it used other models") as caught:
            run(predictor, images[:3], out, resume=True)
        assert caught.value.options == ("overwrite",)
    with load(model, device="cpu") as predictor:
        assert run(predictor, images[:3], out, resume=True).kept == 3


def test_run_job__the_same_image_twice_has_two_rows(predictor: Predictor, images: list[str], tmp_path: Path) -> None:
    twice = [images[0], images[1], images[0]]
    run(predictor, twice, tmp_path / "out.csv")
    assert run(predictor, twice, tmp_path / "out.csv", resume=True) == Tally(done=3, kept=3, failed=0)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 4


def test_run_job__failures_are_kept_or_tried_again(predictor: Predictor, images: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    images.append(str(tmp_path / "gone.png"))
    assert run(predictor, images, out) == Tally(done=6, kept=0, failed=2)
    assert run(predictor, images, out, resume=True) == Tally(done=6, kept=5, failed=2)  # gone.png might exist again
    assert run(predictor, images, out, resume=True, retry_failed=True) == Tally(done=6, kept=4, failed=2)
    Image.fromarray(solid(COLORS["d"])).save(tmp_path / "gone.png")
    assert run(predictor, images, out, resume=True) == Tally(done=6, kept=5, failed=1)


def test_run_job__fail_fast_stops_and_can_go_on(predictor: Predictor, images: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with pytest.raises(ImageReadError, match=r"d\.png: not an image"):
        run(predictor, images, out, fail_fast=True)
    with pytest.raises(ImageReadError, match=r"d\.png: not an image"):
        run(predictor, images, out, fail_fast=True, resume=True)
    assert run(predictor, images, out, resume=True) == Tally(done=5, kept=4, failed=1)
    with pytest.raises(ImageReadError, match=r"d\.png"):
        run_job(predictor, images, None, Tally(), fail_fast=True)


def test_run_job__does_not_write_over_an_interrupted_one(
    predictor: Predictor, images: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    with pytest.raises(StopHereError):
        run(predictor, images, out, stop_at=2)
    before = Claim(out).ledger.read_bytes()
    with pytest.raises(OutputError, match="a prediction into it was interrupted") as caught:
        run(predictor, images, out)
    assert caught.value.options == ("resume", "overwrite")
    assert Claim(out).ledger.read_bytes() == before
    assert run(predictor, images, out, overwrite=True).kept == 0


def test_run_job__replaces_only_its_own_unchanged_file(
    predictor: Predictor, model: Path, images: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    run(predictor, images[:2], out)
    assert run(predictor, images[:3], out) == Tally(done=3, kept=0, failed=0)
    with load([model, make_model(tmp_path / "other.onnx", gain=0.01)], device="cpu") as other:
        for options in ({}, {"resume": True}):
            with pytest.raises(OutputError, match=r"out\.csv: exists") as caught:
                run(other, images[:3], out, **options)
            assert caught.value.options == ("overwrite",)
    edited = out.read_text() + "a note\n"
    out.write_text(edited)
    for options in ({}, {"resume": True}):
        with pytest.raises(OutputError, match=r"out\.csv: exists"):
            run(predictor, images[:3], out, **options)
    assert out.read_text() == edited
    assert run(predictor, images[:3], out, resume=True, overwrite=True) == Tally(done=3, kept=3, failed=0)
    assert len(read_rows(out)) == 3


def test_run_job__a_file_of_someone_else_is_not_replaced(
    predictor: Predictor, images: list[str], tmp_path: Path
) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("precious")
    before = sorted(tmp_path.iterdir())
    for name, reason in (("list.csv", r"list\.csv: exists"), ("out.txt", "expected a name that ends in")):
        with pytest.raises(OutputError, match=reason):
            run(predictor, images, tmp_path / name)
    assert listed.read_text() == "precious"
    assert sorted(tmp_path.iterdir()) == before  # no hidden folder either


def test_run_job__a_link_is_not_written_through(predictor: Predictor, images: list[str], tmp_path: Path) -> None:
    (tmp_path / "theirs.csv").write_text("precious")
    (tmp_path / "out.csv").symlink_to("theirs.csv")
    with pytest.raises(OutputError, match=r"out\.csv: is a symbolic link to theirs\.csv"):
        run(predictor, images, tmp_path / "out.csv", overwrite=True)
    (tmp_path / "folder").mkdir()
    (tmp_path / ".new.csv.tl").symlink_to("folder")
    with pytest.raises(OutputError, match=r"\.new\.csv\.tl: is a symbolic link"):
        run(predictor, images, tmp_path / "new.csv")
    (tmp_path / ".other.csv.tl").mkdir()
    Claim(tmp_path / "other.csv").rows.symlink_to(tmp_path / "theirs.csv")
    with pytest.raises(OutputError, match="cannot be written"):
        run(predictor, images, tmp_path / "other.csv")
    assert (tmp_path / "theirs.csv").read_text() == "precious"


@pytest.mark.parametrize("name", ["folder.csv", "file/out.csv"])
def test_run_job__a_wrong_name_is_found_before_the_first_image(predictor: Predictor, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()

    def images() -> Iterator[str]:
        raise AssertionError("an image was asked for")
        yield

    with pytest.raises(OutputError, match=r"is a folder|cannot be written"):
        run_job(predictor, images(), tmp_path / name, Tally())


def test_run_job__one_writer_at_a_time(predictor: Predictor, images: list[str], tmp_path: Path) -> None:
    out, errors = tmp_path / "out.csv", []

    def see(result: object) -> None:
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(OutputError, match="is being written by process") as caught:
                run(predictor, images, out, **options)
            errors.append(str(caught.value))

    run_job(predictor, images[:1], out, Tally(), see=see)
    assert len(errors) == 3
    assert f"process {os.getpid()} on {socket.gethostname()} since " in errors[0]
    assert len(read_rows(out)) == 1
    assert sorted(path.name for path in Claim(out).folder.iterdir()) == ["finished.json", "ledger", "lock"]


def test_run_job__files_that_vanish_meanwhile_are_rows(predictor: Predictor, images: list[str], tmp_path: Path) -> None:
    def vanishing() -> Iterator[str]:
        yield images[0]
        Path(images[1]).unlink()
        yield from images[1:3]

    tally = Tally()
    run_job(predictor, vanishing(), tmp_path / "out.csv", tally)
    rows = read_rows(tmp_path / "out.csv")
    assert tally == Tally(done=3, kept=0, failed=1)
    assert [row["error"] for row in rows] == ["", "No such file or directory", ""]


def test_run_job__parquet_from_the_finished_lines(model: Path, images: list[str], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    strange = tmp_path / "b\n\udce9.png"
    strange.write_bytes(Path(images[1]).read_bytes())
    other = make_model(tmp_path / "other.onnx", gain=0.01)
    with load([model, other], device="cpu") as predictor:
        run(predictor, [*images, str(strange)], tmp_path / "out.parquet")
        run(predictor, [*images, str(strange)], tmp_path / "out.csv")
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    rows = read_rows(tmp_path / "out.csv")
    assert [list(row) for row in table] == [list(row) for row in rows]
    assert [row["path"] for row in table] == [*images, f"{tmp_path}/b\n\\xe9.png"]
    assert [row["vote:other"] for row in table] == ["red", "green", "blue", None, "green", "green"]
    assert [row["error"] or "" for row in table] == [row["error"] for row in rows]
    assert table[0]["p:red"] == pytest.approx(float(rows[0]["p:red"]), rel=1e-5)  # CSV has all float32 digits
    assert not Claim(tmp_path / "out.parquet").rows.exists()
    with load([model, other], device="cpu") as predictor:
        assert run(predictor, images, tmp_path / "out.parquet", resume=True).kept == 5
