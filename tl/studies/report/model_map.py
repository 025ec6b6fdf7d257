"""Place images that a model file was evaluated on on a map, by the file's own output `embedding`.

Each image is decoded and run once more, for at most as many as a map shows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tl.data.features import unit_length
from tl.data.manifests import LabeledImage
from tl.errors import ImageReadError
from tl.progress import Progress
from tl.runtime.imaging.pipeline import Preparer
from tl.runtime.prefetch import prefetch_map
from tl.runtime.session import Session
from tl.studies.report.class_sections import Judged
from tl.studies.report.image_map import LEAST, MapImage, Mapped, choose_images

EMBEDDING = "embedding"
_WORKERS = 4
# Embeddings of this similarity are of the same image, but for rounding.
_SAME = 1 - 1e-5


def map_results(
    session: Session, images: Sequence[LabeledImage], judged: Sequence[Judged], progress: Progress
) -> Mapped | None:
    """Return the images of the map with embeddings; None for too few, or for a file without the output `embedding`.

    `judged`: the result of each of `images`. Raises `ModelFileError`, `DeviceError`.
    """
    if len(images) < LEAST or EMBEDDING not in session.outputs:
        return None
    chosen = choose_images([not each.is_right for each in judged])
    try:
        vectors = embed_images(session, [images[i] for i in chosen], progress)
    except ImageReadError:  # an image has changed since it was predicted
        return None
    same = is_repeated(vectors)
    placed = [
        MapImage(
            *(judged[i].path, judged[i].name, judged[i].true_id, images[i].split, judged[i]),
            is_duplicate=bool(repeated),
            region=judged[i].region,
        )
        for i, repeated in zip(chosen, same, strict=True)
    ]
    return Mapped(placed, vectors, "the model", len(images))


def embed_images(session: Session, images: Sequence[LabeledImage], progress: Progress) -> NDArray[np.float32]:
    """Embeddings float32 (N, D) of length 1 of labeled images or boxes. Raises `ImageReadError`, `DeviceError`."""
    contract = session.contract
    if contract is None:
        raise ValueError("a file without a contract has no preprocessing")
    preparer = Preparer((contract.preprocessing,), crop=contract.boxes)

    def load(image: LabeledImage) -> NDArray[np.uint8]:
        return preparer(image.path, image.box)[contract.preprocessing]

    progress.start("computing embeddings", len(images), "images")
    rows = []
    for inputs in prefetch_map(load, images, workers=min(_WORKERS, os.cpu_count() or 1), ahead=2 * _WORKERS):
        rows.append(session.run(inputs, [EMBEDDING])[0].reshape(-1))
        progress.advance()
    return np.asarray(unit_length(np.stack(rows)), np.float32)


def is_repeated(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of the embeddings (N, D) another one equals, but for rounding: (N,)."""
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -1)
    return np.asarray(likeness.max(axis=1) >= _SAME)
