"""`tl neighbors`: find the training images most similar to new images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tl.commands.console import console_progress, packages_of, show_json, show_table
from tl.errors import DataError


def command(
    images: Annotated[list[str], typer.Argument(help="Images or folders.", show_default=False)],
    run: Annotated[Path, typer.Option(help="Run folder of a classifier.", show_default=False)],
    top: Annotated[int, typer.Option(min=1, help="Number of neighbors per image.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of CSV.")] = False,
) -> None:
    """Find the training images most similar to an image in the trained network's embedding.

    Examples:
    - `tl neighbors odd.jpg --run runs/beetles`

    - `tl neighbors new-photos/ --run runs/beetles --top 3 --json`

    They may show what a decision is based on. Columns: path, rank, neighbor, label, likeness (cosine similarity of the
    embeddings, 1 for the same image). The training images must still be in their original location. Their embeddings
    are cached, so only the first call is slow.
    """
    with packages_of("train"):
        from tl.runtime.sources.paths import find_images
        from tl.trainer.features.run_embeddings import find_neighbors
        from tl.trainer.run_folder.run import Run

    paths = [os.path.normpath(path) for path in find_images(images).paths]
    if not paths:
        raise DataError(f"no images found in {', '.join(images)}")
    with console_progress() as progress:
        found = find_neighbors(Run(run), paths, top, progress)
    rows = [
        {"path": path, "rank": rank, "neighbor": n.path, "label": n.label, "likeness": n.likeness}
        for path, neighbors in zip(paths, found, strict=True)
        for rank, n in enumerate(neighbors, start=1)
    ]
    if as_json:
        show_json(rows)
        return
    cells = ([*list(row.values())[:-1], f"{row['likeness']:.4f}"] for row in rows)
    show_table([("path", "rank", "neighbor", "label", "likeness"), *cells])
