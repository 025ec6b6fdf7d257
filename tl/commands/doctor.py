"""`tl doctor`: report what works on this machine and what is missing."""

from __future__ import annotations

import dataclasses
from importlib import util
from typing import Annotated

import typer

from tl.commands.console import EXIT_FAULT, show, show_json
from tl.runtime.doctor import Finding, examine


def command(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Check this machine: cores, onnxruntime, CUDA, decoders, torch.

    Examples:
    - `tl doctor`

    - `tl doctor --json > machine.json`

    Exit code 1 means that something is broken. The line marked FAULT says how to fix it.
    """
    findings = [*examine(), _training()]
    if as_json:
        show_json([dataclasses.asdict(finding) for finding in findings], indent=2)
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            mark = {True: "ok   ", False: "FAULT", None: "     "}[finding.ok]
            show(f"{mark} {finding.name:<{width}}  {finding.detail}")
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(EXIT_FAULT)


def _training() -> Finding:
    missing = [name for name in ("torch", "torchvision", "albumentations", "onnx") if util.find_spec(name) is None]
    if missing:
        return Finding("training", None, f"not installed ({', '.join(missing)}): pip install 'tl-toolkit[train]'")
    try:
        from tl.trainer.fit.machine import describe_torch

        return Finding("training", True, describe_torch())
    except (
        ImportError,
        RuntimeError,
    ) as error:  # torchvision raises RuntimeError if it does not match the build of torch
        return Finding("training", False, f"torch or torchvision cannot be imported ({error}); reinstall both together")
