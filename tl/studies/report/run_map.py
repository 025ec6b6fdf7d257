"""Place the images of a run on a map, by the features that it cached, with the duplicates that its audit found."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from tl.studies.report.class_sections import Judged
from tl.studies.report.image_map import LEAST, MapImage, Mapped, choose_images
from tl.studies.report.neighbors import Embeddings
from tl.studies.report.run_files import FinishedRun

_DUPLICATE_KINDS = ("duplicate across splits", "near duplicate across splits", "labels disagree")


def map_run(finished: FinishedRun, judged: Sequence[Judged], embeddings: Embeddings | None) -> Mapped | None:
    """Return the images of the map, or None if too few have cached features."""
    if embeddings is None or len(embeddings.rows) < LEAST:
        return None
    scored = {each.path: each for each in judged}  # runs on boxes have no embeddings
    found = [scored.get(path) for path in embeddings.paths]
    chosen = choose_images([each is not None and not each.is_right for each in found])
    duplicates = _duplicates(finished, embeddings)
    common = os.path.commonpath([os.path.dirname(path) for path in embeddings.paths])
    ids = {name: i for i, name in enumerate(finished.card.class_names)}
    images = []
    for i in chosen:
        row, path, each = embeddings.rows[i], embeddings.paths[i], found[i]
        name = each.name if each else os.path.relpath(path, common)
        images.append(MapImage(path, name, ids[row["label"]], row["split"], each, path in duplicates))
    return Mapped(images, embeddings.vectors[chosen], "the pretrained backbone", len(embeddings.rows))


def _duplicates(finished: FinishedRun, embeddings: Embeddings) -> set[str]:
    """Paths of images that the audit found twice, or whose content occurs twice."""
    found = [row for row in finished.rows("findings.csv") if row["kind"] in _DUPLICATE_KINDS]
    first: dict[str, str] = {}
    same: set[str] = set()
    for row, path in zip(embeddings.rows, embeddings.paths, strict=True):
        other = first.setdefault(row["sha256"], path)
        if other != path:
            same |= {other, path}
    return same | _named({row[key] for row in found for key in ("path", "other")}, embeddings.paths)


def _named(names: Iterable[str], paths: Sequence[str]) -> set[str]:
    """Paths of the images with these names within their data set, such as `ant/7.png` of `/data/photos/ant/7.png`."""
    by_file: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        by_file[os.path.basename(path)].append(path)
    found = set()
    for name in names:
        parts = [part for part in Path(name).parts if part not in (os.sep, "..")]
        same = [path for path in by_file[os.path.basename(name)] if list(Path(path).parts[-len(parts) :]) == parts]
        if same:  # a longer path has the name within another folder of the data set
            found.add(min(same, key=lambda path: len(Path(path).parts)))
    return found
