from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.full_disk import largest_file
from tl.errors import OutputError
from tl.runtime.output.job import KeptRow, open_ledger

SHA = "ab" * 32


def fill(path: Path, *, key: str = "models", resume: bool = False) -> Path:
    with open_ledger(path, key, resume=resume) as ledger:
        ledger.add("a.png", SHA, "a.png,red\n", failed=False)
        ledger.add("b\n\udce9.png", SHA, '"b\n\udce9.png",blue\n', failed=False)
        ledger.add("c.png", SHA, "c.png,,torn\n", failed=True)
        ledger.add("gone.png", "", "gone.png,,no such file\n", failed=True)
    return path


def kept(path: Path, *, key: str = "models", retry_failed: bool = False) -> list[KeptRow | None]:
    with open_ledger(path, key, resume=True, retry_failed=retry_failed) as ledger:
        return [ledger.known(name, SHA) for name in ("a.png", "b\n\udce9.png", "c.png", "gone.png")]


A, B, C = (
    KeptRow("a.png", "a.png,red\n", False),
    KeptRow("b\n\udce9.png", '"b\n\udce9.png",blue\n', False),
    KeptRow("c.png", "c.png,,torn\n", True),
)


def test_open_ledger__keeps_rows_by_path_and_content(tmp_path: Path) -> None:
    fill(tmp_path / "ledger")
    assert kept(tmp_path / "ledger") == [A, B, C, None]  # an unreadable file has no content hash, and is retried
    with open_ledger(tmp_path / "ledger", "models", resume=True) as ledger:
        assert len(ledger) == 3
        assert ledger.known("a.png", "cd" * 32) is None
        assert ledger.known("other.png", SHA) is None


def test_open_ledger__failures_are_tried_again_on_request(tmp_path: Path) -> None:
    fill(tmp_path / "ledger")
    assert kept(tmp_path / "ledger", retry_failed=True) == [A, B, None, None]


def test_open_ledger__the_last_line_of_a_image_counts(tmp_path: Path) -> None:
    fill(tmp_path / "ledger")
    with open_ledger(tmp_path / "ledger", "models", resume=True, retry_failed=True) as ledger:
        ledger.add("c.png", SHA, "c.png,green\n", failed=False)
    assert kept(tmp_path / "ledger")[2] == KeptRow("c.png", "c.png,green\n", False)


def test_open_ledger__other_models_or_no_resume_begin_anew(tmp_path: Path) -> None:
    fill(tmp_path / "ledger")
    assert kept(tmp_path / "ledger", key="other models") == [None] * 4
    fill(tmp_path / "ledger")
    with open_ledger(tmp_path / "ledger", "models", resume=False) as ledger:
        assert ledger.known("a.png", SHA) is None
    assert kept(tmp_path / "ledger") == [None] * 4


def test_open_ledger__cut_anywhere_keeps_the_whole_lines(tmp_path: Path) -> None:
    path = fill(tmp_path / "ledger")
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        lines = content[:size].count(b"\n") - 1
        assert kept(tmp_path / "ledger") == [row if i < lines else None for i, row in enumerate((A, B, C, None))], size
        with open_ledger(tmp_path / "ledger", "models", resume=True) as ledger:  # and continues after them
            ledger.add("d.png", SHA, "d\n", failed=False)
        with open_ledger(tmp_path / "ledger", "models", resume=True) as ledger:
            assert ledger.known("d.png", SHA) == KeptRow("d.png", "d\n", False)


@pytest.mark.parametrize(
    "content", [b"", b"\0\xff nothing\n{}\n", b'{"ledger": 99, "key": "models"}\n{"path": "a.png"}\n']
)
def test_open_ledger__a_foreign_file_is_no_ledger(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger").write_bytes(content)
    assert kept(tmp_path / "ledger") == [None] * 4


@pytest.mark.parametrize("line", [b"null\n", b'{"path": 1, "sha256": 2}\n', b"\xff\n"])
def test_open_ledger__what_follows_a_faulty_line_is_dropped(tmp_path: Path, line: bytes) -> None:
    path = fill(tmp_path / "ledger")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], line, *lines[2:]]))
    assert kept(tmp_path / "ledger") == [A, None, None, None]


def test_open_ledger__a_line_is_on_disk_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl.runtime.output.job._SECONDS_BETWEEN_FLUSHES", 0.0)
    with open_ledger(tmp_path / "ledger", "models", resume=False) as ledger:
        ledger.add("a.png", SHA, "a\n", failed=False)
        assert json.loads((tmp_path / "ledger").read_bytes().splitlines()[1])["path"] == "a.png"


def test_open_ledger__full_disk(tmp_path: Path) -> None:
    def fill_disk() -> None:
        with largest_file(20_000), open_ledger(tmp_path / "ledger", "models", resume=False) as ledger:
            for i in range(1000):
                ledger.add(f"{i}.png", SHA, "a row of some length\n", failed=False)

    with pytest.raises(OutputError, match=r"ledger: cannot be written \(File too large\)"):
        fill_disk()


def test_open_ledger__does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "theirs.txt").write_text("precious")
    (tmp_path / "ledger").symlink_to(tmp_path / "theirs.txt")
    with pytest.raises(OutputError, match="Too many levels of symbolic links"):
        fill(tmp_path / "ledger")
    assert (tmp_path / "theirs.txt").read_text() == "precious"
