"""OpenVINO where it is not installed."""

from __future__ import annotations

import sys

import pytest

from tl.errors import MissingExtraError
from tl.runtime.engines import openvino as module


def test_import_openvino__missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    monkeypatch.setattr("builtins.__import__", _without_openvino(__import__))
    with pytest.raises(MissingExtraError, match=r"pip install 'tl-toolkit\[openvino\]'"):
        module.import_openvino()


def _without_openvino(real: object) -> object:
    def load_module(name: str, *arguments: object) -> object:
        if name == "openvino":
            raise ImportError("No module named 'openvino'")
        return real(name, *arguments)  # type: ignore[operator]

    return load_module
