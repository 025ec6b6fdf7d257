"""`tl verify`: check that a model file reproduces its validated outputs on this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from tl.commands.console import device_name, show_json, warn
from tl.commands.model_files import check_model_files
from tl.commands.options import Device


def command(
    model: Annotated[Path, typer.Argument(help="Model file.", show_default=False)],
    device: Device = "auto",
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Stop a model that computes longer than this.")] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Run a model file's golden samples on this machine and compare the outputs with the stored ones.

    Examples:
    - `tl verify beetles.onnx`

    - `tl verify beetles.onnx --device cuda`

    - `tl verify beetles.onnx --device openvino`
    """
    from tl.runtime.model_file.selftest import run_selftest

    check_model_files(model)
    result = run_selftest(model, device=device, max_seconds=max_seconds)
    warn(
        f"{model}: verified on {device_name(result.provider)} in {result.precision}: {result.samples} samples, "
        f"max difference {result.max_abs_diff:.1e} (allowed {result.tolerance:.0e})"
    )
    if as_json:
        show_json({"model": str(model), **dataclasses.asdict(result)})
