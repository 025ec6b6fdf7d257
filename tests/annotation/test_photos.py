"""The images of a folder, groups, and the reserve that is drawn from them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.annotation.photos import make_photos
from tl.annotation.photos import Photos, fold, list_photos
from tl.annotation.reserve import Draw, draw_reserve, order_keys, reserve_size, reserved_images, with_groups
from tl.errors import DataError, ImageReadError


def test_list_photos__names_and_paths(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "p", 6, folders=("", "b/c"))
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.png").write_text("x")
    said: list[str] = []
    photos = list_photos(folder, say=said.append)
    assert photos.names == [
        "0000-red.png", "0001-green.png", "0002-blue.png", "b/c/0003-red.png", "b/c/0004-green.png", "b/c/0005-blue.png"
    ]  # fmt: skip
    assert all(os.path.isfile(path) for path in photos.paths)
    assert photos.index["b/c/0003-red.png"] == 3
    assert photos.locate(3) == photos.paths[3]
    assert [photos.group(i) for i in (0, 3)] == ["", ""]
    assert [list_photos(folder, has_groups=True).group(i) for i in (0, 3)] == ["", "b/c"]
    assert said == ["left out 2 files that are no images, or hidden"]


@pytest.mark.parametrize(
    ("given", "told"),
    [("https://example.org/photos", "is on a server: copy"), ("s3://bucket/x", "is on a server: copy"),
     ("gone", "does not exist: expected a folder"), ("a.png", "is a file: expected a folder"),
     ("empty", "contains no images")],
)  # fmt: skip
def test_list_photos__anything_but_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=told):
        list_photos(given)


def test_list_photos__links(tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 2)
    make_photos(tmp_path / "photos2", 1)  # begins with the same letters
    (folder / "out.png").symlink_to("../photos2/0000-red.png")
    (folder / "in.png").symlink_to("0000-red.png")
    (folder / "up").symlink_to("..")
    (folder / "broken.png").symlink_to("gone.png")
    said: list[str] = []
    names = list_photos(folder, say=said.append).names
    assert set(names) == {"0000-red.png", "0001-green.png", "in.png", "broken.png"}
    assert "links out of the folder" in said[0]
    linked = tmp_path / "linked"
    linked.symlink_to(folder)  # the folder itself may be a link
    photos = list_photos(linked)
    assert photos.locate(photos.index["0000-red.png"])
    (folder / "0001-green.png").unlink()
    (folder / "0001-green.png").symlink_to("../photos2/0000-red.png")
    with pytest.raises(ImageReadError, match="is a link out of the folder"):
        photos.locate(photos.index["0001-green.png"])


@pytest.mark.parametrize(
    ("count", "size"), [(1, 0), (2, 1), (60, 30), (100, 50), (333, 50), (1000, 150), (10_000, 400)]
)
def test_reserve_size(count: int, size: int) -> None:
    assert reserve_size(count) == size
    photos = Photos(Path(), [f"{i}.jpg" for i in range(count)])
    draw = draw_reserve(photos, 7)
    drawn = reserved_images(photos, 7, draw)
    assert len(set(drawn.tolist())) == size


def test_reserve__is_random_and_depends_on_the_seed() -> None:
    photos = Photos(Path(), [f"{i:05}.jpg" for i in range(2000)])
    draws = [reserved_images(photos, seed, draw_reserve(photos, seed)) for seed in range(60)]
    assert len({tuple(draw) for draw in draws}) == 60
    hits = np.zeros(2000)
    for draw in draws:
        hits[draw] += 1
    # 60 draws of 300 of 2,000: 4,500 hits expected in each half; 5 standard deviations are 280.
    assert abs(hits[:1000].sum() - 9000) < 280 * 2
    assert hits.max() < 30


def test_reserve__photos_that_come_later_change_nothing() -> None:
    names = [f"{i:05}.jpg" for i in range(3000)]
    before, after = Photos(Path(), names[:1000]), Photos(Path(), names)
    draw = draw_reserve(before, 3)
    drawn = [before.names[i] for i in reserved_images(before, 3, draw)]
    later = [after.names[i] for i in reserved_images(after, 3, draw, drawn=drawn)]
    assert later[: len(drawn)] == drawn  # the others come behind them
    # 15% of the others, too: 300 of 2,000; 5 standard deviations are 80.
    assert abs(len(later) - len(drawn) - 300) < 80


def test_reserve__groups_stay_whole() -> None:
    photos = Photos(Path(), [f"{i // 20}/{i:05}.jpg" for i in range(1000)], has_groups=True)
    drawn = reserved_images(photos, 1, draw_reserve(photos, 1))
    assert 150 <= len(drawn) < 170
    groups = {photos.group(int(i)) for i in drawn}
    assert len(drawn) == 20 * len(groups)
    assert [photos.group(int(i)) for i in drawn[:20]] == [photos.group(int(drawn[0]))] * 20
    one = Photos(Path(), [f"all/{i}.jpg" for i in range(100)], has_groups=True)
    assert draw_reserve(one, 1) == Draw()  # the only group cannot be on both sides
    assert len(reserved_images(one, 1, Draw())) == 0


def test_reserve__not_of_images_that_have_labels() -> None:
    photos = Photos(Path(), [f"{i // 10}/{i}.jpg" for i in range(400)])
    labeled = set(range(200))
    drawn = reserved_images(photos, 5, draw_reserve(photos, 5, labeled), labeled)
    assert len(drawn) == 50
    assert not labeled & set(drawn.tolist())
    grouped = Photos(photos.root, photos.names, has_groups=True)
    assert with_groups(grouped, {"0/3.jpg", "2/gone.jpg"}) == {*range(10), *range(20, 30)}
    assert with_groups(photos, {"0/3.jpg", "2/gone.jpg"}) == {3}
    assert len(order_keys(photos, 1)) == 400


def test_reserve__a_group_that_is_too_large_is_passed_over() -> None:
    names = [f"big/{i}.jpg" for i in range(600)] + [f"s{k}/{i}.jpg" for k in range(8) for i in range(50)]
    photos = Photos(Path(), names, has_groups=True)
    passed = 0
    for seed in range(20):
        draw = draw_reserve(photos, seed)
        drawn = reserved_images(photos, seed, draw)
        assert len(drawn) == 150
        assert "big" not in {photos.group(int(i)) for i in drawn}
        passed += bool(draw.passed)
        later = Photos(Path(), [*names, "big/new.jpg"], has_groups=True)
        assert len(reserved_images(later, seed, draw)) == 150  # its new photos are on its side
    assert passed
    two = Photos(Path(), [f"a/{i}.jpg" for i in range(60)] + [f"b/{i}.jpg" for i in range(40)], has_groups=True)
    assert {len(reserved_images(two, seed, draw_reserve(two, seed))) for seed in range(20)} == {40}


def test_fold__names_of_a_mac_are_found() -> None:
    assert fold("E\u0301te\u0301.JPG") == fold("\u00e9t\u00e9.jpg") == Photos(Path(), ["\u00c9t\u00e9.jpg"]).folded[0]
