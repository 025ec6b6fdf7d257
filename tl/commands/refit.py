"""`tl refit`: fit a new head on a model file's trunk for the classes of given images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl.commands.console import console_progress, packages_of, show_json, warn
from tl.commands.model_files import check_model_files
from tl.commands.options import ImageFolder, LabelColumn, Overwrite, PathColumn, SplitColumn, check_outputs
from tl.errors import ConfigError

if TYPE_CHECKING:
    from tl.exporter.refitting.refit import Refitted

ModelArgument = Annotated[Path, typer.Argument(help="Model file, exported from a run.", show_default=False)]
Data = Annotated[
    list[Path],
    typer.Argument(
        metavar="DATA...", help="One or more class folders, train/ val/ folders of them, or CSVs.", show_default=False
    ),
]
Output = Annotated[Path, typer.Option("--out", "-o", help="Model file to write.")]
Head = Annotated[Literal["linear", "svm"], typer.Option(help="Logistic regression, or a linear SVM.")]
CValues = Annotated[
    list[float] | None,
    typer.Option(help="Values of C to select from on the validation images. Default: several. Repeatable."),
]
ValFraction = Annotated[
    float, typer.Option(help="Fraction of images held out for validation if there is no split.", rich_help_panel="Data")
]
Drop = Annotated[bool, typer.Option("--drop", help="Drop classes of the model that have no images.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Skip unreadable images.", rich_help_panel="Data")]
GoldenFrom = Annotated[
    Literal["validation", "synthetic"],
    typer.Option(help="Self-test samples: validation images, or synthetic ones so that no photo is embedded."),
]
FalseAlarm = Annotated[
    float, typer.Option(help="Fraction of validation images that tl predict --reject-unknown may reject.")
]
Seed = Annotated[int, typer.Option(help="Random seed for sampling the validation images.", rich_help_panel="Data")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the metrics before and after refitting as JSON on stdout.")]


def command(
    model: ModelArgument,
    data: Data,
    output: Output = Path("refitted.onnx"),
    overwrite: Overwrite = False,
    head: Head = "linear",
    c_values: CValues = None,
    val_fraction: ValFraction = 0.2,
    split_column: SplitColumn = "split",
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    images: ImageFolder = None,
    drop: Drop = False,
    skip_bad: SkipBad = False,
    golden: GoldenFrom = "validation",
    false_alarm: FalseAlarm = 0.05,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit a new linear head for a model file, to add classes or adapt it to your own images.

    Examples:
    - `tl refit beetles.onnx photos/ new-species/ -o more-beetles.onnx` adds the classes of new-species/

    - `tl refit beetles.onnx my-photos/ --head svm --drop -o mine.onnx`

    Requires neither torch nor a run. The trunk stays unchanged, byte for byte. The head is fitted to the trunk's
    embeddings of the images, calibrated on the held-out images, and verified before the file is written. Existing
    classes keep their order and new ones follow. Every class needs images, including existing ones.
    """
    if not 0 < val_fraction < 1 or not 0 < false_alarm < 1:
        raise ConfigError("--val-fraction and --false-alarm must be between 0 and 1")
    if c_values and min(c_values) <= 0:
        raise ConfigError("--c-values must be positive")
    check_outputs(overwrite, output)
    check_model_files(model)
    with packages_of("edit"):
        from tl.data.manifests import ManifestColumns
        from tl.exporter.refitting.refit import refit
        from tl.exporter.refitting.seen import RefitOptions
    folder = None if images is None else str(images)
    options = RefitOptions(
        *(head, c_values, val_fraction, seed, ManifestColumns(split_column, path_column, label_column, folder)),
        *(drop, skip_bad, golden),
        false_alarm=false_alarm,
    )
    with console_progress() as progress:
        done = refit(model, data, output, progress, options)
    _report(done, as_json)


def _report(done: Refitted, as_json: bool) -> None:
    from tl.runtime.model_file.summary import parity_text

    parity, contract, after = done.contract.parity, done.contract, done.after
    for what, names in (("added", done.added), ("dropped", done.dropped)):
        if names:
            warn(f"{what}: {', '.join(names)}")
    if done.before is not None:
        warn(f"before: {_accuracy(done.before)}, on the classes of the old head")
    warn(f"after: {_accuracy(after)}, calibration error {after['ece']:.4f}")
    warn(f"parity with the fitted head on {parity.images} images: {parity_text(parity)}")
    warn(f"{done.path}: {done.path.stat().st_size / 1e6:.1f} MB, {len(contract.class_names)} classes, verified")
    if as_json:
        plain = {"added": done.added, "dropped": done.dropped, "before": done.before, "after": after}
        show_json({"path": str(done.path), **plain})


def _accuracy(metrics: dict[str, float]) -> str:
    interval = f"95% {metrics['ci_low']:.4f} to {metrics['ci_high']:.4f}"
    return f"top-1 accuracy {metrics['top1_accuracy']:.4f} ({interval}), {metrics['n']} images"
