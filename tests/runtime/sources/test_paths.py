from __future__ import annotations

import os
from pathlib import Path

import pytest

from tl.errors import DataError
from tl.runtime.imaging.decode import FORMATS
from tl.runtime.sources.paths import IMAGE_SUFFIXES, find_images


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in find_images([folder]).paths]


def test_find_images__sorted_per_folder(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a.JPG", "z/1.tif", "c/2.webp", "c/10.webp", "c/d/0.bmp")
    assert found(tmp_path) == ["a.JPG", "b.png", "c/10.webp", "c/2.webp", "c/d/0.bmp", "z/1.tif"]


def test_find_images__paths_as_the_user_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "photos/a.png")
    monkeypatch.chdir(tmp_path)
    assert find_images(["photos"]).paths == ("photos/a.png",)
    assert find_images([Path("photos"), "photos/a.png"]).paths == ("photos/a.png", "photos/a.png")
    assert find_images(["."]).paths == ("./photos/a.png",)


def test_find_images__counts_what_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "notes.txt", "sub/data.csv", ".hidden.png", "sub/._a.png", "noext")
    result = find_images([tmp_path])
    assert result.paths == (str(tmp_path / "a.png"),)
    assert result.hidden == 2
    assert result.not_images == 3


def test_find_images__hidden_folders_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", ".thumbnails/b.png")
    result = find_images([tmp_path])
    assert result.paths == (str(tmp_path / "a.png"),)
    assert result.hidden == 1  # every skipped file is counted


def test_find_images__a_named_file_is_taken_whatever_it_is(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", ".hidden.png")
    os.mkfifo(tmp_path / "fifo")
    names = [str(tmp_path / name) for name in ("notes.txt", ".hidden.png", "fifo")]
    result = find_images(names)
    assert list(result.paths) == names
    assert (result.hidden, result.not_images) == (0, 0)


def test_find_images__a_named_hidden_folder_is_searched(tmp_path: Path) -> None:
    touch(tmp_path, ".photos/a.png")
    assert find_images([tmp_path / ".photos"]).paths == (str(tmp_path / ".photos/a.png"),)


def test_find_images__broken_links_become_rows(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert found(tmp_path) == ["gone.png"]
    assert find_images([tmp_path / "gone.png"]).paths == (str(tmp_path / "gone.png"),)


def test_find_images__linked_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.png", "elsewhere/b.png")
    root = tmp_path / "photos"
    (root / "again").symlink_to(root)
    (root / "more").symlink_to(tmp_path / "elsewhere")
    (root / "more2").symlink_to(tmp_path / "elsewhere")
    assert found(root) == ["a.png", "more/b.png"]


def test_find_images__missing_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        find_images([tmp_path / "nowhere"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_find_images__unreadable_folder(tmp_path: Path) -> None:
    touch(tmp_path, "locked/a.png")
    (tmp_path / "locked").chmod(0)
    try:
        with pytest.raises(DataError, match="cannot read this folder"):
            find_images([tmp_path])
    finally:
        (tmp_path / "locked").chmod(0o700)


def test_find_images__empty_folder(tmp_path: Path) -> None:
    assert find_images([tmp_path]).paths == ()
    assert find_images([]).paths == ()


def test_find_images__folder_with_a_image_name(tmp_path: Path) -> None:
    touch(tmp_path, "odd.png/a.png")
    assert found(tmp_path) == ["odd.png/a.png"]


def test_image_suffixes__cover_every_kind_that_can_be_decoded() -> None:
    usual = {"JPEG": ".jpg", "JPEG2000": ".jp2", "TIFF": ".tif", "PPM": ".ppm"}
    for kind in FORMATS:
        assert usual.get(kind, f".{kind.lower()}") in IMAGE_SUFFIXES


@pytest.mark.parametrize("suffix", [".heic", ".dng", ".cr2", ".jxl", ".czi", ".svs"])
def test_image_suffixes__images_that_cannot_be_decoded_turn_up(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, f"a{suffix.upper()}")
    assert found(tmp_path) == [f"a{suffix.upper()}"]


def test_find_images__patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a1.png", "a2.txt", "b.png", "d/a3.png", "d/e/a4.png", "d/.h/a5.png", "d/.a6.png", "f/x.txt")
    (tmp_path / "d" / "loop").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for pattern, wanted in {
        "a*": ["a1.png", "a2.txt"],
        "[ab]?.png": ["a1.png"],
        "d/**/*.png": ["d/a3.png", "d/e/a4.png", "d/loop/a1.png", "d/loop/b.png"],
        "**/e/*.png": ["d/e/a4.png"],
        "?/**/a[34].png": ["d/a3.png", "d/e/a4.png"],
        "[df]": ["d/a3.png", "d/e/a4.png", "d/loop/a1.png", "d/loop/b.png"],
        f"{tmp_path}/b*": [f"{tmp_path}/b.png"],
    }.items():
        assert list(find_images([pattern]).paths) == wanted, pattern
    with pytest.raises(DataError, match=r"z\*: no such file or folder, and no file matches it as a pattern"):
        find_images(["z*"])


def test_find_images__a_file_called_like_a_pattern_is_itself(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].png", "a1.png")
    assert find_images([tmp_path / "a[1].png"]).paths == (str(tmp_path / "a[1].png"),)
