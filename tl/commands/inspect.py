"""`tl inspect`: what a model file says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl.commands.parity_text import parity_text
from tl.errors import ModelFileError

if TYPE_CHECKING:
    from tl.runtime.contract import Contract


def command(
    model: Annotated[Path, typer.Argument(help="Model file.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole contract as JSON.")] = False,
) -> None:
    """Show a model file's task, classes, preprocessing, origin and parity.

    Examples:
    - `tl inspect beetles.onnx`

    - `tl inspect beetles.onnx --json | jq .provenance`
    """
    from tl.runtime.contract import dump_contract
    from tl.runtime.session import Session

    contract = Session(model, device="cpu").contract
    if contract is None:
        raise ModelFileError(f"{model}: holds no contract")
    if as_json:
        typer.echo(json.dumps(json.loads(dump_contract(contract)), indent=2, ensure_ascii=False))
        return
    rows = [("file", f"{model} ({model.stat().st_size / 1e6:.1f} MB)"), *_rows(contract)]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        typer.echo(f"{name:<{width}}  {text}")


def _rows(contract: Contract) -> list[tuple[str, str]]:
    recipe, origin, parity = contract.recipe, contract.provenance, contract.parity
    names = contract.class_names or contract.keypoint_names
    shown = ", ".join(names[:10]) + (f" ... and {len(names) - 10} more" if len(names) > 10 else "")
    resize = f"{recipe.resize_mode}, {recipe.interpolation}, antialiased"
    if recipe.short_side is not None:
        resize += f", short side {recipe.short_side} then centre crop"
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in origin.val_metrics.items())
    return [
        ("task", f"{contract.task}, {contract.precision}, schema {contract.schema_version}"),
        ("names", f"{len(names)}: {shown}"),
        ("input", f"images uint8 (N, {recipe.input_hw[0]}, {recipe.input_hw[1]}, 3) RGB"),
        ("outputs", ", ".join(contract.outputs)),
        *_landmark_rows(contract),
        ("resize", resize),
        ("pixels", f"orientation {recipe.orientation}, alpha over {recipe.alpha}, 16 bit up to {recipe.bit_depth_max}"),
        ("backbone", f"{origin.backbone}, {origin.method}, weights {origin.weights}"),
        ("validation", metrics or "none recorded"),
        ("parity", f"{parity.images} pictures, {parity_text(parity)}"),
        *_precision_row(contract),
        *_confidence_rows(contract),
        ("self-test", f"{len(contract.golden.samples)} {contract.golden.source} samples"),
        ("created", f"{origin.created} with {', '.join(f'{k} {v}' for k, v in origin.versions.items())}"),
    ]


def _landmark_rows(contract: Contract) -> list[tuple[str, str]]:
    facts = contract.landmarks
    if facts is None:
        return []
    looked_at = {"whole": "whole photos", "box": "drawn boxes", "points": "the square around the points"}[facts.region]
    margin = f", {facts.region_margin:g} of its size added on every side" if facts.region != "whole" else ""
    pairs = [("flip pairs", ", ".join(":".join(pair) for pair in facts.flip_pairs))] if facts.flip_pairs else []
    return [("looks at", looked_at + margin), *pairs]


def _confidence_rows(contract: Contract) -> list[tuple[str, str]]:
    """How it decides, and what it knows of its own doubts."""
    rows = []
    if contract.ensemble is not None:
        facts = contract.ensemble
        pairs = zip(facts.members, facts.weights, strict=True)
        rows.append(("ensemble", f"{facts.voting}: " + ", ".join(f"{m.name} (weight {w:g})" for m, w in pairs)))
    if contract.task == "classification":
        rows.append(("temperature", f"{contract.temperature:.4g}"))
    if contract.conformal is not None:
        count = len(contract.conformal.scores)
        rows.append(("coverage", f"sets of classes, from {count} scores of the {contract.conformal.source}"))
    if contract.unknown is not None:
        found = contract.unknown
        text = f"above {found.limit:.4g}, as are {found.false_alarm:.1%} of {found.held_out} validation pictures"
        rows.append(("unknown", f"{text}; from {found.images} training pictures in {found.dimensions} dimensions"))
    return rows


def _precision_row(contract: Contract) -> list[tuple[str, str]]:
    found = contract.quantisation
    if found is None:
        return []
    text = f"{found.method}; agrees with fp32 on {found.top1_agreement:.1%} of {found.images} pictures"
    speed = f"{found.speedup:.2f} x its speed on {found.provider} ({found.processor})"
    return [("precision", f"{text}, {speed}{', kept although not faster' if found.kept_slower else ''}")]
