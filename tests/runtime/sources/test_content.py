from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest

from tl.errors import ImageReadError
from tl.runtime.sources import paths as content
from tl.runtime.sources.paths import hash_file, read_content

DATA = b"some image"
DIGEST = hashlib.sha256(DATA).hexdigest()


def test_read_content__every_kind_of_source(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(DATA)
    for source in (path, str(path), DATA, io.BytesIO(DATA)):
        assert read_content(source) == (DATA, DIGEST)
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    found, digest = read_content(array[:, ::2])
    assert digest == hashlib.sha256(array[:, ::2].tobytes()).hexdigest()
    assert np.array_equal(np.asarray(found), array[:, ::2])


def test_read_content__a_large_file_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_READ_WHOLE_BYTES", len(DATA) - 1)
    (tmp_path / "a.png").write_bytes(DATA)
    assert read_content(tmp_path / "a.png") == (tmp_path / "a.png", DIGEST)
    assert hash_file(tmp_path / "a.png") == DIGEST


def test_read_content__what_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (("gone", "No such file"), ("fifo", "not a regular file"), (".", "not a regular file")):
        with pytest.raises(ImageReadError, match=reason):
            read_content(str(tmp_path / name))
