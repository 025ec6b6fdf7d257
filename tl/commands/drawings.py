"""Drawings beside a prediction: photos with landmarks, and explanations of class labels.

A drawing that cannot be made is counted and reported; the prediction goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tl.commands.console import warn
from tl.errors import ConfigError, OutputError, TlError

if TYPE_CHECKING:
    from tl.runtime.predictor import Predictor
    from tl.runtime.results import Classification, Landmarks, Result
    from tl.runtime.sources.inputs import Inputs

    AnyPredictor = Predictor[Any]


@dataclass
class Drawings:
    """Draws the results of a prediction, if a folder is given.

    `points`: output folder for photos with landmarks. `reasons`: output folder for explanations of class labels.
    `packed`: images in archives and films, which are not drawn. `failed`: drawings that could not be made, and why.
    """

    predictor: AnyPredictor
    points: Path | None
    reasons: Path | None
    packed: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    def check(self, images: Inputs, *, replaces: bool) -> None:
        """Raise `ConfigError`, before any work, for a folder among the images, `OutputError` for one that is a file.

        Unless `replaces`, existing drawings are errors too: they may be those of another model.
        """
        from tl.runtime.explain.drawing import drawing_path
        from tl.runtime.output.files import check_output_folder
        from tl.runtime.sources.paths import FoundImages

        folders = [folder for folder in (self.points, self.reasons) if folder is not None]
        if not folders:
            return
        for folder in folders:
            check_output_folder(folder)
        found = [path for part in images.parts if isinstance(part, FoundImages) for path in part.paths]
        _check_apart(found, folders)
        kinds = [
            (folder, kind) for folder, kind in ((self.points, "points"), (self.reasons, "why")) if folder is not None
        ]
        for folder, kind in () if replaces else kinds:
            existing = next(
                (path for path in (drawing_path(folder, name, kind) for name in found) if path.exists()), None
            )
            if existing is not None:
                raise OutputError(f"{existing}: exists: choose another folder, or replace it", options=["overwrite"])

    def see(self, result: Result) -> None:
        """Draw a result. Never fails for what a file system, an image or a model may do."""
        from tl.runtime.explain.drawing import is_drawable
        from tl.runtime.results import Failure, Multilabel, Regression

        if isinstance(result, Failure | Multilabel | Regression) or (self.points is None and self.reasons is None):
            return
        if not is_drawable(result.path):
            self.packed.append(result.path)
            return
        try:
            self._draw(result)
        except (TlError, OSError, MemoryError) as error:
            self.failed.append((result.path, str(error) or type(error).__name__))

    def report(self) -> bool:
        """Print what was not drawn. Returns whether all drawings were made that can be made."""
        if self.packed:
            count, first = len(self.packed), self.packed[0]
            warn(f"{count} images in archives or films were not drawn, first {first}: extract them first")
        if self.failed:
            (path, reason), count = self.failed[0], len(self.failed)
            warn(f"{count} images were predicted but could not be drawn, first {path}: {reason}")
        return not self.failed

    def _draw(self, result: Classification | Landmarks) -> None:
        from tl.runtime.ensembles.selective import REJECTED
        from tl.runtime.explain.drawing import draw_explanation, draw_landmarks, save_drawing
        from tl.runtime.explain.explanation import explain
        from tl.runtime.results import Landmarks

        contract = self.predictor.ensemble.sessions[0].contract
        if contract is None:
            return
        if isinstance(result, Landmarks):
            if self.points is not None:
                skeleton = contract.landmarks.skeleton if contract.landmarks is not None else ()
                drawing = draw_landmarks(result.path, result, contract.preprocessing, skeleton)
                save_drawing(drawing, self.points, result.path, "points")
        elif self.reasons is not None:
            classifier = cast("Predictor[Classification]", self.predictor)  # it gave a classification
            found = explain(classifier, result.path, None if result.label == REJECTED else result.label)
            save_drawing(draw_explanation(result.path, found, contract.preprocessing), self.reasons, result.path, "why")


def _check_apart(images: Iterable[str], folders: list[Path]) -> None:
    """Raise `ConfigError` if drawings would be saved among the images: a later call would read them as input."""
    real = [os.path.realpath(folder) for folder in folders]
    known: set[str] = set()
    for image in images:
        here = os.path.dirname(image)
        if here in known:
            continue
        known.add(here)
        for folder, path in zip(folders, real, strict=True):
            if Path(os.path.realpath(here)).is_relative_to(path):
                raise ConfigError(
                    f"{folder}: contains {image}, and the drawings would be read as images in "
                    "the next prediction: choose another folder"
                )
