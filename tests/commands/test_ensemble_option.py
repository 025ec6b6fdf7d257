from __future__ import annotations

import pytest

from tl.cli import spread_ensemble


@pytest.mark.parametrize(
    ("typed", "parsed"),
    [
        ("images --ensemble a.onnx b.onnx c.onnx", "images --ensemble a.onnx --ensemble b.onnx --ensemble c.onnx"),
        ("--ensemble a.onnx b.onnx images -o out.csv", "--ensemble a.onnx --ensemble b.onnx images -o out.csv"),
        ("--ensemble a.onnx --ensemble b.onnx images", "--ensemble a.onnx --ensemble b.onnx images"),
        (
            "images --ensemble a.onnx b.ONNX --vote hard c.onnx",
            "images --ensemble a.onnx --ensemble b.ONNX --vote hard c.onnx",
        ),
        ("images --ensemble=a.onnx b.onnx", "images --ensemble a.onnx --ensemble b.onnx"),
        ("images --ensemble a.onnx -- b.onnx", "images --ensemble a.onnx -- b.onnx"),
        ("images --ensemble", "images --ensemble"),
        ("a.onnx --model b.onnx", "a.onnx --model b.onnx"),
    ],
)
def test_spread_ensemble(typed: str, parsed: str) -> None:
    assert spread_ensemble(typed.split()) == parsed.split()
