"""Build the map of a classifier's images: embeddings in two dimensions, similar images near each other.

Computes no features (`neighbors`): a run without cached features has no map.
"""

from __future__ import annotations

import base64
import io
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl.errors import ImageReadError
from tl.runtime.imaging.colors import shown_rgb
from tl.runtime.imaging.pipeline import load_input
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.studies.report.class_sections import Judged
from tl.studies.report.neighbors import Embeddings
from tl.studies.report.page import Dot, ImageMap, Note, Section
from tl.studies.report.run_files import FinishedRun
from tl.studies.report.thumbnails import Thumbnail

# With fewer images, a list says more than a map. More would make the page slow to write and larger than 5 MB.
_LEAST, MOST = 12, 2000
_NEAR = 3
_DIMENSIONS, _PERPLEXITY, _STEPS = 50, 30.0, 500
# Side of a thumbnail in pixels by number of images, so that the sheet stays below about 2 MB.
_SIDES = {300: 72, 800: 56, MOST: 44}
_DUPLICATE_KINDS = ("duplicate across splits", "near duplicate across splits", "labels disagree")


def map_section(finished: FinishedRun, judged: Sequence[Judged], embeddings: Embeddings | None) -> list[Section]:
    """Build the section, if the run has enough images with cached features."""
    if embeddings is None or len(embeddings.rows) < _LEAST:
        return []
    scored = {each.path: each for each in judged}
    chosen = _chosen(embeddings, scored)
    vectors = embeddings.vectors[chosen]
    dots = _dots(finished, embeddings, chosen, scored, layout(vectors))
    sheet, side, columns = _sheet([embeddings.paths[i] for i in chosen], finished.card.preprocessing)
    block = ImageMap(finished.card.class_names, dots, sheet, side, columns)
    return [Section("Map of the images", [Note(_told(dots, len(embeddings.rows))), block])]


def layout(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Places (N, 2) within [0, 1] of embeddings (N, D): t-SNE of their principal components, the same each time.

    Source: van der Maaten & Hinton 2008, "Visualizing Data using t-SNE".
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = len(vectors)
    if not np.ptp(vectors, axis=0).any():  # all images are the same
        return np.full((count, 2), 0.5)
    parts = PCA(min(_DIMENSIONS, *vectors.shape), random_state=0, svd_solver="full").fit_transform(vectors)
    places = TSNE(
        2, perplexity=min(_PERPLEXITY, (count - 1) / 3), init="pca", random_state=0, max_iter=_STEPS
    ).fit_transform(parts)
    low, high = places.min(axis=0), places.max(axis=0)
    return np.asarray((places - low) / np.maximum(high - low, 1e-9), np.float64)


def outliers(likeness: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which images (N,) are unlike all others, by their mean similarity to the nearest: below Tukey's far fence.

    Source: Tukey 1977, "Exploratory Data Analysis": three interquartile ranges below the first quartile.
    """
    first, third = np.quantile(likeness, [0.25, 0.75])
    return np.asarray(likeness < first - 3 * (third - first))


def _chosen(embeddings: Embeddings, scored: Mapping[str, Judged]) -> list[int]:
    """Indices of the images to show, in order: of too many, all wrong ones and an even choice of the others."""
    count = len(embeddings.rows)
    if count <= MOST:
        return list(range(count))
    found = [scored.get(path) for path in embeddings.paths]
    wrong = [i for i, each in enumerate(found) if each is not None and each.true_id != each.label_id][:MOST]
    others = sorted(set(range(count)) - set(wrong))
    places = np.linspace(0, len(others) - 1, MOST - len(wrong)).astype(int)
    return sorted({*wrong, *(others[place] for place in places)})


def _dots(
    finished: FinishedRun,
    embeddings: Embeddings,
    chosen: Sequence[int],
    scored: Mapping[str, Judged],
    places: NDArray[np.float64],
) -> list[Dot]:
    vectors = embeddings.vectors[list(chosen)]
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -np.inf)
    near = np.argsort(-likeness, axis=1, kind="stable")[:, :_NEAR]
    alike = np.take_along_axis(likeness, near, axis=1)
    unlike = outliers(alike.mean(axis=1).astype(np.float64))
    duplicates = _duplicates(finished, embeddings)
    common = os.path.commonpath([os.path.dirname(path) for path in embeddings.paths])
    ids = {name: i for i, name in enumerate(finished.card.class_names)}
    dots = []
    for k, i in enumerate(chosen):
        row, each = embeddings.rows[i], scored.get(embeddings.paths[i])
        marks = ["outlier"] * bool(unlike[k]) + ["duplicate"] * (embeddings.paths[i] in duplicates)
        dots.append(
            Dot(
                x=float(places[k, 0]),
                y=float(places[k, 1]),
                name=each.name if each else os.path.relpath(embeddings.paths[i], common),
                true_id=ids[row["label"]],
                label_id=None if each is None else each.label_id,
                confidence=None if each is None else each.confidence,
                split=row["split"],
                marks=marks,
                near=near[k].tolist(),
                likeness=[round(float(value), 2) for value in alike[k]],
            )
        )
    return dots


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


def _sheet(paths: Sequence[str], preprocessing: Preprocessing) -> tuple[Thumbnail, int, int]:
    """Draw the thumbnails on one image. Returns it, the side of a thumbnail, and the number in a row."""
    side = next(side for most, side in _SIDES.items() if len(paths) <= most)
    columns = int(np.ceil(np.sqrt(len(paths))))
    small = replace(preprocessing, input_hw=(side, side), resize_mode="short_side", short_side=side, jpeg_scale="2x")
    sheet = Image.new("RGB", (columns * side, -(-len(paths) // columns) * side), "#888888")

    def draw(path: str) -> Image.Image | None:
        try:
            return Image.fromarray(shown_rgb(load_input(path, small)))
        except ImageReadError:  # the image is gone: its place stays gray
            return None

    with ThreadPoolExecutor() as pool:
        for k, image in enumerate(pool.map(draw, paths)):
            if image is not None:
                sheet.paste(image, (k % columns * side, k // columns * side))
    data = io.BytesIO()
    sheet.save(data, "WEBP", quality=60, method=4)
    uri = f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
    return Thumbnail(uri, sheet.size), side, columns


def _told(dots: Sequence[Dot], count: int) -> str:
    text = (
        "Each mark is an image; images that the pretrained backbone finds similar are near each other. Distances "
        "between groups mean little. Choose a class, or a cell of the confusion matrix, to see where its images are."
    )
    if len(dots) < count:
        text = f"{len(dots)} of {count} images, with all wrong ones. {text}"
    return text
