from __future__ import annotations

import os
from pathlib import Path

import pytest

from tl.errors import OutputError
from tl.runtime.output.files import atomic_path, output_errors, write_text


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def stop_half_way(path: Path, fault: BaseException) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise fault


def test_atomic_path__final_name_only_when_done(tmp_path: Path) -> None:
    final = tmp_path / "out.bin"
    with atomic_path(final) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent == tmp_path  # renaming is atomic only within one file system
        assert not final.exists()
    assert names(tmp_path) == ["out.bin"]
    assert final.read_bytes() == b"new"


def test_atomic_path__failure_keeps_the_old_file(tmp_path: Path) -> None:
    final = tmp_path / "out.bin"
    final.write_bytes(b"old")
    with pytest.raises(KeyError):
        stop_half_way(final, KeyError())
    assert names(tmp_path) == ["out.bin"]
    assert final.read_bytes() == b"old"


def test_atomic_path__interruption_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        stop_half_way(tmp_path / "out.bin", KeyboardInterrupt())
    assert names(tmp_path) == []


def test_atomic_path__replaces_and_makes_folders(tmp_path: Path) -> None:
    final = tmp_path / "a/b/out.txt"
    for text in "one", "two":
        write_text(final, text)
        assert final.read_text() == text


def test_atomic_path__has_the_usual_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "x")
    (tmp_path / "usual").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_atomic_path__a_folder_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="out: cannot be written"):
        write_text(tmp_path / "out", "x")
    assert names(tmp_path) == ["out"]


def test_atomic_path__the_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/out\.txt: cannot be written"):
        write_text(tmp_path / "file" / "out.txt", "x")


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs Linux's /proc, where even root cannot write")
def test_atomic_path__nowhere_to_write() -> None:
    with pytest.raises(OutputError, match=r"/proc/out\.txt: cannot be written"):
        write_text("/proc/out.txt", "x")


def test_atomic_path__nothing_was_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"), atomic_path(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


def test_write_text__utf8_and_newlines_as_given(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Käfer\r\n蟲\n")
    assert (tmp_path / "a.txt").read_bytes() == "Käfer\r\n蟲\n".encode()


def test_output_errors__names_the_output_and_the_reason() -> None:
    cause = OSError(28, "No space left on device")
    with pytest.raises(OutputError) as caught, output_errors("out.csv"):
        raise cause
    assert str(caught.value) == "out.csv: cannot be written (No space left on device)"
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize("fault", [BrokenPipeError(), ValueError("a bug"), OutputError("already said")])
def test_output_errors__leaves_others_alone(fault: Exception) -> None:
    with pytest.raises(type(fault)) as caught, output_errors("out.csv"):
        raise fault
    assert caught.value is fault
