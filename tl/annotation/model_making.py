"""Make a model file of labeled images: a run with its report and export, or a new head on a given model file.

What `tl train`, `tl export` and `tl refit` do, in one call. Imports torch only where a run is trained.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tl.data.manifests import LabeledImage, read_images
from tl.errors import ConfigError, TlError
from tl.evaluation.metrics import Metrics
from tl.progress import Progress
from tl.runtime.output.files import output_errors
from tl.runtime.sources.paths import find_images

if TYPE_CHECKING:
    from tl.trainer.run_folder.run import Run

Method = Literal["features", "finetune"]


@dataclass(frozen=True)
class MadeModel:
    """A verified model file. `run`: the folder of its run, None for a new head on a model file.

    `metrics`: of the labeled images that are for validation, held out; see `metrics.json`. `is_random`: whether these
    were drawn at random; otherwise they are all labeled images, also those that were chosen.
    """

    model: Path
    run: Path | None
    metrics: Metrics
    is_random: bool


def make_model(
    labels: Path,
    model: Path,
    *,
    run: Path,
    making: Path | None = None,
    method: Method = "features",
    trunk: Path | None = None,
    backbone: str | None = None,
    photos: Path | None = None,
    progress: Progress,
) -> MadeModel:
    """Train on the CSV `labels`, which `Exports` writes, and write the verified file `model`.

    `features` fits a linear head to all labeled images, with equal weight of the classes, since labeled images were
    chosen; the scores are those of the validation images, out of fold. `photos`: folder for self-training of that head.
    `finetune` also tries to fine-tune the backbone (method auto of training), and keeps what is better. `trunk`: a
    model file that gets a new head instead, without a run. `making`: where the run is until it is complete, beside
    `run`; a hidden name by default. Raises any `TlError` of the steps.
    """
    images = read_images(labels)
    is_random = any(image.split == "val" for image in images)
    if trunk is not None:
        if method != "features":
            raise ConfigError(f"{trunk}: the trunk of a model file cannot be fine-tuned: label without a model file")
        return _refit(labels, model, trunk, progress, is_random=is_random)
    from tl.exporter.export import export_run
    from tl.studies.report.run_page import write_run_report
    from tl.trainer.config import TrainConfig
    from tl.trainer.run_folder.run import check_free
    from tl.trainer.train import train

    check_free(run)
    making = making or run.with_name(f".{run.name}.making")
    is_frozen = method == "features"
    config = TrainConfig(data=str(labels), out=str(making), method=method if is_frozen else "auto")
    config = replace(config, backbone=backbone or config.backbone)
    if is_frozen:
        unlabeled = str(photos) if photos is not None and _has_others(images, photos) else None
        config = replace(config, refit=True, class_weights="balanced", unlabeled=unlabeled)
    is_new = not model.exists()
    try:
        result = train(config, progress)
        export_run(result.run, model, progress)
        finished = _give_name(result.run, run)
    except BaseException:
        if is_new:
            model.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    try:
        write_run_report(finished)
    except (TlError, OSError) as error:  # the model is made
        progress.say(f"no report: {error}")
    return MadeModel(model, run, result.metrics, is_random)


def _give_name(made: Run, folder: Path) -> Run:
    """Rename a complete run. Raises `OutputError`."""
    made.save_config(replace(made.load_config(), out=str(folder)))
    with output_errors(folder):
        made.folder.rename(folder)
    return replace(made, folder=folder)


def _has_others(labeled: Sequence[LabeledImage], photos: Path) -> bool:
    """Whether a folder has images that have no label."""
    known = {os.path.realpath(image.path) for image in labeled}
    return any(os.path.realpath(path) not in known for path in find_images([photos]).paths)


def _refit(labels: Path, model: Path, trunk: Path, progress: Progress, *, is_random: bool) -> MadeModel:
    from tl.exporter.refitting.refit import refit
    from tl.exporter.refitting.seen import RefitOptions

    refitted = refit(trunk, [labels], model, progress, RefitOptions(drop=True))
    return MadeModel(refitted.path, None, {"val": refitted.after}, is_random)
