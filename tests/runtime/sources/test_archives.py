from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tl.errors import DataError, ImageReadError
from tl.runtime.sources.archives import is_archive, iter_members
from tl.runtime.sources.inputs import find_inputs

FILES = {"b/2.png": b"two" * 700, "a.png": b"", "b/ü 1.png": bytes(range(256)) * 4}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
}


def make_tar(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def read_all(path: Path) -> dict[str, bytes]:
    return {member.name: member.read() for member in iter_members(str(path)) if member.kind == "file"}


@pytest.mark.parametrize("suffix", PACKERS)
def test_iter_members__tar_in_stored_order(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(PACKERS[suffix](make_tar(FILES)))
    assert is_archive(str(path))
    assert list(read_all(path).items()) == list(FILES.items())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_iter_members__zip_in_stored_order(tmp_path: Path, method: int) -> None:
    assert list(read_all(make_zip(tmp_path / "X.ZIP", FILES, method)).items()) == list(FILES.items())


def test_iter_members__folders_and_links_are_named_so(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in (
            ("./d", tarfile.DIRTYPE),
            ("./d/l.png", tarfile.SYMTYPE),
            ("h.png", tarfile.LNKTYPE),
            ("f.png", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    link = zipfile.ZipInfo("l.png")
    link.create_system, link.external_attr = 3, stat.S_IFLNK << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive_zip:
        archive_zip.writestr(link, "/etc/passwd")
        archive_zip.mkdir("d")
    tar = [(member.name, member.kind) for member in iter_members(str(tmp_path / "x.tar"))]
    assert tar == [("d", "folder"), ("d/l.png", "link"), ("h.png", "link"), ("f.png", "link")]
    assert [(member.name, member.kind) for member in iter_members(str(tmp_path / "x.zip"))] == [
        ("l.png", "link"),
        ("d/", "folder"),
    ]


def test_iter_members__a_damaged_zip_member_spoils_itself_alone(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", FILES, zipfile.ZIP_STORED)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"twotwo", b"TWOtwo", 1))
    members = {member.name: member for member in iter_members(str(path))}
    reader = iter_members(str(path))
    with pytest.raises(ImageReadError, match=r"x\.zip/b/2\.png: damaged in the archive \(Bad CRC-32"):
        next(reader).read()
    assert next(reader).read() == b""
    assert set(members) == set(FILES)


class UnflaggedInfo(zipfile.ZipInfo):
    """A member whose name is stored as macOS does: UTF-8, without the flag that says so."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802
        return self.filename.encode(), self.flag_bits


@pytest.mark.parametrize(
    ("stored", "read"), [("Käfer/ü.png", "Käfer/ü.png"), ("b\\1.png", "b/1.png"), (".\\2.png", "2.png")]
)
def test_iter_members__zip_names_of_macos_and_windows(tmp_path: Path, stored: str, read: str) -> None:
    info = UnflaggedInfo("x")
    info.filename = stored
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, b"content")
    assert [(member.name, member.read()) for member in iter_members(str(tmp_path / "a.zip"))] == [(read, b"content")]


def test_iter_members__zip_names_in_an_old_code_page(tmp_path: Path) -> None:
    info = UnflaggedInfo("x")
    info._encodeFilenameFlags = lambda: ("é.png".encode("cp437"), 0)  # type: ignore[method-assign]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, b"content")
    assert [member.name for member in iter_members(str(tmp_path / "a.zip"))] == ["é.png"]


def test_find_inputs__hidden_files_of_macos_and_windows(tmp_path: Path) -> None:
    files = {"a/1.png": b"", "__MACOSX/a/._1.png": b"", "a\\.thumbs\\2.png": b"", "a/.DS_Store": b""}
    found = find_inputs([make_zip(tmp_path / "a.zip", files)])
    assert len(found) == 1
    assert found.passed_over == "3 hidden"


def test_iter_members__encrypted_zip_member(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"a.png": b"secret"}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag in the local header
    content[content.index(b"PK\1\2") + 8] |= 1  # and in the central directory
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match=r"a\.png: encrypted: extract"):
        read_all(path)


def test_iter_members__a_zip_bomb_unpacks_to_no_more_than_it_declares(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"a.png": bytes(50_000_000)})
    content = bytearray(path.read_bytes())
    size = struct.pack("<I", 50_000_000)
    assert content.count(size) == 2
    path.write_bytes(content.replace(size, struct.pack("<I", 1000)))
    with pytest.raises(ImageReadError, match="Bad CRC-32"):
        read_all(path)


def test_iter_members__members_that_declare_too_much(tmp_path: Path) -> None:
    content = bytes((1 << 20) + 1)
    (tmp_path / "x.tar").write_bytes(make_tar({"a.png": content}))
    for path in tmp_path / "x.tar", make_zip(tmp_path / "x.zip", {"a.png": content}):
        with pytest.raises(ImageReadError, match=r"a\.png: 1048577 bytes, above the limit of 1 MiB for images in arch"):
            [member.read() for member in iter_members(str(path), 1 << 20)]
        assert [member.read() for member in iter_members(str(path), 2 << 20)] == [content]


@pytest.mark.parametrize("suffix", PACKERS)
def test_iter_members__a_cut_tar_is_an_error(tmp_path: Path, suffix: str) -> None:
    content = PACKERS[suffix](make_tar({f"{i}.png": bytes(range(256)) * 9 for i in range(9)}))
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"x\.\S+: damaged, or not the archive format"):
        list(iter_members(str(path)))


def test_iter_members__a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    content = bytearray(make_tar(FILES))
    second = content.index(b"a.png\0")
    content[second + 150] ^= 1  # its checksum
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match="bad checksum"):
        list(iter_members(str(tmp_path / "x.tar")))


def test_iter_members__a_bad_checksum_at_the_end_of_gzip(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(make_tar(FILES)))
    content[-8] ^= 1
    (tmp_path / "x.tgz").write_bytes(content)
    with pytest.raises(DataError, match="CRC check failed"):
        list(iter_members(str(tmp_path / "x.tgz")))


def test_iter_members__sizes_that_lead_back_do_not_hang(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.png")
        info.pax_headers = {"size": "-1536"}
        archive.addfile(info)
    (tmp_path / "x.tar").write_bytes(stream.getvalue())
    with pytest.raises(DataError, match="damaged"):
        list(iter_members(str(tmp_path / "x.tar")))


def test_iter_members__headers_that_declare_too_much(tmp_path: Path) -> None:
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match="a header declares 8589934592 bytes"):
        list(iter_members(str(tmp_path / "x.tar")))


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
@pytest.mark.parametrize("content", [b"", b"neither zip nor tar", b"PK\3\4 cut"])
def test_iter_members__no_archive(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="damaged, or not the archive format that its extension indicates"):
        list(iter_members(str(tmp_path / name)))
