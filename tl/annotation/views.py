"""What a page shows of a session, as plain values: lists of images, records, counts, and a close look at one image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tl.annotation.features import FeatureWork
from tl.annotation.labels import LABELED, OPEN, STATUS_NAMES, Labels
from tl.annotation.learning import Learned
from tl.annotation.page_requests import Refused
from tl.annotation.photos import Photos, fold
from tl.annotation.selection import find_similar
from tl.errors import ImageReadError
from tl.runtime.imaging.decode import read_size
from tl.runtime.imaging.exif import read_facts
from tl.text import encodable

View = Literal["next", "suggested", "all", "labeled", "unsure", "skipped", "similar", "errors"]
# Images that a window is offered at a time, and that are found to be like others.
QUEUE, SIMILAR = 40, 400
_MAX_LIKE = 50
_NEIGHBORS = 6

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Asked:
    """A list that is asked for. `name`: of a class. `like`: images. `status`, `search`: narrow any view but `next`.

    `kept`: images of `next` that the window shows, and that stay where they are.
    """

    view: View
    name: str | None = None
    like: tuple[int, ...] = ()
    status: str | None = None
    search: str = ""
    window: str = ""
    kept: tuple[int, ...] = ()


@dataclass(frozen=True)
class ViewSources:
    """What views are made of: photos, labels, features, and which images are reserved, bool (N,)."""

    photos: Photos
    labels: Labels
    work: FeatureWork
    reserved: NDArray[np.bool_]


def record(sources: ViewSources, learned: Learned, image: int) -> dict[str, Any]:
    """Return what a page shows of an image. Images of the reserve have no suggestion before a label: blind."""
    labels = sources.labels
    status, label = int(labels.status[image]), int(labels.label[image])
    names = labels.class_names
    is_blind = bool(sources.reserved[image]) and status != LABELED
    # A class may have been merged into another one since the head was fitted.
    top = [] if is_blind else [one for one in learned.top(image) if labels.has_class(one[0])]
    error = sources.work.errors.get(image)
    return {
        "id": image,
        "name": encodable(sources.photos.names[image]),
        "label": names[label] if label >= 0 else None,
        "status": STATUS_NAMES[status],
        "suggestion": names[top[0][0]] if top else None,
        "confidence": round(top[0][1], 4) if top else None,
        "top": [[names[i], round(share, 4)] for i, share in top] or None,
        "note": labels.notes.get(image, ""),
        "version": int(labels.version[image]),
        "error": None if error is None else encodable(error),
        "is_reserved": bool(sources.reserved[image]),
    }


def listed(sources: ViewSources, learned: Learned, asked: Asked) -> Indices:
    """Return the images of a view other than `next` and `similar`. Raises `Refused` for an unknown class."""
    labels = sources.labels
    class_id = None if asked.name is None else labels.class_id(asked.name)
    if asked.view == "suggested":
        found = _suggested(sources, learned, class_id)
    elif asked.view == "errors":
        found = np.array(sorted(sources.work.errors), np.intp)
    elif asked.view == "all":
        found = np.arange(len(sources.photos))
    else:
        found = np.flatnonzero(labels.status == STATUS_NAMES.index(asked.view))
        found = found[np.argsort(-labels.version[found], kind="stable")]  # the latest first
    if class_id is not None and asked.view != "suggested":
        found = found[labels.label[found] == class_id]
    if asked.status is not None:
        if asked.status not in STATUS_NAMES:
            raise Refused("invalid", f"status must be one of {', '.join(STATUS_NAMES)}")
        found = found[labels.status[found] == STATUS_NAMES.index(asked.status)]
    if text := fold(asked.search).strip():
        names = sources.photos.folded
        found = np.array([i for i in found.tolist() if text in names[i]], np.intp)
    return found


def _suggested(sources: ViewSources, learned: Learned, class_id: int | None) -> Indices:
    """Open images with a suggestion, the surest first; none of the reserve."""
    may = _may_suggest(sources, learned)
    found = np.flatnonzero(may if class_id is None else may & (learned.best == class_id))
    return found[np.argsort(-learned.confidence[found], kind="stable")]


def _may_suggest(sources: ViewSources, learned: Learned) -> NDArray[np.bool_]:
    return np.asarray((sources.labels.status == OPEN) & ~sources.reserved & (learned.best >= 0))


def class_rows(sources: ViewSources, learned: Learned) -> list[dict[str, Any]]:
    """Return the classes with their counts of labeled and of suggested images."""
    counts = sources.labels.class_counts()
    found = learned.best[_may_suggest(sources, learned)]
    suggested = np.bincount(found, minlength=len(counts))
    rows = sources.labels.classes
    return [{"name": c.name, "key": c.key, "count": int(counts[i]), "suggested": int(suggested[i])} for i, c in rows]


def head_row(learned: Learned, is_fitting: bool) -> dict[str, Any] | None:
    """Return what the page shows of the head, None before there is one."""
    if not learned.fitted_to and not is_fitting:
        return None
    return {"fitted_to": learned.fitted_to, "seconds": round(learned.seconds, 3), "is_fitting": is_fitting}


def estimate_row(learned: Learned, set_aside: int) -> dict[str, float] | None:
    """Return the estimated accuracy as plain numbers, None before there is one.

    `set_aside`: random images that nobody could label, which the estimate leaves out.
    """
    if learned.estimate is None:
        return None
    values = asdict(learned.estimate)
    row = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
    return row | {"set_aside": set_aside}


def similar(sources: ViewSources, like: Sequence[int]) -> list[int]:
    """Return open images like some others, most similar first; none of the reserve. Raises `Refused`."""
    if not 0 < len(like) <= _MAX_LIKE:
        raise Refused("invalid", f"give 1 to {_MAX_LIKE} images")
    may = (sources.labels.status == OPEN) & ~sources.reserved
    may[list(like)] = False
    return [int(i) for i in _nearest(sources, like, may)[:SIMILAR]]


def _nearest(sources: ViewSources, like: Sequence[int], may: NDArray[np.bool_]) -> Indices:
    features = sources.work.features
    if features is None:
        return np.zeros(0, np.intp)
    ready = features.is_ready.copy()
    known = np.array([i for i in like if ready[i]], np.intp)
    candidates = np.flatnonzero(may & ready)
    if not len(known) or not len(candidates):
        return np.zeros(0, np.intp)
    return np.asarray(find_similar(features.matrix, known, candidates), np.intp)


def info(sources: ViewSources, image: int, label: NDArray[np.int32], names: Sequence[str]) -> dict[str, Any]:
    """Return what a close look at an image shows. `label`, `names`: as in `Labels`, which may change meanwhile.

    An image of the reserve has no neighbors before it has a label: they would tell it.
    """
    name = sources.photos.names[image]
    found: dict[str, Any] = {
        "id": image,
        "name": encodable(name),
        "format": os.path.splitext(name)[1].lstrip(".").upper(),
    }
    try:
        path = sources.photos.locate(image)
        found["bytes"] = os.stat(path).st_size
        height, width = read_size(path)
        facts = read_facts(path)
    except OSError as error:
        return found | {"error": error.strerror or str(error), "neighbors": []}
    except ImageReadError as error:
        return found | {"error": encodable(error.reason), "neighbors": []}
    camera = " ".join(part for part in (facts.make, facts.model) if part)
    taken = None if facts.captured is None else facts.captured.isoformat()
    found |= {"width": width, "height": height, "taken": taken, "camera": camera or None, "error": None}
    return found | {"neighbors": _neighbors(sources, image, label, names)}


def _neighbors(
    sources: ViewSources, image: int, label: NDArray[np.int32], names: Sequence[str]
) -> list[dict[str, Any]]:
    features = sources.work.features
    if features is None or (sources.reserved[image] and label[image] < 0):
        return []
    may = label >= 0
    may[image] = False
    near = _nearest(sources, [image], may)[:_NEIGHBORS]
    rows = features.matrix[near]
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(features.matrix[image])
    likeness = (rows @ features.matrix[image]) / np.maximum(lengths, 1e-12)
    pairs = zip(near.tolist(), likeness.tolist(), strict=True)
    return [{"id": i, "label": names[label[i]], "similarity": round(share, 4)} for i, share in pairs]
