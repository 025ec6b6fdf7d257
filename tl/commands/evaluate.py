"""`tl evaluate`: model files against labelled pictures, one row a model and voting rule."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tl.commands.console import EXIT_SOME_FAILED, console_progress, warn
from tl.commands.options import Device, EnsembleFiles, ModelFile, Threads, VoteWeights, open_predictor


def command(
    data: Annotated[
        Path, typer.Argument(help="Folder of class folders, train/ val/ test/ of them, or CSV.", show_default=False)
    ],
    model: ModelFile = None,
    ensemble: EnsembleFiles = None,
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all. Default: test, else val, else all.")
    ] = None,
    split_column: Annotated[str, typer.Option(help="Column of a CSV that holds the split.")] = "split",
    vote_weights: VoteWeights = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print rows with per-class scores as JSON.")] = False,
) -> None:
    """Score a model file, or an ensemble under every voting rule, on labelled pictures.

    Examples:
    - `tl evaluate held-out/ --model beetles.onnx`

    - `tl evaluate runs/beetles/manifest.csv --split val --model beetles.onnx`

    - `tl evaluate labels.csv --split test --ensemble a.onnx b.onnx c.onnx`

    Columns: model, voting, n, top1_accuracy, ci_low, ci_high (95%, Wilson), macro_f1, ece.
    """
    from tl.trainer.data import read_pictures
    from tl.trainer.evaluate import COLUMNS, choose_split, evaluate

    name, pictures = choose_split(read_pictures(data, split_column, warn), split)
    warn(f"evaluating on split '{name}': {len(pictures)} pictures")
    if name == "all":
        warn("pictures that a model was trained on flatter it; a run's held-out ones: RUN/manifest.csv --split val")
    predictor = open_predictor(model, ensemble, vote_weights=vote_weights, device=device, threads=threads)
    with predictor, console_progress() as progress:
        result = evaluate(predictor, pictures, progress)
    if as_json:
        failures = [failure.as_dict() for failure in result.failures]
        typer.echo(json.dumps({"split": name, "rows": result.rows, "failures": failures}))
    else:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in result.rows:
            writer.writerow(f"{row[c]:.4f}" if isinstance(row[c], float) else row[c] for c in COLUMNS)
    for failure in result.failures:
        warn(f"not read: {failure.path}: {failure.error}")
    if result.failures:
        raise typer.Exit(EXIT_SOME_FAILED)
