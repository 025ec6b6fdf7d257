"""Groups of classes at several ranks, such as genus and family: probabilities of groups, and the most special sure one.

Pure numpy on probabilities; reads taxonomies from CSV files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl.errors import DataError
from tl.runtime.ensembles.selective import REJECTED
from tl.runtime.sources.names import composed
from tl.runtime.sources.tables import Table, read_table

# Separates the names in a class name that is a lineage, from the most general to the most special.
_LINEAGE = ";"
# Stands for the taxonomy in class names that are lineages.
NAMES = "names"


@dataclass(frozen=True)
class Taxonomy:
    """Groups of C classes. `ranks`: their names, from that of the classes themselves to the most general.

    `groups`: for each rank but the first, the group of each class. Classes in one group are in one group at every more
    general rank.
    """

    ranks: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if len(self.ranks) != len(self.groups) + 1 or len(set(self.ranks)) < len(self.ranks):
            raise ValueError(f"{len(self.groups)} columns of groups for the ranks {list(self.ranks)}")
        for rank, names, above, wider in zip(
            self.ranks[1:], self.groups, self.ranks[2:], self.groups[1:], strict=False
        ):
            homes: dict[str, str] = {}
            for name, home in zip(names, wider, strict=True):
                if homes.setdefault(name, home) != home:
                    raise ValueError(f"{rank} '{name}' is in {above} '{homes[name]}' and in '{home}'")
        if any(not name for names in self.groups for name in names):
            raise ValueError("a class has no group at some rank")


@dataclass(frozen=True)
class Ranked:
    """The most special group of sufficient probability: its `rank`, `name` and `confidence`.

    The name is "?" and the rank "" if there is none; then the confidence is that of the most general group.
    """

    rank: str
    name: str
    confidence: float


def group_probabilities(probabilities: NDArray[np.float32], groups: Sequence[str]) -> NDArray[np.float64]:
    """Sum probabilities (N, C) over each class's group, given by name for each class -> (N, C), one value per class."""
    _, numbers = np.unique(np.array(groups), return_inverse=True)
    sums = probabilities.astype(np.float64) @ np.eye(numbers.max() + 1)[numbers]
    return np.asarray(np.minimum(sums[:, numbers], 1.0))


def most_special(
    probabilities: NDArray[np.float32],
    class_names: Sequence[str],
    taxonomy: Taxonomy,
    least: float,
    label_ids: NDArray[np.int64] | None = None,
) -> list[Ranked]:
    """Return, for each row of probabilities (N, C), the most special rank whose most probable group has at least the
    probability `least`.

    A more general group contains a more special one, so its probability is at least as high. `label_ids` int64 (N,):
    the decided labels; of equally probable groups, that of the label is given.
    """
    columns = [tuple(class_names), *taxonomy.groups]
    levels = [probabilities.astype(np.float64), *(group_probabilities(probabilities, c) for c in taxonomy.groups)]
    labels = probabilities.argmax(axis=1) if label_ids is None else label_ids
    best = [_best_group(level, labels) for level in levels]
    found = []
    for n in range(len(probabilities)):
        sure = next((k for k in range(len(levels)) if best[k][1][n] >= least), None)
        if sure is None:
            found.append(Ranked("", REJECTED, float(best[-1][1][n])))
        else:
            found.append(Ranked(taxonomy.ranks[sure], columns[sure][best[sure][0][n]], float(best[sure][1][n])))
    return found


def _best_group(level: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return a class of each row's most probable group, the label where that is one, and the group's probability."""
    highest = level.max(axis=1)
    is_highest = level[np.arange(len(labels)), labels] >= highest
    return np.where(is_highest, labels, level.argmax(axis=1)), highest


def read_taxonomy(path: Path, class_names: Sequence[str]) -> Taxonomy:
    """Read a CSV whose first column holds class names and whose others hold their groups, the most special first.

    The header gives the ranks. Rows of other classes are ignored. Raises `DataError` naming the class or the row.
    """
    table = read_table(path)
    if len(table.columns) < 2:
        raise DataError(f"{path}: expected a column of classes and one for each rank (found: {table.shown})")
    first, *ranks = table.columns
    rows = _rows_by_class(table, first)
    if lacking := [name for name in class_names if name not in rows]:
        raise DataError(
            f"{path}: has no row for class '{lacking[0]}' ({len(lacking)} of {len(class_names)} are missing)"
        )
    for name in class_names:
        line, cells = rows[name]
        if hole := next((rank for rank in ranks if not cells[rank]), None):
            raise DataError(f"{table.where} row {line}: class '{name}' has no {hole}")
    groups = tuple(tuple(composed(rows[name][1][rank]) for name in class_names) for rank in ranks)
    return _checked(str(path), (first, *ranks), groups)


def taxonomy_of(given: str | None, class_names: Sequence[str]) -> Taxonomy | None:
    """Return the taxonomy in the CSV `given`, or of lineages for "names"; None for None. Raises `DataError`."""
    if given is None:
        return None
    return taxonomy_of_names(class_names) if given == NAMES else read_taxonomy(Path(given), class_names)


def taxonomy_of_names(class_names: Sequence[str]) -> Taxonomy:
    """Return the taxonomy of class names such as `Mammalia;Felidae;Felis catus`, the most general name first.

    Raises `DataError` if they are no lineages of equal length.
    """
    lineages = [[part.strip() for part in name.split(_LINEAGE)] for name in class_names]
    depths = {len(lineage) for lineage in lineages}
    if len(depths) != 1 or depths == {1} or not all(all(lineage) for lineage in lineages):
        raise DataError(f"class names are no lineages of equal length such as A;B;C, for example '{class_names[0]}'")
    (depth,) = depths
    ranks = ("class", *(f"rank {level}" for level in range(1, depth)))
    groups = tuple(tuple(_LINEAGE.join(line[: depth - level]) for line in lineages) for level in range(1, depth))
    return _checked("class names", ranks, groups)


def _rows_by_class(table: Table, column: str) -> dict[str, tuple[int, dict[str, str]]]:
    rows: dict[str, tuple[int, dict[str, str]]] = {}
    for line, cells in table.rows:
        name = composed(cells[column])
        if name in rows:
            raise DataError(f"{table.where} row {line}: class '{name}' appears twice")
        rows[name] = line, {key: value.strip() for key, value in cells.items()}
    return rows


def _checked(where: str, ranks: tuple[str, ...], groups: tuple[tuple[str, ...], ...]) -> Taxonomy:
    try:
        return Taxonomy(ranks, groups)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
