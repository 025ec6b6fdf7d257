"""Where in a picture a decision comes from: class activation maps of files that have them, else occlusion.

Knows opened classifiers and their inputs. Does not know files or threads, and draws nothing (`drawing`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tl.errors import ConfigError
from tl.runtime.decode import ImageSource, source_name
from tl.runtime.ensemble import Ensemble
from tl.runtime.geometry import Placement
from tl.runtime.predictor import Predictor
from tl.runtime.preprocess import PlacedInput, load_views
from tl.runtime.recipe import Recipe
from tl.runtime.results import Classification

Method = Literal["cam", "occlusion"]
# Patches in a row and a column, each a quarter of the input's side, so that each overlaps half of the next.
_ROW, _PATCH = 7, 0.25
# Covered inputs a run: memory stays that of a usual batch.
_BATCH = 16


@dataclass(frozen=True)
class Explanation:
    """How much each place of a picture speaks for `label`.

    `heat`: float32 (h, w) over the network's input, coarser than it for maps. `method` "cam": logits of the places, as
    compared with the mean over classes, whose softmax is the same. "occlusion": how much less probable the label is
    where a place is covered, the mean over patches that cover it. `placement`: where the picture lies in that input.
    """

    path: str
    label: str
    method: Method
    heat: NDArray[np.float32]
    placement: Placement


def explain(predictor: Predictor[Classification], source: ImageSource, label: str | None = None) -> Explanation:
    """Why this label, or, without one, why the most probable. Thread-safe.

    One file with the output `cam` gives its map; any other, and several that vote, are shown the picture with parts
    covered: 49 predictions, of several their mean. Places are those of the first one's input.
    Raises `ImageReadError`, and `ConfigError` for a label that the models do not know.
    Source: Zhou et al. 2016 (class activation maps); Zeiler & Fergus 2014 (occlusion).
    """
    ensemble = predictor.ensemble
    if not isinstance(ensemble, Ensemble):
        raise ConfigError("only decisions on classes are explained")
    if ensemble.key["tta"]:
        raise ConfigError("explained is the picture as it is: leave out test-time augmentation")
    if label is not None and label not in ensemble.class_names:
        raise ConfigError(f"'{label}' is not one of the classes {', '.join(ensemble.class_names)}")
    placed = load_views(source, [(recipe, None) for recipe in ensemble.recipes])
    inputs = dict(zip(ensemble.recipes, placed, strict=True))
    if len(ensemble.sessions) == 1 and "cam" in ensemble.contracts[0].outputs:
        method: Method = "cam"
        chosen, heat = _activation(ensemble, inputs, label)
    else:
        method = "occlusion"
        chosen, heat = _occlusion(ensemble, inputs, label)
    return Explanation(source_name(source), chosen, method, heat, placed[0].placement)


def _activation(
    ensemble: Ensemble, inputs: dict[Recipe, PlacedInput], label: str | None
) -> tuple[str, NDArray[np.float32]]:
    (placed,) = inputs.values()
    probabilities, cam = ensemble.sessions[0].run(placed.image[None], ["probabilities", "cam"])
    class_id = int(probabilities[0].argmax()) if label is None else ensemble.class_names.index(label)
    return ensemble.class_names[class_id], np.asarray(cam[0, class_id] - cam[0].mean(axis=0), np.float32)


def _occlusion(
    ensemble: Ensemble, inputs: dict[Recipe, PlacedInput], label: str | None
) -> tuple[str, NDArray[np.float32]]:
    """Patches lie at the same shares of every member's input."""
    images = {recipe: placed.image for recipe, placed in inputs.items()}
    whole = _probabilities(ensemble, {recipe: image[None] for recipe, image in images.items()})[0]
    class_id = int(whole.argmax()) if label is None else ensemble.class_names.index(label)
    height, width = next(iter(images.values())).shape[:2]
    drops, covers = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    patches = list(_patches())
    for start in range(0, len(patches), _BATCH):
        chunk = patches[start : start + _BATCH]
        covered = {recipe: np.stack([_cover(image, patch) for patch in chunk]) for recipe, image in images.items()}
        for patch, probabilities in zip(chunk, _probabilities(ensemble, covered), strict=True):
            place = _pixels(patch, (height, width))
            drops[place] += whole[class_id] - probabilities[class_id]
            covers[place] += 1
    return ensemble.class_names[class_id], drops / covers


def _probabilities(ensemble: Ensemble, images: dict[Recipe, NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Weighted mean of the members' probabilities (N, C), for uint8 (N, H, W, 3): a majority would change in jumps."""
    names = [""] * len(next(iter(images.values())))
    prepared = [{recipe: batch[n : n + 1] for recipe, batch in images.items()} for n in range(len(names))]
    votes = [result.votes for result in ensemble.results(names, prepared, with_votes=True)]
    return np.stack([np.average(v.probabilities, axis=0, weights=ensemble.weights) for v in votes if v is not None])


def _patches() -> Iterator[tuple[float, float]]:
    """Top and left of each, in shares of the input."""
    for row in range(_ROW):
        for column in range(_ROW):
            yield row * (1 - _PATCH) / (_ROW - 1), column * (1 - _PATCH) / (_ROW - 1)


def _pixels(patch: tuple[float, float], image_hw: tuple[int, int]) -> tuple[slice, slice]:
    top, left = (round(share * side) for share, side in zip(patch, image_hw, strict=True))
    height, width = (max(1, round(_PATCH * side)) for side in image_hw)
    return slice(top, top + height), slice(left, left + width)


def _cover(image: NDArray[np.uint8], patch: tuple[float, float]) -> NDArray[np.uint8]:
    """The picture's own mean colour hides a part of it."""
    covered = image.copy()
    covered[_pixels(patch, image.shape[:2])] = image.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
    return covered
