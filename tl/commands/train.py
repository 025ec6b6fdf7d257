"""`tl train`: flags made from `TrainConfig`, one run, its metrics."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tl.commands.config_flags import config_parameters, given_values, parameter
from tl.commands.console import console_progress, warn
from tl.errors import ConfigError, MissingExtraError
from tl.trainer.config import TrainConfig
from tl.trainer.options import config_from_mapping, load_config

_HELP = """Train a classifier on a folder of class folders, or a CSV with path,label[,split][,group].

Examples:

- `tl train photos/` fine-tunes MobileNetV2 and holds out a fifth of each class for validation

- `tl train photos/ --method features --head mlp --out runs/quick` trains a head on a frozen backbone

- `tl train labels.csv --backbone resnet50 --epochs 20 --augment strong --test`

- `tl train --config runs/quick/config.yaml --lr 0.001 --out runs/again` repeats a run with a change

- `tl train --resume runs/quick` goes on after an interrupt

Backbones: smallcnn and every classification model of torchvision, such as resnet18, efficientnet_b0, convnext_tiny.
"""


def command(
    config_file: Path | None, resume: Path | None, as_json: bool, **flags: Any
) -> None:  # the visible signature is made below from TrainConfig
    """Train one run."""
    if resume is not None:
        given = [name for name, value in flags.items() if value is not None]
        if given or config_file:
            raise ConfigError(
                f"--resume goes on with the run's own options; leave out {', '.join(given) or '--config'}"
            )
    values = load_config(config_file) if config_file else {}
    if config_file and flags.get("out") is None:
        values.pop("out", None)  # a repeated run gets a folder of its own
    given_flags = given_values(flags)
    if values.keys() >= {field.name for field in dataclasses.fields(TrainConfig)} - {"out"}:
        values = _without_consequences(values, given_flags)
    values |= given_flags
    if resume is None and not values.get("data"):
        raise ConfigError("nothing to train on: give a folder or CSV, as in tl train photos/")
    config = config_from_mapping(values, str(config_file or "options"))
    try:
        from tl.trainer.runs import Run
        from tl.trainer.train import train
    except ImportError as error:
        raise MissingExtraError(
            f"training needs more packages ({error.name}): pip install 'tl-toolkit[train]'"
        ) from error
    run = Run(resume) if resume else None
    with console_progress() as progress:
        result = train(run.load_config() if run else config, progress, resume=run)
    if not result.metrics:  # one of several processes, and not the one that speaks
        return
    warn(f"run: {result.run.folder}    next: tl export {result.run.folder} -o model.onnx")
    if as_json:
        typer.echo(json.dumps({"run": str(result.run.folder), **result.metrics}))


# What a run's config.yaml was given because of another option, and is given anew when that one changes.
_CONSEQUENCES: dict[str, tuple[str, ...]] = {
    "method": ("optimizer", "epochs", "augment", "weights", "batch_size", "lr", "drop_epochs"),
    "head": ("head_sizes", "c_values", "optimizer", "epochs", "lr", "drop_epochs"),
    "optimizer": ("lr",),
    "epochs": ("drop_epochs",),
}
_CONSEQUENCES_IF_SOLVED = {**_CONSEQUENCES, "lr": ("optimizer",), "epochs": ("optimizer", "drop_epochs")}


def _without_consequences(values: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """A run's resolved options without those that followed from what the flags change."""
    consequences = _CONSEQUENCES_IF_SOLVED if values["optimizer"] == "lbfgs" else _CONSEQUENCES
    changed = [name for name in consequences if name in flags and flags[name] != values[name]]
    dropped = {name for cause in changed for name in consequences[cause]}
    return {name: value for name, value in values.items() if name not in dropped}


def _signature() -> inspect.Signature:
    extra = {
        "config_file": Annotated[Path | None, typer.Option("--config", help="YAML of options; flags override it.")],
        "resume": Annotated[Path | None, typer.Option(help="Go on with an interrupted run folder.")],
    }
    as_json = Annotated[bool, typer.Option("--json", help="Print the metrics as JSON on stdout.")]
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    parameters = [
        *config_parameters(names),
        *(parameter(name, annotation) for name, annotation in extra.items()),
        parameter("as_json", as_json, default=False),
    ]
    return inspect.Signature(parameters)


command.__signature__ = _signature()  # type: ignore[attr-defined]
command.__annotations__ = {name: p.annotation for name, p in command.__signature__.parameters.items()}  # type: ignore[attr-defined]
command.__doc__ = _HELP
