"""Sequences of labeled images, such as bursts or the photos of a specimen, which must stay on one side of a split.

Reads headers of images for their capture times; never decodes pixels.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

from tl.data.manifests import LabeledImage
from tl.errors import ConfigError, DataError
from tl.runtime.imaging.exif import read_facts
from tl.runtime.prefetch import prefetch_map
from tl.runtime.sources.sequences import check_times, group_by_time, parse_rule

_READERS = 8


def sequence_faults(rule: str | None, *, for_landmarks: bool) -> list[str]:
    """Return what is wrong with a rule of sequences."""
    try:
        column = "" if rule is None else parse_rule(rule).column
    except ConfigError as error:
        return [str(error)]
    if column and for_landmarks:
        return ["sequence: for landmarks only exif:30s; in landmark files, the column is called group"]
    return []


def tie_sequences(
    images: Sequence[LabeledImage], rule: str | None, say: Callable[[str], None] = lambda line: None
) -> list[LabeledImage]:
    """Set `sequence` of images by the rule (see `parse_rule`), and `group`, so that a sequence is never split.

    With a column as rule, `sequence` is what `read_images` has read from it; '' is an image alone. Where the data has
    groups, a sequence takes the group of its images; a group of one image, such as that of its boxes, requires nothing.
    Raises `DataError` for a sequence with images in two groups, and if no image has a capture time.
    """
    if rule is None:
        return list(images)
    parsed = parse_rule(rule)
    if parsed.uses_times:
        images = _by_time(images, parsed.seconds, say)
    groups: dict[str, str] = {}
    counts = Counter(group for group, _ in {(image.group, image.path) for image in images})
    for image in images:
        if not image.sequence or not image.group or counts[image.group] == 1:
            continue
        other = groups.setdefault(image.sequence, image.group)
        if other != image.group:
            raise DataError(
                f"sequence '{image.sequence}' has images in group '{other}' and in group '{image.group}', for example "
                f"{image.name}: a sequence must be within one group; correct the column group, or leave out one of the "
                "two"
            )
    return [
        dataclasses.replace(image, group=groups.get(image.sequence, image.sequence or image.group)) for image in images
    ]


def _by_time(images: Sequence[LabeledImage], seconds: float, say: Callable[[str], None]) -> list[LabeledImage]:
    photos = {image.path: image.name for image in images}  # boxes share one
    facts = prefetch_map(read_facts, photos, workers=_READERS, ahead=4 * _READERS)
    found = group_by_time(list(zip(photos.values(), facts, strict=True)), seconds)
    check_times(found, len(photos))
    if found.timeless:
        count, first = len(found.timeless), found.timeless[0]
        say(f"{count} images have no capture time, first {first}: each is a sequence of its own")
    if found.in_future:
        count, first = len(found.in_future), found.in_future[0]
        say(f"{count} images were taken in the future by their EXIF data, first {first}: is the camera's clock right?")
    sizes = Counter(found.of.values())
    return [
        dataclasses.replace(image, sequence=found.of[image.name] if sizes[found.of[image.name]] > 1 else "")
        for image in images
    ]
