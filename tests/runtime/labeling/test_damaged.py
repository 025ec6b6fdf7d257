"""Files that are not as a tool writes them are errors that say where, never tracebacks."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.labeling.exports import (
    choice,
    cvat,
    cvat_image,
    key_point,
    labelme,
    save_json,
    save_photos,
    task,
    via_image,
    via_project,
)
from tl.data.label_sets import read_label_sets
from tl.data.manifests import ManifestColumns, read_images
from tl.errors import TlError
from tl.runtime.landmarks.files import contains_landmarks, is_landmark_file, read_landmarks

POINT = {"x": 5, "y": 5, "width": 1, "keypointlabels": ["tip"], "original_width": 20, "original_height": 10}
DOCUMENTS = {
    "labelstudio": [task(1, "a.png", [choice("cat"), key_point("tip", 5, 5)]), task(2, "b.png", [choice("dog")])],
    "json-min": [
        {"id": 1, "image": "a.png", "species": "cat", "parts": [POINT], "annotation_id": 1, "updated_at": "2026"},
        {"id": 2, "image": "b.png", "species": {"choices": ["dog"]}, "annotation_id": 2, "updated_at": "2026"},
    ],
    "via": via_project(via_image("a.png", {"species": "cat"}, ("tip", 3, 4)), via_image("b.png", {"species": "dog"})),
    "labelme": labelme("a.png", {"cat": True}, ("tip", 3, 4)),
}
JUNK: tuple[Any, ...] = (None, 5, -1, True, "", "x", [], {}, [[]], [{}], {"x": None}, 1e300)


def places(parsed: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    pairs = parsed.items() if isinstance(parsed, dict) else enumerate(parsed if isinstance(parsed, list) else ())
    for key, value in pairs:
        yield from places(value, (*at, key))


def replaced(parsed: Any, at: tuple[Any, ...], value: Any) -> Any:
    parsed = copy.deepcopy(parsed)
    inner = parsed
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return parsed


def read_every_way(path: Path) -> int:
    """Read a file as every command does. Returns how many ways raised an expected error."""
    is_landmark_file(path)
    contains_landmarks(path)
    faults: list[str] = []
    for read in (
        lambda: read_images(path),
        lambda: read_label_sets(str(path), ManifestColumns(), lambda line: None),
        lambda: read_landmarks(path),
        lambda: read_landmarks(path, annotators="majority"),
    ):
        try:
            read()
        except TlError as error:
            faults.append(str(error))
    assert all(path.name in fault and "\n" not in fault for fault in faults), faults
    return len(faults)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_json__any_value_replaced(tmp_path: Path, name: str) -> None:
    save_photos(tmp_path, ["a.png", "b.png"])
    path, found = tmp_path / "export.json", 0
    for at in places(DOCUMENTS[name]):
        for value in JUNK:
            found += read_every_way(save_json(path, replaced(DOCUMENTS[name], at, value))) > 0
    assert found > 20


def test_cvat__any_attribute_replaced_or_removed(tmp_path: Path) -> None:
    save_photos(tmp_path, ["a.png", "b.png"])
    bones = '<skeleton label="dog"><points label="base" outside="0" points="1,1"/></skeleton>'
    shapes = '<tag label="cat"/>', '<points label="tip" points="3,4"/>', bones
    text = cvat(cvat_image("a.png", *shapes), cvat_image("b.png", '<tag label="dog"/>'))
    path, found = tmp_path / "export.xml", 0
    for match in re.finditer(r' (\w+)="[^"]*"', text):
        for new in ("", f' {match[1]}=""', f' {match[1]}="x"', f' {match[1]}="-1"', f' {match[1]}="1,2,3"'):
            path.write_text(text[: match.start()] + new + text[match.end() :], encoding="utf-8")
            found += read_every_way(path) > 0
    assert found > 20


def test_cut_off__is_an_error(tmp_path: Path) -> None:
    save_photos(tmp_path, ["a.png", "b.png"])
    whole = save_json(tmp_path / "export.json", DOCUMENTS["labelstudio"]).read_bytes()
    for length in range(0, len(whole), 40):
        (tmp_path / "export.json").write_bytes(whole[:length])
        assert read_every_way(tmp_path / "export.json") == 4
