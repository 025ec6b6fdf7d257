"""Explain which image regions support a prediction: by class activation maps if the file has them, else by occlusion.

Depends on open classifiers and their inputs. Contains no file access; `drawing` draws the results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tl.errors import ConfigError
from tl.runtime.devices import usable_cores
from tl.runtime.ensembles.ensemble import Ensemble
from tl.runtime.imaging.geometry import Placement, place
from tl.runtime.imaging.pipeline import PlacedInput, load_views
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.imaging.regions import CroppedBox
from tl.runtime.predictor import Predictor
from tl.runtime.prefetch import prefetch_map
from tl.runtime.results import Classification
from tl.runtime.sources.boxed_images import BoxedImage, PredictionSource, UnboxedImage, item_name, split_item

Method = Literal["cam", "occlusion"]
# Left, top, right and bottom of a part of the photo, as fractions of its sides.
Patch = tuple[float, float, float, float]
_ALL: Patch = (0.0, 0.0, 1.0, 1.0)
# Number of patches per row and column; side of a patch, as a fraction of the photo's side.
_ROW, _PATCH = 7, 0.25
# Covered inputs per run; the seven runs are distributed over the cores.
_BATCH = 7


@dataclass(frozen=True)
class Explanation:
    """Evidence for `label`, which has `probability`, at each location of an image.

    `heat`: float32 (h, w) over the network's input, of lower resolution for maps. `method` "cam": logits of the
    locations minus their mean over classes, which leaves softmax unchanged. "occlusion": decrease in the label's
    probability when a location is covered, averaged over the patches that cover it. `placement`: placement of the image
    in that input.
    """

    path: str
    label: str
    probability: float
    method: Method
    heat: NDArray[np.float32]
    placement: Placement


def explain(predictor: Predictor[Classification], source: PredictionSource, label: str | None = None) -> Explanation:
    """Explain a label, by default the most probable one. Thread-safe.

    For a single file with the output `cam`, use its map. For other files and for ensembles, predict the image with
    parts covered: 49 predictions, averaged over members. Locations refer to the first model's input.
    Raises `ImageReadError`, and `ConfigError` for a label that is not a class of the models.
    Source: Zhou et al. 2016 (class activation maps); Zeiler & Fergus 2014 (occlusion).
    """
    ensemble = predictor.ensemble
    if not isinstance(ensemble, Ensemble):
        raise ConfigError("only classifiers can be explained")
    if ensemble.key["tta"]:
        raise ConfigError("only unaugmented images can be explained: leave out test-time augmentation")
    if label is not None and label not in ensemble.class_names:
        raise ConfigError(f"'{label}' is not one of the classes {', '.join(ensemble.class_names)}")
    if isinstance(source, UnboxedImage) or isinstance(source, BoxedImage) != (ensemble.crop is not None):
        raise ConfigError("models trained on boxes explain a BoxedImage, and other models whole images")
    image, box = split_item(source)
    look = None if box is None or ensemble.crop is None else CroppedBox(box, ensemble.crop)
    placed = load_views(image, [(preprocessing, look) for preprocessing in ensemble.preprocessings])
    inputs = dict(zip(ensemble.preprocessings, placed, strict=True))
    if len(ensemble.sessions) == 1 and "cam" in ensemble.contracts[0].outputs:
        method: Method = "cam"
        chosen, probability, heat = _activation(ensemble, inputs, label)
        region = None if look is None else look.region(placed[0].image_hw)
        placement = place(placed[0].image_hw, ensemble.preprocessings[0], region)
    else:
        method = "occlusion"
        chosen, probability, heat = _occlusion(ensemble, inputs, label)
        placement = placed[0].placement
    return Explanation(item_name(source), chosen, probability, method, heat, placement)


def _activation(
    ensemble: Ensemble, inputs: dict[Preprocessing, PlacedInput], label: str | None
) -> tuple[str, float, NDArray[np.float32]]:
    (placed,) = inputs.values()
    probabilities, cam = ensemble.sessions[0].run(placed.image[None], ["probabilities", "cam"])
    class_id = int(probabilities[0].argmax()) if label is None else ensemble.class_names.index(label)
    heat = np.asarray(cam[0, class_id] - cam[0].mean(axis=0), np.float32)
    return ensemble.class_names[class_id], float(probabilities[0, class_id]), heat


def _occlusion(
    ensemble: Ensemble, inputs: dict[Preprocessing, PlacedInput], label: str | None
) -> tuple[str, float, NDArray[np.float32]]:
    """Cover each patch of the photo in the inputs of all members, wherever it is placed there."""
    whole = _probabilities(ensemble, {preprocessing: placed.image[None] for preprocessing, placed in inputs.items()})[0]
    class_id = int(whole.argmax()) if label is None else ensemble.class_names.index(label)

    def drops_of(patches: Sequence[Patch]) -> NDArray[np.float32]:
        covered = {r: np.stack([_cover(placed, patch) for patch in patches]) for r, placed in inputs.items()}
        return np.asarray(whole[class_id] - _probabilities(ensemble, covered)[:, class_id], np.float32)

    patches = list(_patches())
    size = 1 if any(preprocessing.any_size for preprocessing in inputs) else _BATCH  # copies of a whole photo are large
    chunks = [patches[start : start + size] for start in range(0, len(patches), size)]
    first = next(iter(inputs.values()))
    drops, covers = (np.zeros(first.image.shape[:2], np.float32) for _ in range(2))
    found = prefetch_map(drops_of, chunks, workers=usable_cores(), ahead=len(chunks))
    for patch, drop in zip(patches, np.concatenate(list(found)), strict=True):
        place = _pixels(patch, first.placement)
        drops[place] += drop
        covers[place] += 1
    heat = drops / np.maximum(covers, 1)  # 0 for padding, which no patch covers
    return ensemble.class_names[class_id], float(whole[class_id]), heat.astype(np.float32)


def _probabilities(ensemble: Ensemble, images: dict[Preprocessing, NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return the members' weighted mean probabilities (N, C) for uint8 (N, H, W, 3); a vote would change in jumps."""
    return np.average(ensemble.members_of(images), axis=1, weights=ensemble.weights).astype(np.float32)


def _patches() -> Iterator[Patch]:
    """Yield the patches row by row, each overlapping half of the next."""
    for row in range(_ROW):
        for column in range(_ROW):
            top, left = (place * (1 - _PATCH) / (_ROW - 1) for place in (row, column))
            yield left, top, left + _PATCH, top + _PATCH


def _pixels(patch: Patch, placement: Placement) -> tuple[slice, slice]:
    """Return the pixels of a photo's patch in an input: at least one, or none if the input does not show the patch."""
    (height, width), (x, y), (input_h, input_w) = placement.resized_hw, placement.offset_xy, placement.input_hw
    left, right = round(patch[0] * width), max(round(patch[0] * width) + 1, round(patch[2] * width))
    top, bottom = round(patch[1] * height), max(round(patch[1] * height) + 1, round(patch[3] * height))
    return _clipped(y + top, y + min(bottom, height), input_h), _clipped(x + left, x + min(right, width), input_w)


def _clipped(start: int, end: int, size: int) -> slice:
    return slice(min(max(start, 0), size), min(max(end, 0), size))


def _cover(placed: PlacedInput, patch: Patch) -> NDArray[np.uint8]:
    """Cover a part of the photo with the photo's mean color."""
    covered = placed.image.copy()
    photo = placed.image[_pixels(_ALL, placed.placement)]
    covered[_pixels(patch, placed.placement)] = photo.mean(axis=(0, 1)).round().astype(np.uint8)
    return covered
