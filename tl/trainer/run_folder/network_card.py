"""The description of a run's network, stored in `best.safetensors` with the tensors, and what older versions wrote.

Never imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.model_file.strict_json import Json

RUN_VERSION = 3


@dataclass(frozen=True)
class NetworkCard:
    """The description stored in `best.safetensors` alongside the tensors.

    `temperature` divides the logits before softmax; fitted on validation data; `temperatures` are those of
    several labels, empty otherwise. The names of what the network has no outputs for are empty.
    """

    class_names: tuple[str, ...]
    keypoint_names: tuple[str, ...]
    preprocessing: Preprocessing
    weights: str
    temperature: float
    target_names: tuple[str, ...] = ()
    temperatures: tuple[float, ...] = ()
    run_version: int = RUN_VERSION


Tensor = TypeVar("Tensor")  # of torch or numpy
# Names in run folders written by versions before 0.1.
_OLD_TENSORS = {"normalise": "normalize", "standardise": "standardize"}


def rename_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a run's network, from any version, under their current names."""
    return {".".join(_OLD_TENSORS.get(part, part) for part in name.split(".")): t for name, t in tensors.items()}


def upgraded_card(card: Json) -> Json:
    """A network card of an older version with the current names, and the fields that were added since."""
    if not isinstance(card, dict):
        return card
    card = {"preprocessing" if name == "recipe" else name: value for name, value in card.items()}
    if isinstance(preprocessing := card.get("preprocessing"), dict):
        card["preprocessing"] = {"channels": None, "project": None, "resized_by": "runtime", **preprocessing}
    return {"target_names": [], "temperatures": [], **card}
