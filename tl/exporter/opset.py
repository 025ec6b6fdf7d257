"""Versions of ONNX that files are written in. Knows onnx's model; needs no torch."""

from __future__ import annotations

import onnx

# What onnxruntime 1.18, the oldest supported, reads.
IR_VERSION = 10


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
