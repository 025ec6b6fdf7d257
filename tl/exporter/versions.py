"""Which versions of libraries a model file was made with. Knows installed packages; imports none of them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

from tl import __version__


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Version of this toolkit and of those of the named distributions that are installed."""
    versions = {"tl-toolkit": __version__}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
