"""Put images into one group, on one side of the split: what `group` decisions make of groups and splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from tl.data.manifests import LabeledImage


class GroupDecision(Protocol):
    """A decision. `do`: "group" puts an image into the group of the image at place `of`."""

    @property
    def do(self) -> str:
        """What was decided."""

    @property
    def of(self) -> int | None:
        """The other image."""

    @property
    def removes(self) -> bool:
        """Whether the image leaves the data."""


@dataclass(frozen=True)
class Grouped:
    """The group and the split of an image now. `of`: place of the image whose group and split it has taken."""

    group: str
    split: str
    of: int


def group_images(images: Sequence[LabeledImage], decisions: Mapping[int, GroupDecision]) -> dict[int, Grouped]:
    """Return images (by place) whose group or split changes: groups that are joined become one, in one split.

    A joined group takes name and split of the image that the last decision names, or a new name if that has none:
    training refuses a group with images in several splits.
    """
    joined = _Sets(len(images))
    first: dict[str, int] = {}
    for i, image in enumerate(images):
        if image.group:
            joined.join(i, first.setdefault(image.group, i))
    asked = [(i, made.of) for i, made in decisions.items() if made.do == "group" and made.of is not None]
    for i, of in asked:
        joined.join(i, of)
    chosen = {joined.root(i): of for i, of in asked}
    named: dict[int, str] = {}
    for i, image in enumerate(images):
        if image.group:
            named.setdefault(joined.root(i), image.group)
    new = _new_names(images)
    names = {root: images[of].group or named.get(root) or next(new) for root, of in chosen.items()}
    found = {}
    for i, image in enumerate(images):
        root = joined.root(i)
        is_removed = i in decisions and decisions[i].removes
        if (
            root in chosen
            and not is_removed
            and (image.group, image.split) != (names[root], images[chosen[root]].split)
        ):
            found[i] = Grouped(names[root], images[chosen[root]].split, chosen[root])
    return found


def _new_names(images: Sequence[LabeledImage]) -> Iterator[str]:
    used = {image.group for image in images}
    return (name for name in map("same-{}".format, count(1)) if name not in used)


class _Sets:
    """Disjoint sets of places. Source: Tarjan 1975, with path halving."""

    def __init__(self, size: int) -> None:
        self._parents = list(range(size))

    def root(self, place: int) -> int:
        while self._parents[place] != place:
            self._parents[place] = self._parents[self._parents[place]]
            place = self._parents[place]
        return place

    def join(self, one: int, other: int) -> None:
        self._parents[self.root(one)] = self.root(other)
