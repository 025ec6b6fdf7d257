"""onnxruntime, with stand-ins for providers that are not here. tests/runtime/test_session.py has the CPU and CUDA."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tl.errors import DeviceError
from tl.runtime.devices import installed_wheels
from tl.runtime.engines import onnxruntime as module
from tl.runtime.engines.engine import RunFailedError
from tl.runtime.engines.onnxruntime import OnnxRuntime, open_onnxruntime


class StandIn:
    """A session of onnxruntime on another provider."""

    def __init__(self, provider: str, together: int = 1) -> None:
        self._provider = provider
        self._met = threading.Barrier(together, timeout=60)
        self.inside = self.most = 0

    def get_providers(self) -> list[str]:
        return [self._provider, "CPUExecutionProvider"]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="images", type="tensor(uint8)", shape=["N", 8, 8, 3])]

    get_outputs = get_inputs

    def run(self, *arguments: object) -> list[Any]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self._met.wait()  # with as many calls at the same time as expected
        time.sleep(0.02)
        self.inside -= 1
        return []


@pytest.mark.parametrize(("provider", "most"), [("DmlExecutionProvider", 1), ("CPUExecutionProvider", 4)])
def test_run__directml_runs_one_at_a_time(provider: str, most: int) -> None:
    stand_in = StandIn(provider, most)
    engine = OnnxRuntime(stand_in)
    assert engine.inputs == (("images", "tensor(uint8)", (None, 8, 8, 3)),)
    images = np.zeros((1, 8, 8, 3), np.uint8)
    threads = [threading.Thread(target=engine.run, args=(["images"], images, None)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stand_in.most == most


def test_open_onnxruntime__a_provider_that_does_not_start(color_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # onnxruntime would continue on the CPU; so do its own sessions here, which have no such provider.
    monkeypatch.setattr(module, "device_fault", lambda kind: None)
    with pytest.raises(DeviceError, match="device 'migraphx:1' cannot be used: onnxruntime could not start on this"):
        open_onnxruntime(str(color_model), "migraphx:1", 1)


def test_open_onnxruntime__auto_takes_no_unproven_provider(color_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "device_fault", {"cuda": "no CUDA"}.__getitem__)  # asks for no other device
    engine, fault = open_onnxruntime(str(color_model), "auto", 1)
    assert engine.provider == "CPUExecutionProvider"
    assert fault == ("no CUDA" if "onnxruntime-gpu" in installed_wheels() else None)


def test_run__a_wrong_size_is_one_line(color_model: Path) -> None:
    engine, _ = open_onnxruntime(str(color_model), "cpu", 1)
    with pytest.raises(RunFailedError) as caught:
        engine.run(["probabilities"], np.zeros((1, 9, 8, 3), np.uint8), None)
    assert "\n" not in str(caught.value)
