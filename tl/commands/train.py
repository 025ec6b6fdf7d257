"""`tl train`: flags made from `TrainConfig`, one run, its metrics."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from tl.commands.console import console_progress, warn
from tl.errors import ConfigError, MissingExtraError
from tl.trainer.config import TrainConfig, config_from_mapping, load_config

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
    values |= {
        name: list(value) if isinstance(value, tuple) else value for name, value in flags.items() if value is not None
    }
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
    for split in ("val", "test"):
        if split in result.metrics:
            m = result.metrics[split]
            accuracy = f"{m['top1_accuracy']:.4f} (95% {m['ci_low']:.4f} to {m['ci_high']:.4f})"
            warn(f"{split}: top-1 accuracy {accuracy}, macro F1 {m['macro_f1']:.4f}, ECE {m['ece']:.4f}, n {m['n']}")
    warn(f"run: {result.run.folder}    next: tl export {result.run.folder} -o model.onnx")
    if as_json:
        typer.echo(json.dumps({"run": str(result.run.folder), **result.metrics}))


def _signature() -> inspect.Signature:
    hints = get_type_hints(TrainConfig)
    parameters = []
    for field in dataclasses.fields(TrainConfig):
        default = "" if field.default in (None, "", False) else f" [default: {_shown(field.default)}]"
        help_text = field.metadata["help"] + default
        panel = field.metadata["panel"]
        kind = _flag_type(hints[field.name])
        if field.name == "data":
            info: Any = typer.Argument(help=help_text, show_default=False)
        else:
            info = typer.Option(help=help_text, rich_help_panel=panel, show_default=False)
        parameters.append(_parameter(field.name, Annotated[kind, info]))
    extra = {
        "config_file": Annotated[Path | None, typer.Option("--config", help="YAML of options; flags override it.")],
        "resume": Annotated[Path | None, typer.Option(help="Go on with an interrupted run folder.")],
    }
    parameters += [_parameter(name, annotation) for name, annotation in extra.items()]
    as_json = Annotated[bool, typer.Option("--json", help="Print the metrics as JSON on stdout.")]
    parameters.append(_parameter("as_json", as_json, default=False))
    return inspect.Signature(parameters)


def _parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _flag_type(hint: Any) -> Any:
    """Every flag may be absent, so that a config file's value is not overridden by a default."""
    if hint == tuple[int, ...]:
        return list[int] | None
    return hint if type(None) in getattr(hint, "__args__", ()) else hint | None


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


command.__signature__ = _signature()  # type: ignore[attr-defined]
command.__annotations__ = {name: p.annotation for name, p in command.__signature__.parameters.items()}  # type: ignore[attr-defined]
command.__doc__ = _HELP
