"""Gather the evidence on the images of a data set or of a run: features, held-out predictions, members' predictions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tl.annotation.problems.evidence import Evidence
from tl.data.manifests import USUAL_COLUMNS, ManifestColumns
from tl.progress import Progress, Silent


def gather_evidence(
    source: str | os.PathLike[str],
    *,
    columns: ManifestColumns = USUAL_COLUMNS,
    members: Sequence[Path] = (),
    backbone: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evidence:
    """Read a data set (class folders, CSV manifest, file of a labeling tool) or a run folder, and its images.

    `columns`: how a CSV manifest is read. `members`: two or more model files, whose predictions are compared.
    `backbone`: what computes the features of a data set; None for the default one. Unreadable images are listed in
    `Evidence.failed`.
    Raises `DataError` for data of another task than classification, and for data with boxes; `RunError`; errors of
    model files.
    """
    progress = progress or Silent()
    raise NotImplementedError
