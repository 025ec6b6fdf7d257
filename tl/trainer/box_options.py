"""Check the training options for boxes around objects."""

from __future__ import annotations

from tl.trainer.config import TrainConfig

# Options without effect unless a file of boxes is given.
_OF_THE_FILE = ("min_box_confidence", "box_categories", "box_labels")


def box_faults(config: TrainConfig) -> list[str]:
    """Why the options for boxes of a classification run cannot be used."""
    given = [name for name in _OF_THE_FILE if getattr(config, name) != getattr(TrainConfig, name)]
    faults = [f"{', '.join(given)}: only with a file of boxes, but boxes is not set"] if given else []
    if config.boxes is not None:
        faults = []
    if config.min_box_confidence is not None and not 0 <= config.min_box_confidence <= 1:
        faults.append(f"min_box_confidence must be 0..1, found {config.min_box_confidence}")
    return faults
