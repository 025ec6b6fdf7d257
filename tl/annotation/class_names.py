"""The names of classes that can be given on a page: those that training and prediction accept, spelled in one way."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from tl.annotation.refusals import Refused
from tl.runtime.ensembles.selective import REJECTED
from tl.runtime.sources.names import composed

_MAX_NAME = 100


def spell(name: str) -> str:
    """Return the name of a class as it is written: composed, with single spaces."""
    return composed(" ".join(name.split()))


def check_class_name(name: str, others: Iterable[str]) -> str:
    """Return the name of a new class as `spell` writes it. `others`: the classes there are.

    Raises `Refused` for a name that cannot be used, or that differs from another only in its spelling.
    """
    name = spell(name)
    if not name or len(name) > _MAX_NAME:
        raise Refused("invalid", f"the name of a class has 1 to {_MAX_NAME} characters")
    if name == REJECTED or any(unicodedata.category(sign) in ("Cc", "Cs", "Cf") for sign in name):
        raise Refused("invalid", f"{name!r} cannot be the name of a class")
    if twin := next((other for other in others if _plain(other) == _plain(name)), ""):
        raise Refused("conflict", f"there is a class '{twin}' already")
    return name


def _plain(name: str) -> str:
    """A name as `data.manifests` compares labels, which may not differ in spelling only."""
    return unicodedata.normalize("NFKC", spell(name)).casefold()
