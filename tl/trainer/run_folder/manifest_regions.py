"""The columns of a run's manifest that say which part of an image was used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tl.runtime.imaging.regions import Region
from tl.runtime.sources.box_files import BOX

REGION = ("region_x", "region_y", "region_w", "region_h")
# As `LabeledImage.key`.
ImageKey = tuple[str, Region | None]


def sides(region: Region | None) -> tuple[float | str, ...]:
    """The cells of a region, empty for the whole image."""
    return region or ("", "", "", "")


def read_region(row: Mapping[str, str], columns: Sequence[str]) -> Region | None:
    """The region in a row, None if its cells are empty or missing."""
    found = tuple(float(row[name]) for name in columns if row.get(name))
    return (found[0], found[1], found[2], found[3]) if len(found) == len(columns) else None


def content_of(row: Mapping[str, str]) -> str:
    """The hash of an image, with its box if it has one."""
    return row["sha256"] if not row.get(BOX[0]) else " ".join(row[name] for name in ("sha256", *BOX))
