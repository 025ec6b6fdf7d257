from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.errors import DataError
from tl.runtime.ensembles.taxonomy import (
    Ranked,
    Taxonomy,
    group_probabilities,
    most_special,
    read_taxonomy,
    taxonomy_of_names,
)

CLASSES = ("cat", "lion", "dog", "oak")
CSV = "species,family,kingdom\ncat,Felidae,animal\nlion,Felidae,animal\ndog,Canidae,animal\noak,Fagaceae,plant\n"


@pytest.fixture
def taxonomy(tmp_path: Path) -> Taxonomy:
    (tmp_path / "t.csv").write_text(CSV)
    return read_taxonomy(tmp_path / "t.csv", CLASSES)


def test_read_taxonomy__by_hand(taxonomy: Taxonomy) -> None:
    assert taxonomy.ranks == ("species", "family", "kingdom")
    assert taxonomy.groups[0] == ("Felidae", "Felidae", "Canidae", "Fagaceae")
    assert taxonomy.groups[1] == ("animal", "animal", "animal", "plant")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (CSV.replace("dog,", "wolf,"), "has no row for class 'dog'"),
        (CSV.replace("Canidae", ""), "row 4: class 'dog' has no family"),
        (
            CSV.replace("lion,Felidae,animal", "lion,Felidae,plant"),
            "family 'Felidae' is in kingdom 'animal' and in 'plant'",
        ),
        (CSV + "cat,Felidae,animal\n", "row 6: class 'cat' appears twice"),
        ("species\ncat\n", "expected a column of classes and one for each rank"),
    ],
)
def test_read_taxonomy__faults(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=fault):
        read_taxonomy(tmp_path / "t.csv", CLASSES)


def test_taxonomy_of_names__lineages() -> None:
    found = taxonomy_of_names(("A;B;C", "A;B;D", "A;E;F"))
    assert found.ranks == ("class", "rank 1", "rank 2")
    assert found.groups == (("A;B", "A;B", "A;E"), ("A", "A", "A"))
    with pytest.raises(DataError, match="no lineages of equal length"):
        taxonomy_of_names(("A;B", "C"))


def test_most_special__by_hand(taxonomy: Taxonomy) -> None:
    probabilities = np.array(
        [[0.9, 0.05, 0.03, 0.02], [0.5, 0.45, 0.03, 0.02], [0.3, 0.3, 0.35, 0.05], [0.3, 0.1, 0.1, 0.5]], np.float32
    )
    found = most_special(probabilities, CLASSES, taxonomy, 0.8)
    assert [(one.rank, one.name) for one in found] == [
        ("species", "cat"),
        ("family", "Felidae"),
        ("kingdom", "animal"),
        ("", "?"),
    ]
    assert [one.confidence for one in found] == pytest.approx([0.9, 0.95, 0.95, 0.5])


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_most_special__sums_and_grows_up_the_tree(seed: int, least: float) -> None:
    random = np.random.default_rng(seed)
    families = random.integers(0, 5, 12)
    taxonomy = Taxonomy(
        ("class", "family", "order"),
        (tuple(f"f{i}" for i in families), tuple(f"o{i // 2}" for i in families)),
    )
    probabilities = random.dirichlet(np.full(12, 0.3), 20).astype(np.float32)
    by_family, by_order = (group_probabilities(probabilities, groups) for groups in taxonomy.groups)
    for n in range(20):
        for c in range(12):
            members = [i for i in range(12) if taxonomy.groups[0][i] == taxonomy.groups[0][c]]
            assert by_family[n, c] == pytest.approx(float(probabilities[n, members].sum()), abs=1e-6)
    assert (by_family >= probabilities - 1e-6).all()
    assert (by_order >= by_family - 1e-6).all()
    names = [f"c{i}" for i in range(12)]
    low, high = (most_special(probabilities, names, taxonomy, share) for share in (least, min(0.99, least + 0.04)))
    order = ["class", "family", "order", ""]
    for sure, surer in zip(low, high, strict=True):
        assert order.index(surer.rank) >= order.index(sure.rank)  # more confidence, no more special rank
        assert isinstance(sure, Ranked)


@pytest.mark.parametrize("label", [0, 1])
def test_most_special__of_tied_classes_gives_the_label(label: int) -> None:
    taxonomy = Taxonomy(("species", "family"), (("a", "b"),))
    tied = np.array([[0.5, 0.5]], np.float32)
    (found,) = most_special(tied, ("x", "y"), taxonomy, 0.5, np.array([label]))
    assert (found.rank, found.name) == ("species", "xy"[label])
    (found,) = most_special(tied, ("x", "y"), Taxonomy(("s", "f"), (("a", "a"),)), 0.6, np.array([label]))
    assert (found.rank, found.name) == ("f", "a")
