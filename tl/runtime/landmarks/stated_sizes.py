"""Compare the size that a landmark file states for a photo with the photo: points belong to one size of it.

Opens photos only to read their size.
"""

from __future__ import annotations

from collections.abc import Callable

from tl.errors import DataError, ImageReadError
from tl.runtime.imaging.decode import read_stored
from tl.runtime.landmarks.sets import LandmarkSet

_SIDEWAYS = 5  # EXIF orientations from here on exchange width and height


def check_stated_sizes(
    landmarks: LandmarkSet, find: Callable[[str], str], where: str, *, from_stored: bool
) -> tuple[str, ...]:
    """Raise `DataError` if a photo has another size than stated. Returns remarks: photos that were not found.

    `find`: see `files.image_finder`. `from_stored`: the file describes photos before their EXIF orientation is applied.
    Photos that cannot be read are left to those who need their pixels.
    """
    absent, wrong = 0, []
    for image in landmarks.images:
        if image.stated_hw is None:
            continue
        try:
            stored_hw, orientation = read_stored(find(image.name))
        except DataError:
            absent += 1
            continue
        except ImageReadError:
            continue
        upright_hw = stored_hw[::-1] if orientation >= _SIDEWAYS else stored_hw
        if image.stated_hw != (stored_hw if from_stored else upright_hw):
            wrong.append((image.name, image.stated_hw, stored_hw, upright_hw))
    if wrong:
        raise _error(where, *wrong[0], count=len(wrong), from_stored=from_stored)
    return (f"{absent} images were not found, so the sizes in {where} were not compared",) if absent else ()


def _error(
    where: str,
    name: str,
    stated_hw: tuple[int, int],
    stored_hw: tuple[int, int],
    upright_hw: tuple[int, int],
    *,
    count: int,
    from_stored: bool,
) -> DataError:
    found = stored_hw if from_stored else upright_hw
    more = f" (and {count - 1} more)" if count > 1 else ""
    fault = f"{where}: states {_shown(stated_hw)} pixels for {name}, but the photo has {_shown(found)}{more}"
    if from_stored and stated_hw == upright_hw:
        return DataError(f"{fault}: its points are in the upright photo: do not set from_stored")
    if stated_hw == stored_hw:
        cure = "it was annotated without its EXIF orientation: convert the file with from_stored"
        return DataError(f"{fault}: {cure}", options=["from_stored"])
    if stated_hw == found[::-1]:
        return DataError(f"{fault}: it was rotated after it was annotated: use the photo as it was annotated")
    cure = "use the photos that were annotated, or scale the points; if the points fit, correct width and height"
    return DataError(f"{fault}: its points belong to another size: {cure}", options=["images=FOLDER"])


def _shown(size_hw: tuple[int, int]) -> str:
    return f"{size_hw[1]}x{size_hw[0]}"
