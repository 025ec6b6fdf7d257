from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from tl.errors import DataError
from tl.runtime.landmarks.files import image_finder
from tl.runtime.sources.box_files import read_boxes
from tl.runtime.sources.inputs import find_inputs
from tl.runtime.sources.names import FileFinder, image_folders

DECOMPOSED = unicodedata.normalize("NFD", "Käfer.jpg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("photos/ANT_30.jpg", f"photos/{DECOMPOSED}", "photos/a.jpg", "photos/b\\c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("photos/a.jpg", "photos/a.jpg"),
        ("photos\\a.jpg", "photos/a.jpg"),
        (".\\photos\\ant_30.JPG", "photos/ANT_30.jpg"),
        ("Photos/Käfer.jpg", f"photos/{DECOMPOSED}"),
        ("photos/b\\c.jpg", "photos/b\\c.jpg"),  # a backslash in a name, as written
        ("photos/../photos/A.jpg", "photos/../photos/a.jpg"),
        ("ant_30.jpg", None),
        ("C:\\photos\\a.jpg", None),
        ("", None),
    ],
)
def test_find__names_from_other_systems(folder: Path, name: str, found: str | None) -> None:
    expected = None if found is None else str(folder / found)
    located = FileFinder([folder / "none", folder]).find(name)
    assert located == expected or (name == "" and located is not None)


@pytest.mark.parametrize("name", [r"C:\lab\My Photos\ANT_30.jpg", r"\\server\x\ant_30.jpg", "/photos/me/ANT_30.jpg"])
def test_find__by_file_name(folder: Path, name: str) -> None:
    assert FileFinder([folder / "photos"], by_file_name=True).find(name) == str(folder / "photos/ANT_30.jpg")
    assert FileFinder([folder / "photos"]).find(name) is None


def test_find__several_files_that_could_be_meant(folder: Path) -> None:
    (folder / "photos" / "A.jpg").touch()
    if len(os.listdir(folder / "photos")) < 5:
        pytest.skip("this file system does not distinguish case")
    assert FileFinder([folder]).find("photos/a.jpg") == str(folder / "photos/a.jpg")
    with pytest.raises(DataError, match=r"'a\.JPG' could be 'A.jpg' and 'a.jpg'"):
        FileFinder([folder]).find("photos/a.JPG")


def test_image_finder__windows_tps(folder: Path) -> None:
    name = "C:/lab/My Photos/ANT_30.jpg"
    assert image_finder(folder / "w.tps", folder / "photos")(name) == str(folder / "photos/ANT_30.jpg")
    with pytest.raises(DataError, match="was not found in") as caught:
        image_finder(folder / "w.tps")(name)
    assert caught.value.options == ("images=FOLDER",)


def test_find_inputs__listed_on_windows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert list(find_inputs([], listed=["photos\\a.JPG", "gone.jpg"])) == [os.path.join("photos", "a.jpg"), "gone.jpg"]
    found = find_inputs([], listed=[r"D:\x\a.jpg", "ANT_30.jpg", "gone.jpg"], images=folder / "photos")
    assert list(found) == [*(str(folder / "photos" / name) for name in ("a.jpg", "ANT_30.jpg")), "gone.jpg"]


def test_read_boxes__listed_on_windows(folder: Path) -> None:
    (folder / "boxes.csv").write_text("Filename;box_x;box_y;box_w;box_h\nphotos\\ant_30.jpg;1,5;2;3;4\n")
    boxes = read_boxes(folder / "boxes.csv").single()
    assert boxes[str(folder / "photos/ANT_30.jpg")].xywh == (1.5, 2.0, 3.0, 4.0)


def test_image_folders__one_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    expected = [tmp_path / "a/b", tmp_path / "a/b/images", tmp_path / "a", tmp_path]
    assert image_folders(tmp_path / "a/b/points.csv", None) == expected
    assert image_folders(tmp_path / "a/b", None) == expected  # a folder of files
    monkeypatch.chdir(tmp_path / "a")
    assert image_folders("b/points.csv", None) == expected
    assert image_folders("b/points.csv", "photos") == [Path("photos")]
