"""Small images: what they show, where they are kept, what cannot be shown, and what is asked for while others wait."""

from __future__ import annotations

import os
import threading
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.annotation.photos import make_photos
from tests.full_disk import largest_file
from tests.serving.label_server import labeling
from tl.annotation.opening import SessionPlan
from tl.errors import ImageReadError
from tl.serving.local.jpeg_cache import MAX_BYTES, JpegCache
from tl.serving.local.thumbnails import THUMB_PX, VIEW_PX, Thumbnails, make_jpeg


def opened(content: bytes) -> Image.Image:
    image = Image.open(BytesIO(content))
    image.load()
    return image


def gradient(hw: tuple[int, int]) -> Image.Image:
    """Dark at the left, bright at the right; green at the top."""
    height, width = hw
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:] = np.linspace(0, 255, width).astype(np.uint8)[None, :, None]
    pixels[: height // 4, :, (0, 2)] = 0
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM"])
@pytest.mark.parametrize("hw", [(1500, 1000), (40, 60), (1, 900)])
def test_make_jpeg__of_every_format(tmp_path: Path, kind: str, hw: tuple[int, int]) -> None:
    path = tmp_path / "photo"
    gradient(hw).save(path, kind)
    small = opened(make_jpeg(os.fspath(path), THUMB_PX))
    ratio = min(1, THUMB_PX / max(hw))
    assert small.format == "JPEG"
    assert small.size == (max(1, round(hw[1] * ratio)), max(1, round(hw[0] * ratio)))
    wanted = np.asarray(gradient(hw).resize(small.size, Image.Resampling.BOX), int)
    # JPEG twice, a palette of 256 colors for GIF, and other filters.
    assert np.abs(np.asarray(small.convert("RGB"), int) - wanted).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_make_jpeg__is_upright_and_has_no_metadata(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    gradient((900, 1300)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    small = opened(make_jpeg(os.fspath(tmp_path / "a.jpg"), THUMB_PX))
    assert not small.getexif()
    assert "exif" not in small.info
    wanted = ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")).resize(small.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(small, int) - np.asarray(wanted, int)).mean() < 8


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "empty file"), (b"nothing", "."), (b"\xff\xd8\xff\xe0" + b"\0" * 50, ".")]
)
def test_make_jpeg__tells_why_not(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageReadError, match=told):
        make_jpeg(os.fspath(tmp_path / "a.jpg"), THUMB_PX)


def test_make_jpeg__a_truncated_photo_is_not_shown_as_half_a_photo(tmp_path: Path) -> None:
    gradient((800, 800)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageReadError):
        make_jpeg(os.fspath(tmp_path / "a.jpg"), THUMB_PX)


def paths_of(folder: Path) -> list[str]:
    return [os.fspath(path) for path in sorted(folder.glob("*.png"))]


def test_thumbnails__are_kept_and_change_with_the_photo(tmp_path: Path) -> None:
    paths = paths_of(make_photos(tmp_path / "photos", 4))
    cache = tmp_path / "cache"
    small = Thumbnails(paths.__getitem__, 4, folder=cache, fills=False)
    first = small.ask(0, THUMB_PX).result(30)
    (kept,) = cache.rglob("*.jpg")
    assert kept.read_bytes() == first.content
    kept.write_bytes(first.content[:-10])  # power failed
    assert small.ask(0, THUMB_PX).result(30) == first
    assert kept.read_bytes() == first.content
    Image.new("RGB", (9, 9), (0, 0, 255)).save(paths[0])
    other = small.ask(0, THUMB_PX).result(30)
    assert other.tag != first.tag
    assert opened(other.content).size == (9, 9)
    view = small.ask(1, VIEW_PX).result(30)
    assert small.ask(1, VIEW_PX).result(30) is not view or view.content
    assert len(list(cache.rglob("*.jpg"))) == 2  # views are not kept on disk
    small.close()
    assert small.ask(0, THUMB_PX).cancelled()


def test_jpeg_cache__removes_what_was_not_used_for_longest(tmp_path: Path) -> None:
    cache = JpegCache(tmp_path, max_bytes=2500)
    content, tags = b"\xff\xd8" + b"." * 996 + b"\xff\xd9", ["aa0", "ab1", "ab2", "b3"]
    days_ago = {tag: time.time() - 86400 * (10 - n) for n, tag in enumerate(tags)}
    for tag, used in days_ago.items():
        cache.put(tag, content)
        os.utime(next(tmp_path.rglob(f"{tag}.jpg")), (used, used))
    assert cache.get("aa0") == content  # which is used again
    cache.trim()
    assert [tag in cache for tag in tags] == [True, False, False, True]
    JpegCache(tmp_path / "none").trim()


def test_thumbnails__the_cache_is_trimmed_at_the_start(tmp_path: Path) -> None:
    old = tmp_path / "cache" / "ab" / "ab1.jpg"
    old.parent.mkdir(parents=True)
    with old.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)  # a file without blocks
    paths = paths_of(make_photos(tmp_path / "photos", 1))
    Thumbnails(paths.__getitem__, 1, folder=tmp_path / "cache", fills=False).close()
    assert not old.exists()


def test_thumbnails__all_are_made_while_nothing_is_asked(tmp_path: Path) -> None:
    paths = paths_of(make_photos(tmp_path / "photos", 30))
    (tmp_path / "photos" / "0005-blue.png").write_bytes(b"broken")
    done = threading.Event()

    def locate(index: int) -> str:
        if index == 29:
            done.set()
        return paths[index]

    small = Thumbnails(locate, 30, folder=tmp_path / "cache")
    assert done.wait(60)
    small.close()
    assert len(list((tmp_path / "cache").rglob("*.jpg"))) == 29
    assert list((tmp_path / "cache").rglob("*.partial")) == []


def test_thumbnails__what_is_asked_comes_before_the_rest(tmp_path: Path) -> None:
    paths = paths_of(make_photos(tmp_path / "photos", 30))
    looked: list[int] = []
    hold = threading.Event()

    def locate(index: int) -> str:
        looked.append(index)
        hold.wait(30)
        return paths[index]

    small = Thumbnails(locate, 30, folder=tmp_path / "cache", threads=1)
    while not looked:
        pass
    futures = [small.ask(index, THUMB_PX) for index in (20, 21, 22)]
    futures[1].cancel()  # scrolled past
    hold.set()
    futures[2].result(30)
    small.close()
    assert looked[:3] == [0, 20, 22]


def test_thumbnails__without_room_for_the_cache(tmp_path: Path) -> None:
    paths = paths_of(make_photos(tmp_path / "photos", 2, hw=(200, 300)))
    small = Thumbnails(paths.__getitem__, 2, folder=tmp_path / "cache", fills=False)
    with largest_file(100):
        content = small.ask(0, THUMB_PX).result(30).content
    assert opened(content).size == (300, 200)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    small.close()


def test_routes__thumb_and_view(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 3)
    gradient((2600, 3900)).save(photos / "large.jpg")
    (photos / "<b>&\n'.png").write_bytes(b"broken")
    names = sorted(path.name for path in photos.iterdir())
    with labeling(SessionPlan(photos, tmp_path / "labels.csv")) as page:
        large, broken = names.index("large.jpg"), names.index("<b>&\n'.png")
        thumb = page.client.get(f"/thumb/{large}")
        assert thumb.headers["content-type"] == "image/jpeg"
        assert opened(thumb.content).size == (320, 213)
        assert opened(page.client.get(f"/view/{large}").content).size == (2048, 1365)
        again = page.client.get(f"/thumb/{large}", headers={"If-None-Match": f'"x", {thumb.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert page.error(422, "GET", f"/thumb/{broken}")
        assert page.error(422, "GET", f"/view/{broken}")
        assert page.records(broken)[0]["name"] == "<b>&\n'.png"
        info = page.get(f"/api/image/{broken}/info")
        assert info["error"]
        assert page.client.head("/thumb/0").status_code == 200


@pytest.mark.skipif(os.name == "nt", reason="file names are Unicode there")
def test_routes__a_name_that_is_not_utf8(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 3)
    odd = os.fsdecode(b"\xff\xfe.png")
    try:
        os.rename(photos / "0000-red.png", photos / odd)
    except OSError:
        pytest.skip("this file system stores Unicode only")
    with labeling(SessionPlan(photos, tmp_path / "labels.csv")) as page:
        (record,) = [one for one in page.records(*page.listed("all")) if "\ufffd" in one["name"]]
        assert page.client.get(f"/thumb/{record['id']}").status_code == 200
        page.label([record["id"]], "red")
    with labeling(SessionPlan(photos, tmp_path / "labels.csv")) as page:
        assert page.records(record["id"])[0]["label"] == "red"
    assert os.fsencode(f"photos/{odd},red") in (tmp_path / "labels.csv").read_bytes()
