"""Boxes in a training run: which options apply, which images are used, and what the model file says of them.

Never imports torch.
"""

from __future__ import annotations

from pathlib import Path

from tl.data.boxed import LabeledBoxes, read_labeled_boxes, say_unused
from tl.data.manifests import LabeledImage, ManifestColumns
from tl.errors import ConfigError, DataError
from tl.progress import Progress
from tl.runtime.imaging.regions import BoxCrop
from tl.runtime.sources.box_files import read_boxes
from tl.trainer.config import TrainConfig
from tl.trainer.defaults import CLASSES, LANDMARKS
from tl.trainer.options import settled

# Also that of landmarks, which config files of earlier versions contain for every task.
_DEFAULT_MARGINS = (None, CLASSES["crop_margin"], LANDMARKS["crop_margin"])


def manifest_columns(config: TrainConfig) -> ManifestColumns:
    """How a config reads a CSV manifest."""
    return ManifestColumns(config.split_column, config.path_column, config.label_column, config.images, config.sequence)


def read_run_data(config: TrainConfig, progress: Progress) -> LabeledBoxes:
    """Read the labeled images or boxes of a classification run. Raises `DataError`, `ConfigError`."""
    boxes = None
    if config.boxes is not None:
        folders = [folder for folder in (config.images, config.data) if folder is not None]
        boxes = read_boxes(
            config.boxes,
            folders=folders,
            min_confidence=config.min_box_confidence,
            categories=_split(config.box_categories),
            label_column=config.label_column if Path(config.data).is_dir() else None,
        )
        for remark in boxes.remarks:
            progress.say(f"{config.boxes}: {remark}")
    found = read_labeled_boxes(config.data, manifest_columns(config), boxes, config.box_labels, progress.say)
    if boxes is not None:
        paths = {image.path for image in found.images} | {image.path for image in found.unboxed}
        if absent := boxes.absent_from([*paths, *(image.path for image, _ in found.failed)]):
            progress.say(f"{config.boxes}: lists {len(absent)} images that are not in {config.data}, first {absent[0]}")
    is_default = config.crop_margin in _DEFAULT_MARGINS and config.crop_square == TrainConfig.crop_square
    if found.images[0].box is None and not is_default:
        raise ConfigError(f"{config.data}: crop_margin and crop_square require boxes, or landmarks: give boxes")
    say_unused(found.unboxed, progress.say)
    return found


def run_crop(config: TrainConfig, *, has_boxes: bool) -> BoxCrop | None:
    """Return what a classification run uses around the boxes of its images; None for whole images."""
    return BoxCrop(settled(config.crop_margin), config.crop_square) if has_boxes else None


def check_found(failed: list[tuple[LabeledImage, str]]) -> None:
    """Raise `DataError` for images that are not in the list of boxes."""
    if failed:
        listed = "\n".join(f"  {image.name}: {reason}" for image, reason in failed[:20])
        more = f"\n  and {len(failed) - 20} more" if len(failed) > 20 else ""
        raise DataError(
            f"{len(failed)} images or boxes cannot be used; mend the list of boxes, or skip them:\n{listed}{more}",
            options=["skip_bad"],
        )


def _split(texts: tuple[str, ...] | None) -> list[str] | None:
    """The names in an option that is repeated, or that has several separated by commas as in other commands."""
    return None if texts is None else [name.strip() for text in texts for name in text.split(",") if name.strip()]
