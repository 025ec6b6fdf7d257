"""Notice that files of labeled images have gone, or were changed, since people looked at them. Opens no images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from tl.annotation.content_hashes import Stamp, read_stamp
from tl.annotation.photos import Photos

_MOST_NAMES = 5


@dataclass(frozen=True)
class LostImages:
    """Labeled images whose file is `missing`, or was `changed` since."""

    missing: tuple[int, ...] = ()
    changed: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.missing) + len(self.changed)

    def describe(self, photos: Photos) -> str:
        """Return a sentence for each kind with the first names, "" for none."""
        told = []
        if self.missing:
            verb = "image is" if len(self.missing) == 1 else "images are"
            told.append(f"{len(self.missing)} labeled {verb} missing: {_listed(photos, self.missing)}")
        if self.changed:
            verb = "image has" if len(self.changed) == 1 else "images have"
            told.append(f"{len(self.changed)} labeled {verb} changed since labeling: {_listed(photos, self.changed)}")
        return "; ".join(told)


def _listed(photos: Photos, images: Sequence[int]) -> str:
    names = [photos.names[i] for i in islice(images, _MOST_NAMES)]
    more = len(images) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


class FileStamps:
    """Size and time of the files of images when they were labeled. Not thread-safe."""

    def __init__(self, photos: Photos) -> None:
        self._photos = photos
        self._known: dict[int, tuple[int, Stamp | None]] = {}

    def remember(self, images: Sequence[int], versions: Sequence[int]) -> set[int]:
        """Take the stamps of images that somebody has acted on since the last call. Returns these."""
        pairs = zip(images, versions, strict=True)
        new = {i: version for i, version in pairs if i not in self._known or self._known[i][0] != version}
        self._known |= {i: (version, read_stamp(self._photos.paths[i])) for i, version in new.items()}
        return set(new)

    def find_lost(self, images: Sequence[int]) -> LostImages:
        """Return which of these labeled images are not as they were."""
        now = {image: read_stamp(self._photos.paths[image]) for image in images}
        missing = tuple(image for image in images if now[image] is None)
        changed = (image for image in images if now[image] is not None and self._was(image) not in (None, now[image]))
        return LostImages(missing, tuple(changed))

    def _was(self, image: int) -> Stamp | None:
        return self._known.get(image, (0, None))[1]
