from __future__ import annotations

import sys

import pytest

from tl.errors import DeviceError
from tl.runtime import providers
from tl.runtime.providers import OPENVINO, PROVIDERS, by_device, device_name, parse_device, provider_fault, runs_on_cpu

# What onnxruntime offers in each wheel, as its documentation lists it: stand-ins for machines that are not here.
OFFERED = {
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
    "coreml": ["CoreMLExecutionProvider", "CPUExecutionProvider"],
    "directml": ["DmlExecutionProvider", "CPUExecutionProvider"],
    "migraphx": ["MIGraphXExecutionProvider", "CPUExecutionProvider"],
    "rocm": ["ROCMExecutionProvider", "CPUExecutionProvider"],
}


def fault(device: str, *, wheel: str = "", platform: str = "", environment: dict[str, str] | None = None) -> str | None:
    row = by_device(device)
    return provider_fault(
        device,
        OFFERED[device],
        {wheel or row.wheel: "1.24.4"},
        platform=platform or row.platforms[0],
        environment=environment or {},
    )


@pytest.mark.parametrize("device", OFFERED)
def test_provider_fault__none_where_everything_is_there(device: str) -> None:
    assert fault(device) is None


@pytest.mark.parametrize(
    ("device", "platform", "says"),
    [
        ("coreml", "linux", "Core ML exists on darwin only, this is linux"),
        ("directml", "linux", "DirectML exists on win32 only, this is linux"),
        ("migraphx", "win32", "MIGraphX exists on linux only, this is win32"),
        ("tensorrt", "darwin", "TensorRT exists on linux, win32 only, this is darwin"),
    ],
)
def test_provider_fault__another_system(device: str, platform: str, says: str) -> None:
    assert fault(device, platform=platform) == says


def test_provider_fault__another_wheel() -> None:
    assert fault("directml", wheel="onnxruntime") == (
        "the wheel onnxruntime does not contain DirectML: pip uninstall -y onnxruntime, then pip install "
        "onnxruntime-directml"
    )


def test_provider_fault__two_wheels_or_none() -> None:
    both = provider_fault("rocm", [], {"onnxruntime": "1.31.1", "onnxruntime-rocm": "1.22.2"}, platform="linux")
    assert both is not None
    assert both.startswith("onnxruntime and onnxruntime-rocm are installed and overwrite each other: pip uninstall -y ")
    assert "no onnxruntime is installed: pip install onnxruntime-rocm" in str(
        provider_fault("rocm", [], {}, platform="linux")
    )


def test_provider_fault__built_without_it() -> None:
    found = provider_fault("coreml", ["CPUExecutionProvider"], {"onnxruntime": "1.31.1"}, platform="darwin")
    assert found == "this onnxruntime 1.31.1 was built without CoreMLExecutionProvider"


def test_provider_fault__environment_that_lowers_the_precision() -> None:
    found = fault("migraphx", environment={"ORT_MIGRAPHX_FP16_ENABLE": "1"})
    assert found == "the environment variable ORT_MIGRAPHX_FP16_ENABLE would change its precision: unset it"


def test_chain__options_and_what_follows() -> None:
    offered = OFFERED["tensorrt"]
    assert by_device("cuda").chain(1, offered) == [
        ("CUDAExecutionProvider", {"use_tf32": "0", "device_id": "1"}),
        "CPUExecutionProvider",
    ]
    first, second, last = by_device("tensorrt").chain(2, offered)
    assert first == (
        "TensorrtExecutionProvider",
        {"trt_fp16_enable": "0", "trt_int8_enable": "0", "device_id": "2"},
    )
    assert (second, last) == (("CUDAExecutionProvider", {"use_tf32": "0", "device_id": "2"}), "CPUExecutionProvider")
    assert by_device("coreml").chain(0, OFFERED["coreml"])[0][1]["MLComputeUnits"] == "CPUAndGPU"  # no Neural Engine


def test_parse_device__names_and_numbers() -> None:
    assert [parse_device(name) for name in ("auto", "cpu", "openvino", "cuda:1", "migraphx:2", "tensorrt")] == [
        ("auto", 0),
        ("cpu", 0),
        ("openvino", 0),
        ("cuda", 1),
        ("migraphx", 2),
        ("tensorrt", 0),
    ]
    for name in ("openvino:1", "coreml:0", "cpu:0", "mps", "tpu", "cuda:-1"):
        with pytest.raises(DeviceError, match=f"unknown device '{name}': expected auto, cpu, cuda"):
            parse_device(name)


def test_providers__names_are_unique_and_only_three_are_proven() -> None:
    assert len({row.device for row in PROVIDERS}) == len({row.provider for row in PROVIDERS}) == len(PROVIDERS)
    assert [row.device for row in PROVIDERS if row.is_proven] == ["cpu", "cuda", "openvino"]
    assert set(providers.WHEELS) >= {"onnxruntime", "onnxruntime-gpu"}
    assert "openvino" not in providers.WHEELS  # it stands beside any of them


def test_runs_on_cpu__and_names() -> None:
    assert [runs_on_cpu(row.provider) for row in PROVIDERS] == [row.device in ("cpu", "openvino") for row in PROVIDERS]
    assert device_name("CPUExecutionProvider") == "the CPU"
    assert (device_name(OPENVINO), device_name("Other")) == ("OpenVINO", "Other")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names what Linux does not have")
@pytest.mark.parametrize("device", ["coreml", "directml"])
def test_session__a_device_of_another_system_is_refused(color_model: object, device: str) -> None:
    from tl.runtime.session import Session

    with pytest.raises(DeviceError, match=f"device '{device}' cannot be used: .* only, this is linux"):
        Session(str(color_model), device=device)
