"""Sample training images after augmentation, as the network receives them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from tl.data.manifests import LabeledImage
from tl.errors import TlError
from tl.runtime.imaging.colors import shown_rgb
from tl.runtime.imaging.pipeline import load_views, load_working
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.studies.report.page import Card
from tl.studies.report.run_files import FinishedRun
from tl.studies.report.thumbnails import TRUE_COLOR, encode
from tl.trainer.fit.augment import Augment, build_augment
from tl.trainer.fit.batches import item_seed
from tl.trainer.landmarks.data import partners_of

_IMAGES, _EPOCHS, _SIDE = 3, 4, 144

# (image, seed) -> image that the network receives.
_Show = Callable[[LabeledImage, int], Image.Image]


def augmented_cards(finished: FinishedRun) -> list[Card]:
    """Return cards of a few images in a few epochs each; empty without augmentation or if the images are gone."""
    config = finished.config
    labeled = finished.run.images("train")
    chosen = labeled[:: max(1, len(labeled) // _IMAGES)][:_IMAGES]
    try:
        show = _points_shower(finished) if config.task == "landmarks" else _shower(finished)
        if show is None:
            return []
        cards = []
        for index, each in enumerate(chosen):
            for epoch in range(1, _EPOCHS + 1):
                image = show(each, item_seed(config.seed, epoch, index))
                image.thumbnail((_SIDE, _SIDE))
                cards.append(Card(encode(image), [os.path.basename(each.name)]))
        return cards
    except TlError:  # an image or augmentation file has changed since
        return []


def _shower(finished: FinishedRun) -> _Show | None:
    preprocessing: Preprocessing = finished.card.preprocessing
    augment = build_augment(str(finished.config.augment), preprocessing)
    if augment is None:
        return None

    def show(image: LabeledImage, seed: int) -> Image.Image:
        return Image.fromarray(shown_rgb(augment(load_working(image.path, preprocessing, image.region), seed)))

    return show


def _points_shower(finished: FinishedRun) -> _Show | None:
    preprocessing, config = finished.card.preprocessing, finished.config
    landmarks = finished.run.load_landmarks("annotations.json")
    mirror = config.mirror if config.mirror is not None else bool(landmarks.flip_pairs)
    augment = build_augment(str(config.augment), preprocessing, points=True, mirror=mirror)
    if augment is None:
        return None
    points = {image.name: image.keypoints_xy for image in landmarks.images}
    partners = partners_of(landmarks)

    def show(labeled: LabeledImage, seed: int) -> Image.Image:
        return _with_points(augment, labeled, preprocessing, points[labeled.name], seed, partners)

    return show


def _with_points(
    augment: Augment,
    labeled: LabeledImage,
    preprocessing: Preprocessing,
    points_xy: np.ndarray,
    seed: int,
    partners: Sequence[int],
) -> Image.Image:
    (view,) = load_views(labeled.path, [(preprocessing, labeled.region)])
    image, moved = augment.with_points(view.image, view.placement.to_input(points_xy), seed, partners)
    shown = Image.fromarray(shown_rgb(image))
    pen = ImageDraw.Draw(shown)
    radius = max(2.0, max(shown.size) / 60)
    for x, y in moved[~np.isnan(moved[:, 0])] + 0.5:
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], outline=TRUE_COLOR, width=2)
    return shown
