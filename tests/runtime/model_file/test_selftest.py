from __future__ import annotations

import base64
import dataclasses
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.models import color_probabilities, make_contract, make_model, solid
from tests.runtime.images import encode, noise, png
from tl.errors import DeviceError, ModelFileError, ParityError
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.runtime.model_file.contract import Golden, GoldenSample
from tl.runtime.model_file.selftest import encode_golden_png, golden_image, run_selftest

CONTRACT = make_contract()


def model_with_golden(path: Path, samples: tuple[GoldenSample, ...], **changes: Any) -> Path:
    golden = Golden("validation", {"fp32": 1e-4, "fp16": 1e-2}, samples)
    return make_model(path, contract=dataclasses.replace(CONTRACT, golden=dataclasses.replace(golden, **changes)))


def sample(data: bytes) -> GoldenSample:
    return GoldenSample(base64.b64encode(data).decode(), (0.2, 0.3, 0.5))


def test_run_selftest__passes(color_model: Path) -> None:
    result = run_selftest(color_model, device="cpu")
    assert (result.provider, result.samples, result.tolerance) == ("CPUExecutionProvider", 2, 1e-4)
    assert result.max_abs_diff < 1e-6  # float32 softmax in the graph against float64 by hand


@pytest.mark.parametrize("shift", [0.01, -0.01, 0.5])
def test_run_selftest__another_result_is_refused(tmp_path: Path, shift: float) -> None:
    expected = color_probabilities(noise(8, 8)).astype(float)
    shifted = GoldenSample(encode_golden_png(noise(8, 8)), (expected[0] + shift, *expected[1:]))
    path = model_with_golden(tmp_path / "m.onnx", (CONTRACT.golden.samples[0], shifted))
    with pytest.raises(ParityError, match=rf"m.onnx: on CPU\w+ the golden samples differ by {abs(shift):.2g}, allowed"):
        run_selftest(path, device="cpu")


def test_run_selftest__tolerance_is_that_of_the_precision(tmp_path: Path) -> None:
    expected = color_probabilities(noise(8, 8)).astype(float)
    shifted = GoldenSample(encode_golden_png(noise(8, 8)), (expected[0] + 0.005, *expected[1:]))
    golden = Golden("validation", {"fp32": 1e-4, "fp16": 1e-2}, (shifted,))
    half = make_model(tmp_path / "h.onnx", contract=dataclasses.replace(CONTRACT, golden=golden, precision="fp16"))
    # 0.005, with the float32 rounding of the expected values
    assert run_selftest(half, device="cpu").max_abs_diff == pytest.approx(0.005, abs=1e-6)
    with pytest.raises(ParityError):
        run_selftest(model_with_golden(tmp_path / "f.onnx", (shifted,)), device="cpu")


def test_run_selftest__nan_is_refused(tmp_path: Path) -> None:
    path = make_model(tmp_path / "nan.onnx", gain=float("nan"), contract=CONTRACT)
    with pytest.raises(ParityError, match="differ by inf"):
        run_selftest(path, device="cpu")


def test_run_selftest__weights_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(ParityError):
        run_selftest(make_model(tmp_path / "m.onnx", gain=0.04, contract=CONTRACT), device="cpu")


def test_run_selftest__no_samples(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no golden samples"):
        run_selftest(model_with_golden(tmp_path / "m.onnx", ()), device="cpu")


def test_run_selftest__no_tolerance_for_the_precision(tmp_path: Path) -> None:
    path = model_with_golden(tmp_path / "m.onnx", CONTRACT.golden.samples, tolerance={"int8": 0.1})
    with pytest.raises(ModelFileError, match="no tolerance for precision 'fp32'"):
        run_selftest(path, device="cpu")


def test_run_selftest__damaged_sample(tmp_path: Path) -> None:
    broken = GoldenSample("!" + CONTRACT.golden.samples[0].png, CONTRACT.golden.samples[0].expected)
    with pytest.raises(ModelFileError, match=r"m\.onnx: a golden sample is damaged"):
        run_selftest(model_with_golden(tmp_path / "m.onnx", (broken,)), device="cpu")


def test_run_selftest__unknown_device(color_model: Path) -> None:
    with pytest.raises(DeviceError):
        run_selftest(color_model, device="tpu")


def test_golden_image__round_trip() -> None:
    image = noise(8, 8)
    golden = GoldenSample(encode_golden_png(image), (0.2, 0.3, 0.5))
    np.testing.assert_array_equal(golden_image(golden, CONTRACT, "x"), image)


def test_golden_image__more_than_three_channels() -> None:
    random = np.random.default_rng(0)
    preprocessing = build_preprocessing((8, 6), channels=("0", "1", "2", "3", "4"))
    contract = make_contract(preprocessing=preprocessing)
    image = random.integers(0, 256, (8, 6, 5), np.uint8)
    golden = GoldenSample(encode_golden_png(image), (0.2, 0.3, 0.5))
    with Image.open(BytesIO(base64.b64decode(golden.png))) as png_image:
        assert (png_image.mode, png_image.size) == ("L", (6, 40))
        np.testing.assert_array_equal(np.asarray(png_image)[8:16], image[:, :, 1])
    np.testing.assert_array_equal(golden_image(golden, contract, "x"), image)
    for other in (image[:, :, :4], image[:, :, :3], image[:7]):
        with pytest.raises(ModelFileError, match="x: a golden sample is damaged"):
            golden_image(GoldenSample(encode_golden_png(other), (0.2, 0.3, 0.5)), contract, "x")


@pytest.mark.parametrize(
    "data",
    [
        encode(solid((1, 2, 3), 8, 9), "PNG"),
        encode(np.zeros((8, 8), np.uint8), "PNG"),
        encode(noise(8, 8), "BMP"),
        encode(noise(8, 8), "PNG")[:-40],
        b"",
        png(60_000, 60_000, bits=8, color=2),
    ],
    ids=["size", "gray", "bmp", "truncated", "empty", "bomb"],
)
def test_golden_image__other_images_are_refused(data: bytes) -> None:
    with pytest.raises(ModelFileError, match="x: a golden sample is damaged"):
        golden_image(sample(data), CONTRACT, "x")


@pytest.mark.parametrize("text", ["%%%", "ü", "AAA", " "])
def test_golden_image__not_base64(text: str) -> None:
    with pytest.raises(ModelFileError, match="x: a golden sample is damaged"):
        golden_image(GoldenSample(text, (0.2, 0.3, 0.5)), CONTRACT, "x")


@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6), st.floats(0, 1))
def test_golden_image__fuzzed(edits: list[tuple[float, int]], keep: float) -> None:
    data = bytearray(encode(noise(8, 8), "PNG"))
    for place, value in edits:
        data[int(place * len(data))] = value
    try:
        image = golden_image(sample(bytes(data[: max(1, int(keep * len(data)))])), CONTRACT, "x")
    except ModelFileError:
        return
    assert image.shape == (8, 8, 3)


def endless(path: Path) -> Path:
    """The color model, whose probabilities pass through a loop that never ends."""
    model = onnx.load(make_model(path, contract=CONTRACT))
    node = next(node for node in model.graph.node if "probabilities" in node.output)
    node.output[list(node.output).index("probabilities")] = "before"
    shape = ["N", 3]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, shape),
        ],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    model.graph.node.append(helper.make_node("Loop", ["", "true", "before"], ["probabilities"], body=body))
    onnx.save(model, path)
    return path


def test_run_selftest__endless_loop(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    with pytest.raises(ModelFileError, match=r"m.onnx: the self-test did not finish within 0.5 s") as caught:
        run_selftest(endless(tmp_path / "m.onnx"), device="cpu", max_seconds=0.5)
    assert time.monotonic() - begun < 20  # it would never end
    assert caught.value.options == ("max_seconds=3600",)
    assert capfd.readouterr() == ("", "")
