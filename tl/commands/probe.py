"""`tl probe`: compare heads on a frozen backbone by cross-validation."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
from typing import Annotated, Any

import typer

from tl.commands.config_flags import config_parameters, given_values
from tl.commands.console import console_progress, packages_of, show_json, show_table, warn
from tl.commands.requests import parameter, set_parameters
from tl.errors import ConfigError
from tl.trainer.config_files import config_from_mapping

_HELP = """Compare heads on a frozen backbone by cross-validation: head, C, learning rate, seed.

Examples:

- `tl probe photos/` tries linear, svm and mlp heads on MobileNetV2's features

- `tl probe photos/ --backbone resnet50 --try "head=svm c=0.0001,0.001,0.01" --try "head=linear c=0.01,0.1"`

- `tl probe photos/ --try "head=mlp lr=0.001,0.003 dropout=0.2,0.5" --folds 10 --seeds 3 > tries.csv`

Features are computed once and cached, so hundreds of tries take minutes. The test split is never used. Writes one CSV
row per try to stdout, best first. The interval is that of the mean over folds (Nadeau & Bengio's correction). Each
combination of the values in a --try is one try. `--folds 0` scores on the data's own validation split instead.
"""

_OPTIONS = (
    *("data", "split_column", "path_column", "label_column", "images", "val_fraction", "per_class", "skip_bad"),
    *("boxes", "min_box_confidence", "box_categories", "box_labels", "crop_margin", "crop_square"),
    *("backbone", "trunk_until", "weights", "pooling"),
    *(
        "image_size",
        "resize_mode",
        "jpeg_scale",
        "bit_depth_max",
        "channels",
        "project",
        "normalize",
        "device",
        "precision",
        "threads",
        "cache",
    ),
)
_DEFAULT_TRIES = ("head=linear c=0.001,0.01,0.1,1", "head=svm c=0.0001,0.001,0.01", "head=mlp")


def command(
    tries: list[str] | None, folds: int, seeds: int, as_json: bool, **flags: Any
) -> None:  # the visible signature is made below from TrainConfig
    """Compare heads."""
    if not flags.get("data"):
        raise ConfigError("no data set: give a folder or CSV, as in tl probe photos/")
    if folds == 1 or folds < 0 or seeds < 1:
        raise ConfigError(f"folds must be 0 or at least 2 and seeds at least 1, found {folds} and {seeds}")
    base = config_from_mapping({**given_values(flags), "method": "features"}, "options")
    with packages_of("train"):
        from tl.data.audit import find_duplicates, summarize
        from tl.trainer.classification import compute_features
        from tl.trainer.heads.probe import configure, expand_tries, probe
        from tl.trainer.task import prepare_task
    chosen = [each for values in expand_tries(tries or _DEFAULT_TRIES) for each in configure(base, values)]
    is_conv = {config.head == "conv" for _, config in chosen}
    if len(is_conv) > 1:
        raise ConfigError("conv heads use feature maps, the others use embeddings: try them in separate calls")
    with console_progress() as progress:
        # With folds, the limit applies to the training images of each fold.
        limit = base.per_class if folds == 0 else None
        task = prepare_task(dataclasses.replace(base, head=chosen[0][1].head, per_class=limit), progress)
        compute_features(task, progress, splits=("train", "val"))
        for finding in summarize(find_duplicates(task.store.images, task.store.keys)):
            progress.say(finding)
        rows = probe(task, chosen, folds, seeds, progress, per_class=None if folds == 0 else base.per_class)
    if as_json:
        show_json([dataclasses.asdict(row) for row in rows])
    else:
        show_table([list(vars(rows[0])), *(_rounded(dataclasses.asdict(row)).values() for row in rows)])
    best = rows[0]
    warn(f"best of {len(rows)}: {best.options}, top-1 accuracy {best.top1_accuracy:.4f}")
    warn(f"next: {_train_command(flags, best.options)}")


def _train_command(flags: dict[str, Any], options: str) -> str:
    """Return the `tl train` command that repeats a try."""
    given = given_values(flags)
    words = ["tl", "train", str(given.pop("data")), "--method", "features"]
    tried = [part.split("=") for part in options.split() if "=" in part]
    for name, value in [*given.items(), *tried]:
        flag = "--" + {"c": "c_values"}.get(name, name).replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
            continue
        for part in str(value).split("x") if name == "head_sizes" else [str(value)]:
            words += [flag, part]
    return shlex.join(words)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}


def _parameters() -> list[inspect.Parameter]:
    extra = {
        "tries": (
            Annotated[
                list[str] | None,
                typer.Option("--try", help='Options and values to try, such as "head=svm c=0.01,0.1". Repeatable.'),
            ],
            None,
        ),
        "folds": (
            Annotated[int, typer.Option(help="Number of cross-validation folds; 0 uses the validation split.")],
            5,
        ),
        "seeds": (
            Annotated[int, typer.Option(help="Number of repetitions with different folds and initial weights.")],
            1,
        ),
        "as_json": (Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")], False),
    }
    own = [parameter(name, annotation, default) for name, (annotation, default) in extra.items()]
    return [*config_parameters(_OPTIONS), *own]


set_parameters(command, _parameters(), _HELP)
