"""Read the members of zip and tar archives in stored order, without extracting to disk.

Adds the checks and limits that zipfile and tarfile lack. `inputs` determines which members are images.
"""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from tl.errors import DataError, ImageReadError

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

# A member that declares a larger size is rejected before it fills the memory: several are held at a time.
MAX_MEMBER_BYTES = 128 << 20
_TarMode = Literal["r:", "r:gz", "r:bz2", "r:xz"]
_TAR_MODES: dict[bytes, _TarMode] = {b"\x1f\x8b": "r:gz", b"BZh": "r:bz2", b"\xfd7zXZ\0": "r:xz"}
# Headers that tarfile reads completely, whatever size they declare: long names and extended headers.
_HEADERS = tarfile.GNUTYPE_LONGNAME + tarfile.GNUTYPE_LONGLINK + tarfile.XHDTYPE + tarfile.XGLTYPE
_HEADERS += tarfile.SOLARIS_XHDTYPE
_MAX_HEADER_BYTES = 1 << 20

_ENCRYPTED, _UTF_8 = 0x1, 0x800  # Source: PKWARE APPNOTE 6.3.10, 4.4.4
_UNIX = 3  # Source: the same, 4.4.2.2


@dataclass(frozen=True)
class Member:
    """One member. `name`: as stored, without a leading `./`. `kind`: "link" also for devices and the like.

    `read` returns the file's bytes and is valid until the next member is requested. It raises `ImageReadError` for
    errors that affect only this member.
    """

    name: str
    kind: Literal["file", "folder", "link"]
    read: Callable[[], bytes]


def is_archive(path: str) -> bool:
    """Return whether a path is a file with an archive's extension."""
    return path.lower().endswith(ZIP_SUFFIXES + TAR_SUFFIXES) and os.path.isfile(path)


def iter_members(path: str, max_bytes: int = MAX_MEMBER_BYTES) -> Iterator[Member]:
    """Yield all members. Raises `DataError` if the archive is damaged or its extension does not match its type.

    `max_bytes`: a larger member is not read.
    """
    members = _zip_members if path.lower().endswith(ZIP_SUFFIXES) else _tar_members
    with _archive_errors(path):
        yield from members(path, max_bytes)


@contextmanager
def _archive_errors(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zipfile and tarfile raise almost any type on damaged files
        raise DataError(
            f"{path}: damaged, or not the archive format that its extension indicates ({_reason(error)})"
        ) from error


def _zip_members(path: str, max_bytes: int) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            is_link = info.create_system == _UNIX and stat.S_ISLNK(info.external_attr >> 16)
            kind: Literal["file", "folder", "link"] = "folder" if info.is_dir() else "link" if is_link else "file"
            yield Member(_zip_name(info), kind, _zip_reader(archive, info, path, max_bytes))


def _zip_name(info: zipfile.ZipInfo) -> str:
    r"""The name of a member: UTF-8 also without the flag for it, as macOS writes it, and `/` for Windows' `\`."""
    name = info.filename
    if not info.flag_bits & _UTF_8:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/").removeprefix("./")


def _zip_reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str, max_bytes: int) -> Callable[[], bytes]:
    def read() -> bytes:
        name = f"{path}/{_zip_name(info)}"
        if info.flag_bits & _ENCRYPTED:
            raise ImageReadError(name, "encrypted: extract the archive with its password")
        _check_size(name, info.file_size, max_bytes)
        try:
            with archive.open(info) as member:
                if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    return member.read(info.file_size)  # no more than declared; the checksum detects a wrong size
                # For other methods, zipfile decompresses all data of a read at once.
                return b"".join(iter(lambda: member.read(4096), b""))
        except Exception as error:  # as in `_archive_errors`
            raise ImageReadError(name, f"damaged in the archive ({_reason(error)})") from error

    return read


def _tar_members(path: str, max_bytes: int) -> Iterator[Member]:
    with tarfile.open(path, _tar_mode(path), tarinfo=_StrictTarInfo, errors="surrogateescape") as archive:
        end = -1
        while (info := archive.next()) is not None:
            if info.size < 0 or info.offset_data <= end:  # extended headers can declare sizes that lead back
                raise tarfile.ReadError("members overlap")
            end = info.offset_data
            kind: Literal["file", "folder", "link"] = "file" if info.isreg() else "folder" if info.isdir() else "link"
            yield Member(info.name.removeprefix("./"), kind, _tar_reader(archive, info, path, max_bytes))
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all of them in memory
        while archive.fileobj is not None and archive.fileobj.read(1 << 18):  # the last bytes can be a checksum
            pass


def _tar_mode(path: str) -> _TarMode:
    """Detect the mode from the first bytes; tarfile would try every mode and raise a very long error message."""
    with open(path, "rb") as stream:
        start = stream.read(6)
    return next((mode for magic, mode in _TAR_MODES.items() if start.startswith(magic)), "r:")


def _tar_reader(archive: tarfile.TarFile, info: tarfile.TarInfo, path: str, max_bytes: int) -> Callable[[], bytes]:
    def read() -> bytes:
        _check_size(f"{path}/{info.name}", info.size, max_bytes)
        with _archive_errors(path):
            member = archive.extractfile(info)
            return b"" if member is None else member.read()

    return read


class _StrictTarInfo(tarfile.TarInfo):
    """Read headers as tarfile does, but raise an error for a damaged one instead of ending the archive there."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictTarInfo:
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in _HEADERS and info.size > _MAX_HEADER_BYTES):
            raise tarfile.ReadError(f"a header declares {info.size} bytes")
        return info

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end-of-archive marker
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _check_size(name: str, num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        limit = f"{num_bytes} bytes, above the limit of {max_bytes >> 20} MiB"
        raise ImageReadError(name, f"{limit} for images in archives: raise max_file_size, or extract the archive")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
