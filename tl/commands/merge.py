"""`tl merge`: merge several classifiers into one model file that votes internally."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl.commands.console import console_progress, packages_of, show_json, warn
from tl.commands.model_files import check_model_files, warn_of_equal_files
from tl.commands.options import Overwrite, VoteWeights, check_outputs, parse_vote_weights
from tl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tl.data.manifests import LabeledImage
    from tl.exporter.merging.merge import Merged

# Output of a member -> what its absence from the merged file means.
_LEFT_OUT = {
    "cam": "so tl predict --explain uses occlusion, which is slower",
    "embedding": "so the merged file cannot be refitted: refit the members",
    "ood_score": "so unknown images are not detected: all members need it, and --calibrate measures its limit",
}


def command(
    models: Annotated[list[Path], typer.Argument(metavar="MODELS...", help="Model files.", show_default=False)],
    output: Annotated[Path, typer.Option("--out", "-o", help="Model file to write.")] = Path("ensemble.onnx"),
    overwrite: Overwrite = False,
    vote: Annotated[Literal["soft", "hard", "max"], typer.Option(help="Voting rule.")] = "soft",
    vote_weights: VoteWeights = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Images for the parity check. Default: the members' self-test samples, and noise."),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Labeled images that no member was trained on (their val split, if there is one)."),
    ] = None,
    false_alarm: Annotated[
        float | None,
        typer.Option(help="With --calibrate: fraction of its images that --reject-unknown may reject. Default: 0.05."),
    ] = None,
    golden: Annotated[
        Literal["images", "synthetic"],
        typer.Option(
            help="Self-test samples: from --images or the members, or synthetic ones so that no photo is embedded."
        ),
    ] = "images",
    as_json: Annotated[bool, typer.Option("--json", help="Print the parity report as JSON on stdout.")] = False,
) -> None:
    """Merge classifiers into one model file that votes inside its graph and computes shared layers once.

    Examples:
    - `tl merge a.onnx b.onnx c.onnx -o ensemble.onnx`

    - `tl merge a.onnx b.onnx c.onnx --calibrate labels.csv` calibrates its confidence and enables `--coverage`

    - `tl merge a.onnx b.onnx c.onnx --vote hard --vote-weights 2,1,1 --images photos/`

    Heads on the same frozen backbone share it, even if they were exported separately: the file is hardly larger or
    slower than one of them. It has the input and outputs of a single model, plus `label`, the decision, and
    `member_probabilities`. The file is written only if it gives the same outputs as the separate files.
    """
    check_outputs(overwrite, output)
    check_model_files(*models)
    warn_of_equal_files(models)
    _check_false_alarm(false_alarm, calibrate)
    with packages_of("edit"):
        from tl.exporter.merging.merge import merge
    weights = parse_vote_weights(vote_weights, models)
    held_out = [] if calibrate is None else _read_held_out(calibrate)
    with console_progress() as progress:
        done = merge(
            *(models, output, progress),
            voting=vote,
            weights=weights,
            images=images or (),
            golden=golden,
            held_out=held_out,
            false_alarm=false_alarm or 0.05,
        )
    _report(done, as_json)


def _check_false_alarm(false_alarm: float | None, calibrate: Path | None) -> None:
    if false_alarm is not None and calibrate is None:
        raise ConfigError("--false-alarm requires --calibrate, on whose images it is measured")
    if false_alarm is not None and not 0 < false_alarm < 1:
        raise ConfigError(f"--false-alarm must be between 0 and 1, found {false_alarm:g}")


def _read_held_out(path: Path) -> list[LabeledImage]:
    from tl.data.manifests import read_images

    images = read_images(path, say=warn)
    if not any(image.split for image in images):
        return images
    held_out = [image for image in images if image.split == "val"]
    if not held_out:
        raise DataError(
            f"{path}: has splits, but no val split to calibrate on; test images are reserved for evaluation"
        )
    return held_out


def _report(done: Merged, as_json: bool) -> None:
    from tl.runtime.model_file.summary import parity_text

    parity, size = done.contract.parity, done.path.stat().st_size
    members = [] if done.contract.ensemble is None else [member.name for member in done.contract.ensemble.members]
    warn(f"parity with the separate files on {parity.images} images: {parity_text(parity)}")
    sizes = f"{size / 1e6:.1f} MB instead of {done.separate_bytes / 1e6:.1f} MB"
    warn(f"{done.path}: {sizes}, {len(members)} members, verified")
    for name, owners in done.left_out.items():
        few = "" if len(owners) == len(members) else f" (of {', '.join(owners)})"
        warn(f"left out: the output {name}{few}, {_LEFT_OUT.get(name, 'which votes cannot combine')}")
    if done.contract.conformal is not None:
        warn(f"calibrated: temperature {done.contract.temperature:.3f}; predict with --coverage to get sets of classes")
    if done.contract.ood is not None:
        warn("out-of-distribution detection is included: predict with --reject-unknown")
    if as_json:
        from tl.runtime.model_file.strict_json import to_plain

        report = {"path": str(done.path), "members": members, "left_out": list(done.left_out)}
        show_json({**report, "parity": to_plain(parity)})
