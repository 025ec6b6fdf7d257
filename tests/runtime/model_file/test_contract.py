from __future__ import annotations

import copy
import dataclasses
import json
import unicodedata
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models import make_contract
from tl.errors import ModelFileError
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.runtime.model_file.contract import Contract, GoldenSample, dump_contract, parse_contract
from tl.runtime.model_file.conversions import Quantization

PLAIN: dict[str, Any] = json.loads(dump_contract(make_contract()))


def all_fields(plain: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of all fields in the contract's dataclasses, without its free-form dictionaries."""
    free = {"config", "val_metrics", "versions", "session_max_abs_diff", "tolerance"}
    paths = []
    for key, value in plain.items():
        paths.append((*path, key))
        if isinstance(value, dict) and key not in free:
            paths += all_fields(value, (*path, key))
    return paths


def changed(path: tuple[str, ...], value: Any = None, *, drop: bool = False) -> str:
    plain = copy.deepcopy(PLAIN)
    inner = plain
    for key in path[:-1]:
        inner = inner[key]
    if drop:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return json.dumps(plain)


def fault(text: str) -> str:
    with pytest.raises(ModelFileError) as caught:
        parse_contract(text, "beetles.onnx")
    message = str(caught.value)
    assert message.startswith("beetles.onnx: ")
    return message


def test_parse_contract__round_trip() -> None:
    contract = make_contract(("a", "ü", "日本"), build_preprocessing((6, 8), "short_side", bit_depth_max=4095))
    assert parse_contract(dump_contract(contract), "x") == contract
    assert parse_contract(dump_contract(make_contract()), "x").preprocessing.short_side is None


QUANTISATION = Quantization(
    method="int8",
    calibration_images=100,
    seed=0,
    images=400,
    top1_agreement=0.995,
    max_abs_diff=0.25,
    speedup=1.5,
    slowest=1.25,
    fastest=1.75,
    rounds=11,
    faster_rounds=11,
    provider="CPUExecutionProvider",
    processor="Pocket calculator",
    threads=2,
    batch_size=1,
    kept_slower=False,
)


def test_parse_contract__lower_precision() -> None:
    lower = make_contract(precision="int8", quantization=QUANTISATION)
    assert parse_contract(dump_contract(lower), "x") == lower
    adopted = make_contract(precision="fp16")  # converted by another tool: nothing was measured
    assert parse_contract(dump_contract(adopted), "x") == adopted
    text = dump_contract(lower)
    assert "precision fp32 must not have 'quantization'" in fault(
        text.replace('"precision":"int8"', '"precision":"fp32"')
    )


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Quantization)])
def test_parse_contract__lower_precision_needs_every_figure(field: str) -> None:
    plain = json.loads(dump_contract(make_contract(precision="int8", quantization=QUANTISATION)))
    del plain["quantization"][field]
    assert f"contract.quantization: missing field '{field}'" in fault(json.dumps(plain))


FACTS = {
    "flip_pairs": [["tip", "base"]],
    "skeleton": [],
    "mean_shape": [[0.0, 0.5], [0.0, -0.5]],
    "shape_limit": 0.25,
    "region": "box",
    "region_margin": 0.1,
}
POINTS = PLAIN | {
    "task": "landmarks",
    "class_names": [],
    "keypoint_names": ["tip", "base"],
    "landmarks": FACTS,
    "outputs": ["keypoints"],
    "golden": {"source": "synthetic", "tolerance": {"fp32": 0.05}, "samples": [{"png": "", "expected": [1, 2, 3, 4]}]},
}


def test_parse_contract__landmarks() -> None:
    contract = parse_contract(json.dumps(POINTS), "x")
    assert (contract.keypoint_names, contract.main_output) == (("tip", "base"), "keypoints")
    assert contract.landmarks is not None
    assert (contract.landmarks.flip_pairs, contract.landmarks.region) == ((("tip", "base"),), "box")
    assert parse_contract(dump_contract(contract), "x") == contract


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"landmarks": None}, "task 'landmarks' does not match the field 'landmarks'"),
        ({"outputs": ["points"]}, "requires the outputs ['keypoints']"),
        ({"landmarks": {**FACTS, "mean_shape": [[0.0, 0.5]]}}, "the mean shape has 1 points for 2 names"),
        ({"golden": {**POINTS["golden"], "samples": [{"png": "", "expected": [1, 2]}]}}, "has 2 values, expected 4"),
    ],
)
def test_parse_contract__faulty_landmarks(changes: dict[str, Any], message: str) -> None:
    assert message in fault(json.dumps(POINTS | changes))


def test_parse_contract__names_of_macos_are_composed() -> None:
    plain = copy.deepcopy(PLAIN)
    plain["class_names"][0] = unicodedata.normalize("NFD", "Käfer")
    names = parse_contract(json.dumps(plain), "m.onnx").class_names
    assert names[0] == unicodedata.normalize("NFC", "Käfer")
    plain["class_names"][1] = names[0]
    assert "repeated name 'Käfer'" in fault(json.dumps(plain))


@pytest.mark.parametrize("path", all_fields(PLAIN), ids="/".join)
def test_parse_contract__missing_field_is_named(path: tuple[str, ...]) -> None:
    message = fault(changed(path, drop=True))
    assert path[-1] in message
    assert "missing" in message


@pytest.mark.parametrize("path", all_fields(PLAIN), ids="/".join)
def test_parse_contract__unknown_field_is_named(path: tuple[str, ...]) -> None:
    assert "unknown field 'surplus'" in fault(changed((*path[:-1], "surplus"), 1))


@pytest.mark.parametrize("path", all_fields(PLAIN), ids="/".join)
def test_parse_contract__wrong_type_is_named(path: tuple[str, ...]) -> None:
    message = fault(changed(path, [["x"]]))  # no field contains a list of lists
    assert path[-1] in message


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema_version",), 5, "schema_version 5 is too new, this version of tl reads only up to 4: upgrade"),
        (("schema_version",), 0, "invalid schema_version (0)"),
        (("schema_version",), True, "invalid schema_version (True)"),
        (("schema_version",), "1", "invalid schema_version ('1')"),
        (("task",), "detection", "contract.task: expected one of classification, landmarks"),
        (("task",), "landmarks", "requires class_names for classification"),
        (("class_names",), [], "requires class_names for classification"),
        (("class_names",), ["red", "green", "red"], "repeated name 'red'"),
        (("class_names",), ["red", "green"], "a golden sample has 3 values, expected 2"),
        (("keypoint_names",), ["tip"], "requires class_names for classification and multilabel, keypoint_names for"),
        (("temperature",), 0, "temperature must be positive"),
        (("temperature",), -1.5, "temperature must be positive"),
        (("preprocessing", "resize_mode"), "stretch", "contract.preprocessing.resize_mode"),
        (("preprocessing", "alpha"), "black", "contract.preprocessing.alpha: expected one of white, found 'black'"),
        (("preprocessing", "input_hw"), [0, 8], "contract.preprocessing: input_hw must be positive"),
        (
            ("preprocessing", "input_hw"),
            [60_000, 60_000],
            "contract.preprocessing: input_hw (60000, 60000) or short_side",
        ),
        (("preprocessing", "bit_depth_max"), 99, "contract.preprocessing: bit_depth_max"),
        (("parity", "images"), 1.5, "contract.parity.images: expected an integer"),
    ],
)
def test_parse_contract__faulty_value(path: tuple[str, ...], value: Any, message: str) -> None:
    assert message in fault(changed(path, value))


@pytest.mark.parametrize("text", ["", "null", "[]", "3", "{", '{"schema_version": 1, "schema_version": 1}', "{}"])
def test_parse_contract__not_a_contract(text: str) -> None:
    assert "invalid contract" in fault(text)


def test_parse_contract__nan_is_refused() -> None:
    assert "NaN" in fault(changed(("temperature",), float("nan")))


def test_parse_contract__huge_integer_is_refused() -> None:
    assert "temperature" in fault(changed(("temperature",), 10**400))


def test_parse_contract__deep_nesting_is_refused() -> None:
    assert "nested too deeply" in fault(
        dump_contract(make_contract()).replace('"config":{}', '"config":{"a":' + "[" * 99_999)
    )


def test_parse_contract__what_is_read_can_be_written() -> None:
    text = dump_contract(make_contract()).replace('"config":{}', '"config":{"lr":1e400}')
    assert "1e400" in text
    try:
        contract = parse_contract(text, "x")
    except ModelFileError:
        return
    assert parse_contract(dump_contract(contract), "x") == contract


def test_parse_contract__too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl.runtime.model_file.contract.MAX_CONTRACT_BYTES", 1 << 20)
    assert "larger than 1 MiB" in fault(" " * ((1 << 20) + 1))


def test_contract__programming_faults_are_value_errors() -> None:
    with pytest.raises(ValueError, match="repeated name 'a'"):
        make_contract(("a", "b", "a"))
    golden = dataclasses.replace(make_contract().golden, samples=(GoldenSample("", (1.0,)),))
    with pytest.raises(ValueError, match="1 values, expected 3"):
        make_contract(golden=golden)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([0.5, -1.0, 1e300, 10**400]) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(all_fields(PLAIN)), JSON_VALUES)
def test_parse_contract__any_value_anywhere(path: tuple[str, ...], value: Any) -> None:
    # `suppress` lets other errors through
    with suppress(ModelFileError):
        assert isinstance(parse_contract(changed(path, value), "x"), Contract)


@given(st.floats(0, 1), st.text(max_size=3), st.integers(0, 30))
def test_parse_contract__any_edit_of_the_text(place: float, insert: str, cut: int) -> None:
    text = dump_contract(make_contract())
    start = int(place * len(text))
    # as above
    with suppress(ModelFileError):
        assert isinstance(parse_contract(text[:start] + insert + text[start + cut :], "x"), Contract)


def older(version: int) -> dict[str, Any]:
    """The contract of `PLAIN` as written by that schema version."""
    plain = copy.deepcopy(PLAIN)
    del plain["taxonomy"], plain["boxes"], plain["regression"], plain["multilabel"], plain["any_size"]
    for name in ("channels", "project", "resized_by"):
        del plain["preprocessing"][name]
    plain["schema_version"] = version
    if version == 3:
        return plain
    plain["thresholds"] = {}
    for now, before in {"preprocessing": "recipe", "ood": "unknown", "quantization": "quantisation"}.items():
        plain[before] = plain.pop(now)
    if version == 1:
        for name in ("ensemble", "conformal", "unknown"):
            del plain[name]
    return plain


@pytest.mark.parametrize("version", [1, 2, 3])
def test_parse_contract__older_schema(version: int) -> None:
    assert parse_contract(json.dumps(older(version)), "x") == make_contract()


@pytest.mark.parametrize(("version", "where"), [(1, "recipe"), (2, "recipe"), (3, "preprocessing")])
def test_parse_contract__older_schema_with_newer_preprocessing(version: int, where: str) -> None:
    plain = older(version)
    plain[where]["project"] = "max"
    assert "contract.preprocessing: unknown field 'project' in schema_version 3" in fault(json.dumps(plain))


def test_parse_contract__channels() -> None:
    preprocessing = build_preprocessing((6, 8), channels=("0", "GFP", "2", "3"), project="max")
    contract = make_contract(preprocessing=preprocessing)
    assert parse_contract(dump_contract(contract), "x") == contract
    for value, reason in (
        (["0", "0"], "got '0' more than once"),
        ([], "channels must be 1 to 64"),
        ([0], "channels[0]: expected a text"),
        (["1"], "pad_rgb must have 3 values"),
    ):
        plain = json.loads(dump_contract(contract))
        plain["preprocessing"]["channels"] = value
        assert reason in fault(json.dumps(plain)), value


def test_parse_contract__older_names_of_outputs() -> None:
    plain = older(2)
    plain["outputs"] = ["probabilities", "unknown_score"]
    plain["parity"]["session_max_abs_diff"] = {"probabilities": 0.0, "unknown_score": 1e-6}
    contract = parse_contract(json.dumps(plain), "x")
    assert contract.outputs == ("probabilities", "ood_score")
    assert contract.parity.session_max_abs_diff == {"probabilities": 0.0, "ood_score": 1e-6}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("field", ["recipe", "thresholds", "golden"])
def test_parse_contract__older_schema_lacks_a_field(version: int, field: str) -> None:
    plain = older(version)
    del plain[field]
    assert f"missing field '{field}'" in fault(json.dumps(plain))


@pytest.mark.parametrize(
    ("version", "field"),
    [(1, "conformal"), (1, "preprocessing"), (2, "preprocessing"), (2, "ood"), (3, "taxonomy"), (3, "boxes")],
)
def test_parse_contract__older_schema_with_a_newer_field(version: int, field: str) -> None:
    plain = older(version) | {field: None}
    assert f"unknown field '{field}' in schema_version" in fault(json.dumps(plain))


@pytest.mark.parametrize("field", ["outputs", "parity"])
def test_parse_contract__older_schema_with_a_faulty_value(field: str) -> None:
    assert f"contract.{field}: expected" in fault(json.dumps(older(2) | {field: 3}))
