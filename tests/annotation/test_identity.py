"""Recognize a moved folder."""

from __future__ import annotations

import os
from pathlib import Path

from tests.annotation.photos import make_photos
from tl.annotation.identity import has_prints, take_prints


def paths_of(folder: Path) -> dict[str, str]:
    return {path.name: os.fspath(path) for path in folder.iterdir()}


def test_has_prints__same_content_elsewhere(tmp_path: Path) -> None:
    prints = take_prints(paths_of(make_photos(tmp_path / "a", 60)))
    assert len(prints) == 16
    moved = paths_of(make_photos(tmp_path / "b", 60))
    assert has_prints(prints, moved)
    for name in sorted(moved)[:40]:
        del moved[name]  # most photos are gone
    assert has_prints(prints, moved)


def test_has_prints__same_names_with_other_content(tmp_path: Path) -> None:
    prints = take_prints(paths_of(make_photos(tmp_path / "a", 60)))
    other = paths_of(make_photos(tmp_path / "b", 60, hw=(13, 16)))
    assert not has_prints(prints, other)
    assert not has_prints(prints, {})
