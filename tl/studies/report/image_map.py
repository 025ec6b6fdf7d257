"""Build the map of a classifier's images: embeddings in two dimensions, similar images near each other.

Computes no embeddings; they are of a run (`run_map`) or of a model file (`model_map`).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tl.errors import ImageReadError
from tl.runtime.imaging.colors import shown_rgb
from tl.runtime.imaging.geometry import crop_to_input
from tl.runtime.imaging.pipeline import load_working
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.imaging.regions import Region
from tl.studies.report.class_sections import Judged
from tl.studies.report.page import Dot, ImageMap, Note, Section
from tl.studies.report.thumbnails import Thumbnail

# With fewer images, a list says more than a map. More would make the page slow to write and larger than 5 MB.
LEAST, MOST = 12, 2000
_NEAR = 3
_DIMENSIONS, _PERPLEXITY, _STEPS = 50, 30.0, 500
# Side of a thumbnail in pixels by number of images, so that the sheet stays below about 2 MB.
_SIDES = {300: 72, 800: 56, MOST: 44}


@dataclass(frozen=True)
class MapImage:
    """An image to place. `judged`: its result, None without one. `region`: the part of it that is used, if not all."""

    path: str
    name: str
    true_id: int
    split: str
    judged: Judged | None
    is_duplicate: bool = False
    region: Region | None = None


@dataclass(frozen=True)
class Mapped:
    """Images with their embeddings float32 (N, D) of length 1. `by`: what made them, such as "the pretrained backbone".

    `total`: the number of images that `images` were chosen from.
    """

    images: Sequence[MapImage]
    vectors: NDArray[np.float32]
    by: str
    total: int


def map_section(mapped: Mapped, class_names: Sequence[str], preprocessing: Preprocessing) -> list[Section]:
    """Build the section."""
    dots = _dots(mapped, layout(mapped.vectors))
    sheet, side, columns = _sheet([(each.path, each.region) for each in mapped.images], preprocessing)
    block = ImageMap(class_names, dots, sheet, side, columns)
    return [Section("Map of the images", [Note(_told(mapped)), block])]


def choose_images(is_wrong: Sequence[bool]) -> list[int]:
    """Indices of the images to show, in order: of too many, all wrong ones and an even choice of the others."""
    count = len(is_wrong)
    if count <= MOST:
        return list(range(count))
    wrong = [i for i, each in enumerate(is_wrong) if each][:MOST]
    others = sorted(set(range(count)) - set(wrong))
    places = np.linspace(0, len(others) - 1, MOST - len(wrong)).astype(int)
    return sorted({*wrong, *(others[place] for place in places)})


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


def _dots(mapped: Mapped, places: NDArray[np.float64]) -> list[Dot]:
    likeness = mapped.vectors @ mapped.vectors.T
    np.fill_diagonal(likeness, -np.inf)
    near = np.argsort(-likeness, axis=1, kind="stable")[:, :_NEAR]
    alike = np.take_along_axis(likeness, near, axis=1)
    unlike = outliers(alike.mean(axis=1).astype(np.float64))
    return [
        Dot(
            x=float(places[k, 0]),
            y=float(places[k, 1]),
            name=each.name,
            true_id=each.true_id,
            label_id=None if each.judged is None else each.judged.label_id,
            confidence=None if each.judged is None else each.judged.confidence,
            split=each.split,
            marks=["outlier"] * bool(unlike[k]) + ["duplicate"] * each.is_duplicate,
            near=near[k].tolist(),
            likeness=[round(float(value), 2) for value in alike[k]],
        )
        for k, each in enumerate(mapped.images)
    ]


def _sheet(keys: Sequence[tuple[str, Region | None]], preprocessing: Preprocessing) -> tuple[Thumbnail, int, int]:
    """Draw the thumbnails on one image. Returns it, the side of a thumbnail, and the number in a row."""
    side = next(side for most, side in _SIDES.items() if len(keys) <= most)
    columns = int(np.ceil(np.sqrt(len(keys))))
    small = replace(preprocessing, input_hw=(side, side), resize_mode="short_side", short_side=side, jpeg_scale="2x")
    sheet = Image.new("RGB", (columns * side, -(-len(keys) // columns) * side), "#888888")

    def draw(key: tuple[str, Region | None]) -> Image.Image | None:
        path, region = key
        try:
            return Image.fromarray(shown_rgb(crop_to_input(load_working(path, small, region), small)))
        except ImageReadError:  # the image is gone: its place stays gray
            return None

    with ThreadPoolExecutor() as pool:
        for k, image in enumerate(pool.map(draw, keys)):
            if image is not None:
                sheet.paste(image, (k % columns * side, k // columns * side))
    data = io.BytesIO()
    sheet.save(data, "WEBP", quality=60, method=4)
    uri = f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
    return Thumbnail(uri, sheet.size), side, columns


def _told(mapped: Mapped) -> str:
    text = (
        f"Each mark is an image; images that {mapped.by} finds similar are near each other. Distances between groups "
        "mean little. Choose a class, or a cell of the confusion matrix, to see where its images are."
    )
    if len(mapped.images) < mapped.total:
        text = f"{len(mapped.images)} of {mapped.total} images, with all wrong ones. {text}"
    return text
