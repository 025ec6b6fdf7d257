"""Write files atomically, so that no incomplete file ever has its final name; raise I/O errors as `OutputError`.

Existing files are replaced only if that was asked for, and symbolic links are never written through.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tl.errors import OutputError

# Outputs of this process, by absolute path, that did not exist when they were checked, and so must not be replaced.
_checked_new: set[str] = set()
# Temporary and accompanying files add to the name; file systems allow 255 bytes.
_MAX_NAME_BYTES = 220


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it, on failure remove it."""
    final = Path(path)
    temporary = final.with_name(f".{final.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
    with output_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            give_name(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)


def give_name(temporary: Path, final: Path) -> None:
    """Rename a finished file. One that has appeared since `check_output` is not replaced. Raises `OutputError`."""
    name = os.path.abspath(final)
    if name not in _checked_new:
        temporary.replace(final)
        return
    _checked_new.discard(name)
    try:
        os.link(temporary, final)  # unlike a rename, fails if the name exists
    except FileExistsError:
        raise OutputError(
            f"{final}: another process has written it meanwhile: give another name, or replace it",
            options=["overwrite"],
        ) from None
    except OSError:  # a file system without links
        temporary.replace(final)
        return
    temporary.unlink()


def check_output(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Check, before any work, that `path` can become a new file; creates its folder. Raises `OutputError`."""
    final = Path(path)
    with output_errors(final):
        if final.is_symlink():
            raise OutputError(f"{final}: is a symbolic link to {os.readlink(final)}: give the name of a file")
        if final.is_dir():
            raise OutputError(f"{final}: is a folder: give the name of a file")
        final.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(final.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        exists = os.path.lexists(final)
        if len(os.fsencode(final.name)) > _MAX_NAME_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if exists and not final.is_file():
        raise OutputError(f"{final}: is not a regular file: give another name")
    if exists and not overwrite:
        raise OutputError(f"{final}: exists: give another name, or replace it", options=["overwrite"])
    if not exists and not overwrite:
        _checked_new.add(os.path.abspath(final))


def check_output_folder(folder: str | os.PathLike[str]) -> None:
    """Check, before any work, that files can be written into a folder, which need not exist. Raises `OutputError`."""
    path = Path(folder)
    above = next(part for part in (path, *path.absolute().parents) if os.path.lexists(part))
    if not above.is_dir():
        raise OutputError(f"{path}: {above} is a file: give the name of a folder")
    with output_errors(path):
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def no_follow(path: str, flags: int) -> int:
    """An `opener` for `open` that refuses a symbolic link, as a name that only tl uses should not be one."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically; file names that are not UTF-8 keep their bytes. Raises `OutputError`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


@contextmanager
def output_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Convert file system errors while writing `path` to `OutputError`."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of stdout has closed it: not an error of the output file
    except OSError as error:
        raise OutputError(f"{os.fspath(path)}: cannot be written ({error.strerror or error})") from error
