"""Images in object stores and on web servers: `s3://`, `gs://`, `az://`, `https://`, listed and read through fsspec.

The only file that imports fsspec. Credentials come from the environment, as each store's own tools read them. Nothing
is stored on disk. Whole objects are read, a few ahead of their use; what may pass is tried again.
"""

from __future__ import annotations

import errno
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from tl.errors import DataError, ImageReadError, MissingExtraError
from tl.runtime.prefetch import prefetch_map
from tl.runtime.sources.boxed_images import BoxedImage, PredictionSource
from tl.runtime.sources.memory_files import MemoryFile, UnreadableFile
from tl.runtime.sources.paths import is_hidden, matches

Done = TypeVar("Done")
# Scheme -> the extra that brings its package, and what the user may have to set.
_EXTRAS = {
    **dict.fromkeys(("s3",), ("s3", "AWS_ACCESS_KEY_ID, AWS_PROFILE or AWS_ENDPOINT_URL")),
    **dict.fromkeys(("gs", "gcs"), ("gcs", "GOOGLE_APPLICATION_CREDENTIALS")),
    **dict.fromkeys(("az", "abfs", "abfss"), ("azure", "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY")),
    **dict.fromkeys(("http", "https"), ("http", "the address")),
}
_REMOTE = re.compile(rf"({'|'.join(_EXTRAS)})://?(?=[^/])", re.IGNORECASE)
# Parameters of an address that give access, and so belong into no row. Source: AWS Signature Version 4, Google's V4
# signed URLs, the shared access signatures of Azure.
_SECRETS = re.compile(
    r"x-(amz|goog)-.*|sig(nature)?|s[eprvtk]|ske|skoid|sktid|skt|sks|skv|.*token|.*key.*|expires", re.I
)
# Reading waits for the network, not for cores.
_READERS, _AHEAD = 16, 16
_ATTEMPTS, _FIRST_WAIT_S = 5, 0.5
_SECONDS_TO_CONNECT, _SECONDS_TO_READ = 10, 60
_CONNECTING = {"EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError", "ServiceRequestError"}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "NoAuthTokenError"}
_DEFAULT_MAX_BYTES = 128 << 20


def is_remote(name: object) -> bool:
    """Return whether a source is an address of an object store or a web server."""
    return isinstance(name, str) and ":/" in name[:9] and _REMOTE.match(name) is not None


def remote_name(name: str) -> str:
    """Return an address with both slashes, of which `pathlib` leaves one; "" for a local name."""
    found = _REMOTE.match(name)
    return f"{found[1].lower()}://{name[found.end() :]}" if found else ""


def shown_name(name: str) -> str:
    """Return an address as rows show it, without credentials; any other name as it is."""
    if not is_remote(name) or ("?" not in name and "@" not in name):
        return name
    name = remote_name(name)
    if not name.startswith("http"):
        return name
    parts = urlsplit(name)
    kept = [
        (key, value) for key, value in parse_qsl(parts.query, keep_blank_values=True) if not _SECRETS.fullmatch(key)
    ]
    query = parts.query if len(kept) == len(parse_qsl(parts.query, keep_blank_values=True)) else urlencode(kept)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query))


def iter_opened(sources: Iterable[PredictionSource], max_bytes: int = _DEFAULT_MAX_BYTES) -> Iterator[PredictionSource]:
    """Yield sources in order, with remote ones read into memory, up to `_AHEAD` of them before they are needed.

    One that cannot be read becomes an `UnreadableFile`. Starts no thread if none is remote.
    """
    rest = iter(sources)
    for source in rest:
        if is_remote(source.source if isinstance(source, BoxedImage) else source):
            read = partial(_opened, max_bytes=max_bytes)
            yield from prefetch_map(read, chain([source], rest), workers=_READERS, ahead=_AHEAD)
            return
        yield source


def _opened(source: PredictionSource, max_bytes: int) -> PredictionSource:
    if isinstance(source, BoxedImage):
        opened = _opened(source.source, max_bytes)
        return source if isinstance(opened, BoxedImage) else replace(source, source=opened)  # type: ignore[arg-type]
    if not isinstance(source, str) or not is_remote(source):
        return source
    address = remote_name(source)
    name = shown_name(address)
    try:
        return MemoryFile(name, read_remote(address, max_bytes))
    except ImageReadError as error:
        return UnreadableFile(name, error.reason)


def read_remote(name: str, max_bytes: int = _DEFAULT_MAX_BYTES) -> bytes:
    """Return the content of an object. Raises `ImageReadError`, also for more than `max_bytes`."""
    try:
        system, path = _system(name)
        content = _retried(lambda: _read(system, path, max_bytes + 1))
    except MissingExtraError:
        raise
    except Exception as error:
        raise ImageReadError(shown_name(name), _reason(error)) from error
    if len(content) > max_bytes:
        limit = f"above the limit of {max_bytes >> 20} MiB for images that are read into memory"
        raise ImageReadError(shown_name(name), f"{limit}: raise max_file_size")
    return content


def _read(system: Any, path: str, end: int) -> bytes:
    try:
        return bytes(system.cat_file(path, start=0, end=end))
    except OSError as error:
        if error.errno == errno.EINVAL or getattr(error, "status", 0) == 416:  # a range of an empty object
            return b""
        raise


def check_reachable(name: str) -> None:
    """Raise `DataError` at once if the server or the bucket of an object cannot be reached or does not exist."""
    system, path = _system(name)
    bucket = path.split("/")[0]
    try:
        if name.lower().startswith("s3"):
            _retried(lambda: system.call_s3("head_bucket", Bucket=bucket), connects=False)
        else:
            _retried(partial(system.info if name.lower().startswith("http") else system.ls, path), connects=False)
    except PermissionError:
        return  # who may read objects need not be allowed to list them
    except Exception as error:
        if name.lower().startswith("http") and not _kinds(error) & _CONNECTING:
            return  # an answer: the server is there, and what it says of this object is told in its row
        raise _unusable(name, error) from error


def list_remote(name: str) -> tuple[Iterator[str], bool]:
    """Return the addresses that a name means, and whether these are all in a folder (a prefix that ends at a `/`).

    Otherwise they are the object itself, or the sorted matches of a pattern. As `paths` lists local folders, the
    objects of a folder come before its folders, and hidden folders are named and not opened. Raises `DataError`, also
    during iteration. `name`: as of `remote_name`.
    """
    scheme = name.partition("://")[0].lower()
    if scheme.startswith("http"):
        if urlsplit(name).path.endswith("/") or urlsplit(name).path == "":
            raise DataError(f"{shown_name(name)}: web servers do not list folders: give addresses in a list of files")
        check_reachable(name)
        return iter([name]), False
    system, path = _system(name)
    parts = path.rstrip("/").split("/")
    fixed = next((i for i, part in enumerate(parts) if any(sign in part for sign in "*?[")), len(parts))
    if not parts[0] or not fixed:
        raise DataError(f"{name}: expected the name of a bucket, as in {scheme}://BUCKET/FOLDER")
    start, pattern = "/".join(parts[:fixed]), parts[fixed:]
    try:
        if len(parts) > 1 and not pattern and not name.endswith("/") and _is_file(system, start):
            return iter([name]), False
    except Exception as error:
        raise _unusable(name, error) from error
    return _named(name, system, scheme, start, pattern), not pattern


def _named(name: str, system: Any, scheme: str, start: str, pattern: Sequence[str]) -> Iterator[str]:
    """Yield what is below `start`, and matches a pattern if one is given. Raises `DataError` if nothing does."""
    is_any = False
    try:
        for path in _walk(system, scheme, start):
            below = path[len(start) + 1 :].split("/")
            if pattern and (below[-1].startswith(".") or not matches(below, pattern)):
                continue
            is_any = True
            yield f"{scheme}://{path}"
    except DataError:
        raise
    except Exception as error:
        raise _unusable(name, error) from error
    if not is_any:
        raise DataError(f"{name}: no such object or folder" + (", and none matches it as a pattern" * bool(pattern)))


def _walk(system: Any, scheme: str, folder: str) -> Iterator[str]:
    folders: list[str] = []
    for files, more in _pages(system, scheme, folder):
        yield from files
        folders += more
    for each in sorted(folders):
        if is_hidden(each.rpartition("/")[2]):
            yield each
        else:
            yield from _walk(system, scheme, each)


def _pages(system: Any, scheme: str, folder: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the files and the folders of one folder, in pieces: S3 in pages of 1000, others at once."""
    if scheme != "s3":
        entries = _retried(lambda: system.ls(folder, detail=True), connects=False)
        names = [(entry["name"].rstrip("/"), entry["type"] == "directory") for entry in entries]
        files = sorted(name for name, is_folder in names if not is_folder and name != folder)
        yield files, [name for name, is_folder in names if is_folder and name != folder]
        return
    bucket, _, key = folder.partition("/")
    asked = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "Delimiter": "/"}
    while True:
        page = _retried(partial(system.call_s3, "list_objects_v2", **asked), connects=False)
        files = [found["Key"] for found in page.get("Contents", ()) if not found["Key"].endswith("/")]
        folders = [found["Prefix"].rstrip("/") for found in page.get("CommonPrefixes", ())]
        yield [f"{bucket}/{one}" for one in files], [f"{bucket}/{one}" for one in folders]
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def _is_file(system: Any, path: str) -> bool:
    try:
        return bool(_retried(lambda: system.info(path), connects=False)["type"] == "file")
    except FileNotFoundError:
        return False


def _system(name: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it. Raises `MissingExtraError`."""
    scheme, _, path = name.partition("://")
    scheme = scheme.lower()
    system = _open_system(scheme)
    return system, name if scheme.startswith("http") else path


@cache
def _open_system(scheme: str) -> Any:
    extra = _EXTRAS[scheme][0]
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if extra == "s3":  # tried again here, and not by each layer below as well
        timeouts = {"connect_timeout": _SECONDS_TO_CONNECT, "read_timeout": _SECONDS_TO_READ}
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}, "max_pool_connections": _READERS, **timeouts}
    try:
        import fsspec  # type: ignore[import-untyped]

        system = fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise MissingExtraError(
            f"{scheme}:// requires an additional package: pip install 'tl-toolkit[{extra}]'"
        ) from error
    except Exception as error:  # the packages of stores look for credentials at once
        raise DataError(f"{scheme}://: cannot be opened ({_reason(error)}): check {_EXTRAS[scheme][1]}") from error
    if extra == "s3":
        system.retries = 1
    return system


def _retried(ask: Callable[[], Done], *, connects: bool = True) -> Done:
    """Return what `ask` returns, asking again after errors that may pass. `connects`: also if no connection is made."""
    for attempt in range(_ATTEMPTS):
        try:
            return ask()
        except Exception as error:
            if attempt == _ATTEMPTS - 1 or not _may_pass(error, connects):
                raise
            time.sleep(_FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1))
    raise AssertionError


def _may_pass(error: Exception, connects: bool) -> bool:
    kinds = _kinds(error)
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in (408, 429)
    if kinds & _NO_CREDENTIALS or (not connects and kinds & _CONNECTING):
        return False
    permanent = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError)
    return not isinstance(error, permanent)


def _kinds(error: BaseException) -> set[str]:
    """Names of the classes of an error and of its causes: their packages need not be installed."""
    kinds: set[str] = set()
    cause: BaseException | None = error
    while cause is not None:
        kinds |= {kind.__name__ for kind in type(cause).__mro__}
        cause = cause.__cause__
    return kinds


def _unusable(name: str, error: Exception) -> DataError:
    scheme = name.partition("://")[0].lower()
    bucket = name.partition("://")[2].partition("/")[0]
    place, kinds = shown_name(name), _kinds(error)
    extra, variables = _EXTRAS[scheme]
    if kinds & _CONNECTING:
        return DataError(f"{place}: the server cannot be reached ({_reason(error)}): check the network and {variables}")
    if kinds & _NO_CREDENTIALS:
        return DataError(f"{place}: no credentials found: set {variables}")
    if isinstance(error, PermissionError):
        return DataError(f"{place}: access denied ({_reason(error)}): check the credentials and their rights")
    if isinstance(error, FileNotFoundError) and extra != "http":
        return DataError(f"{place}: no such object or folder; or the bucket '{bucket}' does not exist")
    return DataError(f"{place}: cannot be listed ({_reason(error)})")


def _reason(error: Exception) -> str:
    """One line without addresses, which may contain credentials."""
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return f"HTTP {status} {getattr(error, 'message', '')}".strip()
    if isinstance(error, FileNotFoundError):
        return "no such object"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    plain = re.sub(r"(\w+://[^\s?'\"]*)\?[^\s'\"]*", r"\1", " ".join(str(said).split()))
    return plain[:200] or type(error).__name__
