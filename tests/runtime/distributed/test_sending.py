"""Images that are sent to workers are read once; messages contain no credentials."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tl.errors import ImageReadError
from tl.runtime import Box
from tl.runtime.distributed.ray_predictor import _Images, _with_content
from tl.runtime.sources import paths
from tl.runtime.sources.boxed_images import BoxedImage
from tl.runtime.sources.memory_files import MemoryFile, UnreadableFile
from tl.runtime.streams import nothing_known


def test_with_content__is_read_once_and_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("nobody needs the hash")

    for name in ("sha256", "file_digest"):
        monkeypatch.setattr(hashlib, name, fail)
    path = tmp_path / "a.png"
    path.write_bytes(b"some image")
    for limit in (1, 1 << 20):
        monkeypatch.setattr(paths, "_READ_WHOLE_BYTES", limit)
        for found in (_with_content(str(path)), _with_content(BoxedImage(path, Box((0, 0, 1, 1)))).source):  # type: ignore[union-attr]
            assert isinstance(found, MemoryFile)
            assert (found.name, found.read()) == (str(path), b"some image")


def test_with_content__what_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (("gone", "No such file"), ("fifo", "not a regular file"), (".", "not a regular file")):
        found = _with_content(str(tmp_path / name))
        assert isinstance(found, UnreadableFile)
        assert found.name == str(tmp_path / name)
        with pytest.raises(ImageReadError, match=reason):
            found.read()


def test_describe__without_credentials() -> None:
    chunk = _Images(["http://user:pass@host/a.png?token=x", "b.png"], None, nothing_known, hashes=False)
    assert chunk.describe() == "http://host/a.png to b.png"
