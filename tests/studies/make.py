"""Small studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.trainer.make import make_class_folders, make_manifest

# A run of half a second.
BASE = {
    **{"backbone": "smallcnn", "method": "scratch", "image_size": 32, "batch_size": 8, "epochs": 1, "augment": "none"},
    **{"threads": 1, "cache": "ram"},
}


def make_labels(root: Path, per_class: int = 12) -> Path:
    """A CSV of three classes of colored squares: 7 train, 3 val and 2 test images per class."""
    make_class_folders(root / "photos", per_class)
    rows = []
    for path in sorted((root / "photos").rglob("*.png")):
        split = "test" if int(path.stem) >= 10 else "val" if int(path.stem) >= 7 else "train"
        rows.append((path.relative_to(root).as_posix(), path.parent.name, split))
    return make_manifest(root / "labels.csv", rows, ("path", "label", "split"))


def make_study(path: Path, data: Path, **changes: Any) -> Path:
    """A study file; a value of None removes a key."""
    values = {"base": {**BASE, "data": str(data)}, **changes}
    path.write_text(
        yaml.safe_dump({k: v for k, v in values.items() if v is not None}, sort_keys=False), encoding="utf-8"
    )
    return path
