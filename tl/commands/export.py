"""`tl export`: export a run or a pretrained network to a verified model file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tl.commands.console import console_progress, packages_of, warn
from tl.errors import ConfigError

if TYPE_CHECKING:
    from tl.exporter.export import Exported
    from tl.progress import Progress
    from tl.trainer.run_folder.run import Run


RunFolder = Annotated[Path | None, typer.Argument(help="Run folder created by tl train.", show_default=False)]
Output = Annotated[Path, typer.Option("--out", "-o", help="Model file to write.")]
Pretrained = Annotated[
    str | None, typer.Option(help="Export a torchvision model with its own ImageNet head instead of a run.")
]
Weights = Annotated[str, typer.Option(help="With --pretrained: imagenet, a tensor file, or a folder.")]
Images = Annotated[list[Path] | None, typer.Option(help="With --pretrained: images for the parity check.")]
DecodedAt = Annotated[
    Literal["full", "2x"],
    typer.Option(
        help="With --pretrained: 2x decodes large JPEGs smaller, at no less than twice the resized size; much faster."
    ),
]
ParityImages = Annotated[list[Path] | None, typer.Option(help="Additional images or folders for the parity check.")]
GoldenFrom = Annotated[
    Literal["validation", "synthetic"],
    typer.Option(help="Self-test samples: validation images, or synthetic ones so that no photo is embedded."),
]
Precision = Annotated[
    Literal["fp32", "fp16", "int8"],
    typer.Option(help="For a run: a lower precision is kept only if it agrees with fp32 and is faster on --device."),
]
MinAgreement = Annotated[
    float, typer.Option(min=0, max=1, help="Fraction of validation images that must get the same label as in fp32.")
]
CalibrationImages = Annotated[
    int, typer.Option(min=1, max=1000, help="Number of training images for calibrating the int8 ranges.")
]
Seed = Annotated[int, typer.Option(help="Random seed for sampling the calibration images.")]
JudgedOn = Annotated[
    str, typer.Option(help="Device on which lower precision is compared with fp32: auto, cpu, cuda or cuda:N.")
]
KeepSlower = Annotated[
    bool, typer.Option(help="Keep lower precision for another machine even if it is not faster on this one.")
]
Unknown = Annotated[
    bool,
    typer.Option(help="For a run, in fp32: add out-of-distribution detection, for images unlike the training images."),
]
FalseAlarm = Annotated[
    float | None,
    typer.Option(help="Fraction of validation images that tl predict --reject-unknown may reject. Default: 0.05."),
]
Cam = Annotated[
    bool, typer.Option("--cam", help="For a run with a linear head, in fp32: add class activation maps as an output.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the parity report as JSON on stdout.")]


def command(
    run: RunFolder = None,
    output: Output = Path("model.onnx"),
    pretrained: Pretrained = None,
    weights: Weights = "imagenet",
    images: Images = None,
    jpeg_scale: DecodedAt = "full",
    parity_images: ParityImages = None,
    golden: GoldenFrom = "validation",
    unknown: Unknown = True,
    false_alarm: FalseAlarm = None,
    cam: Cam = False,
    precision: Precision = "fp32",
    min_agreement: MinAgreement = 0.99,
    calibration_images: CalibrationImages = 100,
    seed: Seed = 0,
    device: JudgedOn = "auto",
    keep_slower: KeepSlower = False,
    as_json: AsJson = False,
) -> None:
    """Export a run's best network to one self-describing, self-testing ONNX file.

    The file is written only if it gives the same outputs as the trained network on real images. In lower precision, it
    must also agree with the fp32 file on the validation split and be faster. All measurements are stored in the file.

    Examples:
    - `tl export runs/beetles -o beetles.onnx`

    - `tl export runs/beetles -o beetles.onnx --parity-images odd-photos/ --golden synthetic --cam`

    - `tl export runs/beetles -o beetles-int8.onnx --precision int8 --device cpu`

    - `tl export runs/beetles -o beetles-fp16.onnx --precision fp16 --keep-slower` on a CPU, for a GPU elsewhere

    - `tl export --pretrained mobilenet_v2 --images photos/ -o imagenet.onnx`
    """
    _check_choices(run, pretrained, images, precision)
    _check_further(run, precision, cam, unknown, false_alarm)
    with packages_of("train"):
        from tl.exporter.export import export_pretrained, export_run
        from tl.exporter.export_source import DEFAULT_OUTPUTS, ExtraOutputs
        from tl.trainer.run_folder.run import Run
    extra = parity_images or []
    with console_progress() as progress:
        if run is not None and precision != "fp32":
            lowering = (precision, min_agreement, calibration_images, seed, device, keep_slower)
            done = _export_lowered(Run(run), output, progress, lowering, parity_images=extra, golden=golden)
        elif run is not None:
            further = ExtraOutputs(unknown, false_alarm or DEFAULT_OUTPUTS.false_alarm, cam)
            done = export_run(Run(run), output, progress, parity_images=extra, golden=golden, further=further)
        else:
            source: Literal["images", "synthetic"] = "images" if golden == "validation" else golden
            done = export_pretrained(
                *(str(pretrained), weights, images or [], output, progress),
                parity_images=extra,
                golden=source,
                jpeg_scale=jpeg_scale,
            )
    _report(done, as_json)


def _export_lowered(run: Run, output: Path, progress: Progress, lowering: tuple[Any, ...], **options: Any) -> Exported:
    from tl.exporter.precision import Lowering, export_lowered  # loads onnxruntime's converters

    return export_lowered(run, output, progress, Lowering(*lowering), **options)


def _check_choices(run: Path | None, pretrained: str | None, images: list[Path] | None, precision: str) -> None:
    if (run is None) == (pretrained is None):
        raise ConfigError("give either a run folder or --pretrained NAME")
    if pretrained is not None and not images:
        raise ConfigError("--pretrained needs --images DIR: real images to prove the file on")
    if pretrained is not None and precision != "fp32":
        raise ConfigError(f"--precision {precision} needs a run, whose training and validation images it is made with")


def _check_further(run: Path | None, precision: str, cam: bool, unknown: bool, false_alarm: float | None) -> None:
    is_plain_run = run is not None and precision == "fp32"
    if cam and not is_plain_run:
        raise ConfigError("--cam needs a run, in fp32")
    if false_alarm is not None and not (is_plain_run and unknown):
        raise ConfigError("--false-alarm needs a run, in fp32, and no --no-unknown")
    if false_alarm is not None and not 0 < false_alarm < 1:
        raise ConfigError(f"--false-alarm must be between 0 and 1, found {false_alarm:g}")


def _report(done: Exported, as_json: bool) -> None:
    from tl.runtime.model_file.summary import parity_text

    parity, golden = done.contract.parity, done.contract.golden
    warn(f"parity on {parity.images} images: {parity_text(parity)}")
    contract = done.contract
    what = f"{len(contract.class_names)} classes" if contract.class_names else f"{len(contract.keypoint_names)} points"
    warn(f"{done.path}: {done.path.stat().st_size / 1e6:.1f} MB, {what}, verified")
    quantization = done.contract.quantization
    if quantization is not None:
        from tl.exporter.precision import describe

        warn(f"{done.contract.precision}: {describe(quantization)}")
    if golden.source != "synthetic":
        warn(f"the file embeds {len(golden.samples)} of these images for tl verify; --golden synthetic embeds none")
    if as_json:
        from tl.runtime.model_file.strict_json import to_plain

        report = {"path": str(done.path), "parity": to_plain(parity), "quantization": to_plain(quantization)}
        typer.echo(json.dumps(report))
