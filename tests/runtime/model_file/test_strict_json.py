from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.runtime.model_file.strict_json import dump_json, from_plain, parse_json, to_plain


@dataclass(frozen=True)
class Leaf:
    size_hw: tuple[int, int]
    kind: Literal["a", "b"]
    limit: float | None


@dataclass(frozen=True)
class Tree:
    name: str
    flag: bool
    leaves: tuple[Leaf, ...]
    scores: dict[str, float]
    extra: dict[str, Any]

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ValueError("a bad name")


TREE = Tree("t", True, (Leaf((1, 2), "a", None), Leaf((3, 4), "b", 0.5)), {"x": 1.0}, {"deep": [1, None, "ü"]})
PLAIN: dict[str, Any] = {
    "name": "t",
    "flag": True,
    "leaves": [
        {"size_hw": [1, 2], "kind": "a", "limit": None},
        {"size_hw": [3, 4], "kind": "b", "limit": 0.5},
    ],
    "scores": {"x": 1.0},
    "extra": {"deep": [1, None, "ü"]},
}


def fault(plain: Any) -> str:
    with pytest.raises(ValueError) as caught:
        from_plain(Tree, plain, "tree")
    return str(caught.value)


def test_to_plain__dataclasses_and_tuples() -> None:
    assert to_plain(TREE) == PLAIN


def test_from_plain__round_trip() -> None:
    assert from_plain(Tree, PLAIN, "tree") == TREE
    assert from_plain(Tree, parse_json(dump_json(TREE)), "tree") == TREE


def test_dump_json__compact_and_readable_by_any_reader() -> None:
    assert dump_json({"a": (1, 2.5), "ü": None}) == '{"a":[1,2.5],"ü":null}'
    assert json.loads(dump_json(TREE)) == PLAIN


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"deep": [-float("inf")]}])
def test_dump_json__no_nan(value: Any) -> None:
    with pytest.raises(ValueError):
        dump_json(value)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", Tree])
def test_to_plain__no_rule(value: object) -> None:
    with pytest.raises(TypeError, match="as JSON"):
        to_plain(value)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}'])
def test_parse_json__no_nan(text: str) -> None:
    with pytest.raises(ValueError, match="not allowed"):
        parse_json(text)


@pytest.mark.parametrize("text", ["1e400", '{"a": [-1e999]}'])
def test_parse_json__no_infinity_by_overflow(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_parse_json__no_endless_nesting() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(100_000 * "[")


def test_parse_json__no_repeated_fields() -> None:
    with pytest.raises(ValueError, match="repeated field 'b'"):
        parse_json('{"a": {"b": 1, "c": 2, "b": 1}}')


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", '{"a": 1,}', "[1] 2", "\ufeff{}"])
def test_parse_json__not_json(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_from_plain__missing_and_unknown_fields_at_once() -> None:
    changed = {key: value for key, value in PLAIN.items() if key not in ("flag", "extra")} | {"flagg": True}
    message = fault(changed)
    assert message == "tree: missing field 'extra'; missing field 'flag'; unknown field 'flagg'"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 1}, "tree.name: expected a text, found 1"),
        ({"flag": 1}, "tree.flag: expected true or false, found 1"),
        ({"leaves": {}}, "tree.leaves: expected a list, found {}"),
        ({"leaves": [3]}, "tree.leaves[0]: expected an object, found 3"),
        ({"scores": {"x": "1"}}, "tree.scores.x: expected a finite number, found '1'"),
        ({"scores": {"x": True}}, "tree.scores.x: expected a finite number, found True"),
        ({"scores": {"x": None}}, "tree.scores.x: expected a finite number, found None"),
        ({"scores": [1]}, "tree.scores: expected an object, found [1]"),
        ({"name": "bad"}, "tree: a bad name"),
    ],
)
def test_from_plain__wrong_type_names_the_field(changes: dict[str, Any], message: str) -> None:
    assert fault(PLAIN | changes) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size_hw": [1]}, "tree.leaves[0].size_hw: expected a list of 2, found [1]"),
        ({"size_hw": [1, 2.0]}, "tree.leaves[0].size_hw[1]: expected an integer, found 2.0"),
        ({"size_hw": [1, True]}, "tree.leaves[0].size_hw[1]: expected an integer, found True"),
        ({"kind": "c"}, "tree.leaves[0].kind: expected one of a, b, found 'c'"),
        ({"kind": ["a"]}, "tree.leaves[0].kind: expected one of a, b, found ['a']"),
        ({"limit": "0.5"}, "tree.leaves[0].limit: expected a finite number, found '0.5'"),
    ],
)
def test_from_plain__nested_fields(changes: dict[str, Any], message: str) -> None:
    assert fault(PLAIN | {"leaves": [PLAIN["leaves"][0] | changes]}) == message


def test_from_plain__integers_serve_as_numbers() -> None:
    result = from_plain(Tree, PLAIN | {"scores": {"x": 3}}, "tree")
    assert result.scores == {"x": 3.0}
    assert type(result.scores["x"]) is float


def test_from_plain__integer_over_the_range_of_floats() -> None:
    assert "tree.scores.x: expected a finite number" in fault(PLAIN | {"scores": {"x": 10**400}})


def test_from_plain__long_values_are_cut_in_messages() -> None:
    assert len(fault(PLAIN | {"flag": "x" * 1000})) < 120


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_parse_json__inverts_dump_json(value: Any) -> None:
    assert parse_json(dump_json(value)) == value


@given(JSON_VALUES)
def test_from_plain__any_value_gives_a_tree_or_value_error(value: Any) -> None:
    for plain in (value, PLAIN | {"extra": {}, "leaves": value}, PLAIN | {"scores": {"x": value}}):
        # `suppress` lets other errors through
        with suppress(ValueError):
            assert isinstance(from_plain(Tree, plain, "tree"), Tree)
