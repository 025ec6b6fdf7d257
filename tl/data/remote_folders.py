"""List the labeled images of class folders in an object store. Opens no images and never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from tl.errors import DataError
from tl.runtime.sources.names import composed
from tl.runtime.sources.paths import collect_images
from tl.runtime.sources.remote import list_remote


def iter_remote_folders(
    address: str, split_names: Mapping[str, str], say: Callable[[str], None]
) -> Iterator[tuple[str, str, str, str]]:
    """Yield address, name within the data set, label and split of each image in class folders, or in those of splits.

    `split_names`: usual names of splits, in lower case. Raises `DataError`.
    """
    names, is_folder = list_remote(f"{address}/")
    found = collect_images((name, is_folder) for name in names)
    below = [path[len(address) + 1 :].split("/") for path in found.paths]
    tops = {parts[0] for parts in below if len(parts) > 2}
    has_splits = "train" in {split_names.get(name.casefold()) for name in tops}
    skipped = found.hidden + found.not_images
    for path, parts in zip(found.paths, below, strict=True):
        split = split_names.get(parts[0].casefold(), "") if has_splits else ""
        if has_splits and not split:
            raise DataError(f"{address}: unexpected folder '{parts[0]}': expected only train/, val/ and test/")
        if len(parts) > 1 + has_splits:
            yield path, "/".join(parts), composed(parts[has_splits]), split
        else:
            skipped += 1
    if skipped:
        say(f"{address}: skipped {skipped} objects that are hidden, not images, or not in the folder of a class")
