"""A torch module -> an ONNX graph, plain: no contract, no checks.

Knows torch's exporter and onnx-ir. Does not know runs, images or contracts; `exporter` adds those.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

OPSET = 18
# Source: onnxruntime's compatibility table; 1.18, the oldest supported, reads IR up to 10.
IR_VERSION = 10


def to_onnx(module: nn.Module, input_hw: tuple[int, int], output_names: Sequence[str]) -> onnx.ModelProto:
    """Export a module of `images` uint8 (N, H, W, 3) with N dynamic; private traces stripped."""
    example = torch.zeros(2, *input_hw, 3, dtype=torch.uint8)  # two images: a batch of one would be specialized
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations, which no user of tl can mend
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=list(output_names),
                dynamic_shapes=({0: torch.export.Dim("N", min=1, max=65536)},),
                verbose=False,
            )
    finally:
        exporter_log.setLevel(level)
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    model = program.model
    ClearMetadataAndDocStringPass()(model)  # stack traces with the exporting machine's paths
    model.ir_version = IR_VERSION
    model.metadata_props.clear()
    return onnx_ir.to_proto(model)
