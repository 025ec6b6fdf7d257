from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.models import make_model, solid
from tests.runtime.images import encode
from tests.runtime.sources.test_archives import make_tar, make_zip
from tl.errors import DataError, ImageReadError
from tl.runtime import Classification, Failure, load
from tl.runtime.imaging.decode import source_name
from tl.runtime.sources.inputs import Archive, Inputs, find_inputs
from tl.runtime.sources.memory_files import MemoryFile, UnreadableFile
from tl.runtime.sources.paths import FoundImages, read_path_list

RED = encode(solid((200, 10, 10)), "PNG")
BLUE = encode(solid((10, 10, 200)), "PNG")


def names(inputs: object) -> list[str]:
    return [source_name(source) for source in inputs]  # type: ignore[attr-defined]


def test_find_inputs__archives_stand_where_they_were_named(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "1.png").write_bytes(RED)
    (tmp_path / "t.tar").write_bytes(make_tar({"y/b.png": BLUE, "a.png": RED}))
    archive = make_zip(tmp_path / "z.zip", {"x/c.png": RED})
    found = find_inputs([archive, tmp_path / "d", tmp_path / "t.tar"])
    assert len(found) == 4
    wanted = ["z.zip/x/c.png", "d/1.png", "t.tar/y/b.png", "t.tar/a.png"]
    assert names(found) == [str(tmp_path / name) for name in wanted]
    assert names(found) == names(found)  # reading again starts over


def test_find_inputs__counts_what_is_passed_over(tmp_path: Path) -> None:
    content = {"a.png": RED, "__MACOSX/._a.png": b"", ".thumbs/1.png": b"", ".thumbs/2.png": b"", "read.me": b""}
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".hidden.png").touch()
    found = find_inputs([make_zip(tmp_path / "z.zip", content), tmp_path / "d"])
    assert len(found) == 1
    assert found.passed_over == "3 hidden, 1 files without an image extension"
    assert find_inputs([]).passed_over == ""


def test_find_inputs__an_archive_in_a_folder_is_no_image(tmp_path: Path) -> None:
    make_zip(tmp_path / "z.zip", {"a.png": RED})
    assert len(find_inputs([tmp_path])) == 0
    assert names(find_inputs([f"{tmp_path}/*.zip"])) == [f"{tmp_path}/z.zip/a.png"]  # one that a pattern matches is


def test_find_inputs__listed_names_are_no_patterns_and_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "1.png").write_bytes(RED)
    archive = make_zip(tmp_path / "z.zip", {"c.png": RED})
    listed = [f"{tmp_path}/*.png", str(archive), f"{tmp_path}/gone.png", f"{tmp_path}/d", f"{tmp_path}/d/1.png"]
    found = find_inputs([], listed=listed)
    assert names(found) == [listed[0], f"{archive}/c.png", listed[2], f"{tmp_path}/d/1.png", listed[4]]


def test_unopened__addresses_are_left_to_others(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "z.zip", {"c.png": RED})
    (tmp_path / "1.png").write_bytes(BLUE)
    address = "http://127.0.0.1:1/a.png?token=x"  # nothing answers there
    parts = (Archive(str(archive), 1, 0, 0, 0), FoundImages((str(tmp_path / "1.png"), address), 0, 0))
    member, *others = Inputs(parts).unopened()
    assert isinstance(member, MemoryFile)
    assert others == [str(tmp_path / "1.png"), address]


def test_find_inputs__damaged_archive(tmp_path: Path) -> None:
    (tmp_path / "z.zip").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"z\.zip: damaged"):
        find_inputs([tmp_path / "z.zip"])


def test_find_inputs__an_archive_cut_after_it_was_listed(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(make_tar({"a.png": RED, "b.png": BLUE}))
    found = find_inputs([path])
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"t\.tar: damaged"):
        list(found)


def test_unreadable_file__read_and_seek_raise() -> None:
    for act in (lambda file: file.read(), lambda file: file.seek(0)):
        with pytest.raises(ImageReadError, match="a: torn"):
            act(UnreadableFile("a", "torn"))


def test_predictor__images_from_archives(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "z.zip", {"r.png": RED, "torn.png": RED, "b.png": BLUE}, zipfile.ZIP_STORED)
    content = archive.read_bytes()
    second = content.index(RED, content.index(RED) + 1)
    archive.write_bytes(content[: second + 30] + b"?" + content[second + 31 :])
    with load(make_model(tmp_path / "m.onnx"), device="cpu") as predictor:
        red, torn, blue = predictor.predict_iter(find_inputs([archive]))
        from_array = predictor.predict(np.asarray(solid((200, 10, 10))))
        from_file = predictor.predict(io.BytesIO(BLUE))
    assert isinstance(red, Classification)
    assert isinstance(blue, Classification)
    assert (red.path, red.label, blue.label) == (f"{archive}/r.png", "red", "blue")
    assert np.array_equal(red.probabilities, from_array.probabilities)
    assert np.array_equal(blue.probabilities, from_file.probabilities)
    assert isinstance(torn, Failure)
    assert torn.path == f"{archive}/torn.png"
    assert "damaged in the archive" in torn.error


LISTS = [
    (b"a.png\nb c.png\n", False, ["a.png", "b c.png"]),
    (b"\xef\xbb\xbfa.png\r\n\r\n  b.png \r\n", False, ["a.png", "  b.png "]),
    (b"caf\xe9.png\n", False, ["caf\udce9.png"]),
    (b"a\nb.png\0c.png\0", True, ["a\nb.png", "c.png"]),
    (b"", False, []),
]


@pytest.mark.parametrize(("content", "null", "wanted"), LISTS)
def test_read_path_list__file_and_stdin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, null: bool, wanted: list[str]
) -> None:
    (tmp_path / "list").write_bytes(content)
    assert read_path_list(str(tmp_path / "list"), null=null) == wanted
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert read_path_list("-", null=null) == wanted


def test_read_path_list__faults(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"a\0b")
    with pytest.raises(DataError, match="contains NUL bytes"):
        read_path_list(str(tmp_path / "list"))
    with pytest.raises(DataError, match="list of names cannot be read"):
        read_path_list(str(tmp_path / "gone"))


def test_find_inputs__a_large_image_in_an_archive_becomes_an_error_row(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "z.zip", {"a.png": RED, "b.png": bytes(2 << 20)})
    small, large = find_inputs([archive], max_member_bytes=1 << 20)
    assert small.read() == RED  # type: ignore[union-attr]
    with pytest.raises(ImageReadError, match="above the limit of 1 MiB for images in archives: raise max_file_size"):
        large.read()  # type: ignore[union-attr]
