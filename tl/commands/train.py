"""`tl train`: train one run, with flags generated from `TrainConfig`."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl.commands.config_flags import config_parameters, given_values
from tl.commands.console import console_progress, packages_of, show_json, warn, write_beside
from tl.commands.requests import parameter, set_parameters
from tl.errors import ConfigError
from tl.trainer.config import TrainConfig
from tl.trainer.config_files import config_from_mapping, load_config, own_choices
from tl.trainer.models.backbone_info import BUNDLED, RECOMMENDED

if TYPE_CHECKING:
    from tl.trainer.run_folder.run import Run

_HELP = """Train a classifier on class folders or a CSV with `path,label[,split][,group]`, or a landmark model.

Examples:

- `tl train photos/` tries a new head on frozen features, then fine-tuning, and keeps what is better on held-out images

- `tl train photos/ --quality fast` stops after the first, which takes seconds; `--budget 10m` limits the time

- `tl train wings.csv` finds landmarks: a CSV with path,x0,y0,..., TPS, COCO keypoints or DeepLabCut's CSV

With `--boxes detections.json`, a classifier is trained on the boxes of a detector instead of whole images.

To repeat a run with one change: `tl train --config runs/quick/config.yaml --lr 0.001 --out runs/again`. To resume an
interrupted run: `tl train --resume runs/quick`.

Backbones: any torchvision classification model, `timm:NAME`, smallcnn and vgg_cnn_s. Worth trying (top-1: published
ImageNet accuracy; images/s: on one CPU core):

"""


def _backbone_table() -> str:
    rows = [
        f"| {choice.name} | {choice.megabytes} MB | {choice.top1}% | {choice.images_per_s:g} | {choice.license} | "
        f"{'installed' if choice.name == BUNDLED else 'downloaded'} |"
        for choice in RECOMMENDED
    ]
    head = "| backbone | size | top-1 | images/s | license | weights |\n|---|---|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def command(
    config_file: Path | None, resume: Path | None, as_json: bool, report: bool, **flags: Any
) -> None:  # the visible signature is made below from TrainConfig
    """Train one run."""
    if resume is not None:
        given = [name for name, value in flags.items() if value is not None]
        if given or config_file:
            raise ConfigError(
                f"--resume continues with the run's own options; leave out {', '.join(given) or '--config'}"
            )
    values = load_config(config_file) if config_file else {}
    if config_file and flags.get("out") is None:
        values.pop("out", None)  # a repeated run gets its own folder
    given_flags = given_values(flags)
    if values.keys() >= {field.name for field in dataclasses.fields(TrainConfig)} - {"out"}:
        values = _repeated(values, given_flags, str(config_file))
    values |= given_flags
    if resume is None and not values.get("data"):
        raise ConfigError("nothing to train on: give a folder or CSV, as in tl train photos/")
    config = config_from_mapping(values, str(config_file or "options"))
    with packages_of("train"):
        from tl.trainer.run_folder.run import Run
        from tl.trainer.train import train
    run = Run(resume) if resume else None
    with console_progress() as progress:
        result = train(run.load_config() if run else config, progress, resume=run)
    if not result.metrics:  # a process of distributed training other than the one that reports
        return
    if any(finding.kind == "imbalanced classes" for finding in result.findings):
        warn("hint: for imbalanced classes, compare with --class-weights balanced")
    warn(f"run: {result.run.folder}    next: tl export {result.run.folder} -o model.onnx")
    if as_json:
        show_json({"run": str(result.run.folder), **result.metrics})
    if report:
        _report(result.run)


def _report(run: Run) -> None:
    """Write the report. A failure here does not fail a run that has trained for hours."""
    from tl.studies.report.run_page import write_run_report

    write_beside(lambda: write_run_report(run))


def _repeated(values: dict[str, Any], flags: dict[str, Any], where: str) -> dict[str, Any]:
    """Keep the explicit choices of a run's resolved config.yaml; drop values derived from options that flags change."""
    values = own_choices(config_from_mapping(values, where))
    dropped = set()
    if flags.get("head") not in (None, values.get("head")):
        dropped |= {"head_sizes", "c_values"}  # the sizes of one head do not apply to another
    if flags.get("optimizer") not in (None, values.get("optimizer")):
        dropped |= {"lr"}
    if flags.keys() & {"head", "method", "optimizer", "epochs", "lr", "views", "bag", "data"}:
        dropped |= {"refit"}  # follows from the data and from how the head is trained
    if flags.get("head") == "svm" or flags.get("optimizer") == "lbfgs":
        dropped |= {"optimizer", "lr", "epochs"}  # there are no steps
    return {name: value for name, value in values.items() if name not in dropped}


def _parameters() -> list[inspect.Parameter]:
    extra = {
        "config_file": Annotated[
            Path | None, typer.Option("--config", help="YAML file of options; flags override it.")
        ],
        "resume": Annotated[Path | None, typer.Option(help="Resume training in an interrupted run folder.")],
    }
    as_json = Annotated[bool, typer.Option("--json", help="Print the metrics as JSON on stdout.")]
    report = Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html after training.", rich_help_panel="Data")
    ]
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    return [
        *config_parameters(names),
        *(parameter(name, annotation) for name, annotation in extra.items()),
        parameter("as_json", as_json, default=False),
        parameter("report", report, default=True),
    ]


set_parameters(command, _parameters(), _HELP + _backbone_table())
