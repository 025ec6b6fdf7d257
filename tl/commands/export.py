"""`tl export`: export a run or a pretrained network to a verified model file, or convert a model file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl.commands.console import console_progress, packages_of, show_json, warn
from tl.commands.options import Overwrite, check_outputs
from tl.commands.requests import from_flags, refuse_given
from tl.errors import ConfigError

if TYPE_CHECKING:
    from tl.exporter.any_size.convert import AnySizeFile
    from tl.exporter.export import Exported
    from tl.exporter.publish import GoldenSource
    from tl.progress import Progress

_PRETRAINED, _PARITY, _PRECISION = "Pretrained networks", "Parity check and self-test", "Lower precision"
_LABELS, _PROGRAMS = "Several labels", "Other programs and languages"


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What is exported: a run, or a pretrained network; or a model file, which is converted."""

    run: Annotated[
        Path | None,
        typer.Argument(
            help="Run folder created by tl train; or a model file, for --input any-size and --triton.",
            show_default=False,
        ),
    ] = None
    pretrained: Annotated[
        str | None, typer.Option(help="Export a torchvision model with its own ImageNet head instead of a run.")
    ] = None
    images: Annotated[
        list[Path] | None, typer.Option(help="With --pretrained, or a model file: images for the parity check.")
    ] = None
    weights: Annotated[str, typer.Option(help="imagenet, a tensor file, or a folder.", rich_help_panel=_PRETRAINED)] = (
        "imagenet"
    )
    jpeg_scale: Annotated[
        Literal["full", "2x"],
        typer.Option(
            help="2x decodes large JPEGs smaller, at no less than twice the resized size; much faster.",
            rich_help_panel=_PRETRAINED,
        ),
    ] = "full"

    @property
    def model(self) -> Path | None:
        """The model file to convert, None for a run or a pretrained network."""
        return self.run if self.run is not None and self.run.suffix == ".onnx" and not self.run.is_dir() else None


@dataclass(frozen=True, kw_only=True)
class _ParityFlags:
    """The images that prove the file, and those that it embeds."""

    parity_images: Annotated[
        list[Path] | None,
        typer.Option(help="Additional images or folders for the parity check.", rich_help_panel=_PARITY),
    ] = None
    golden: Annotated[
        Literal["validation", "synthetic"],
        typer.Option(
            help="Self-test samples: validation images, or synthetic ones so that no photo is embedded.",
            rich_help_panel=_PARITY,
        ),
    ] = "validation"


@dataclass(frozen=True, kw_only=True)
class _ExtraFlags:
    """Further outputs of the file."""

    cam: Annotated[
        bool,
        typer.Option("--cam", help="For a run with a linear head, in fp32: add class activation maps as an output."),
    ] = False
    unknown: Annotated[
        bool,
        typer.Option(
            help="For a run, in fp32: add out-of-distribution detection, for images unlike the training images."
        ),
    ] = True
    taxonomy: Annotated[
        str | None,
        typer.Option(
            help="For a run: CSV with class,genus,family,... (most special first), or names if the class names are "
            "lineages A;B;C. With tl predict --min-confidence, the most special sure rank is given.",
            metavar="FILE",
        ),
    ] = None
    false_alarm: Annotated[
        float | None,
        typer.Option(help="Fraction of validation images that tl predict --reject-unknown may reject. Default: 0.05."),
    ] = None
    min_precision: Annotated[
        float | None,
        typer.Option(
            help="For a run of several labels: give each label the lowest threshold that reaches this precision on "
            "held-out images, such as 0.9. Default: the threshold with the highest F1.",
            rich_help_panel=_LABELS,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class _PrecisionFlags:
    """A lower precision, and when it is kept."""

    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"],
        typer.Option(
            help="For a run: a lower precision is kept only if it agrees with fp32 and is faster on --device. bf16 "
            "lets OpenVINO compute the fp32 network in bf16."
        ),
    ] = "fp32"
    device: Annotated[
        str,
        typer.Option(help="Device on which lower precision is compared with fp32, as in tl predict; bf16: openvino."),
    ] = "auto"
    min_agreement: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Fraction of validation images that must get the same label as in fp32.",
            rich_help_panel=_PRECISION,
        ),
    ] = 0.99
    keep_slower: Annotated[
        bool,
        typer.Option(
            help="Keep lower precision for another machine even if it is not faster on this one.",
            rich_help_panel=_PRECISION,
        ),
    ] = False
    calibration_images: Annotated[
        int,
        typer.Option(
            min=1,
            max=1000,
            help="Number of training images for calibrating the int8 ranges.",
            rich_help_panel=_PRECISION,
        ),
    ] = 100
    seed: Annotated[
        int, typer.Option(help="Random seed for sampling the calibration images.", rich_help_panel=_PRECISION)
    ] = 0


@dataclass(frozen=True, kw_only=True)
class _ProgramFlags:
    """What makes the file easier to use in other programs."""

    input_size: Annotated[
        Literal["fixed-size", "any-size"],
        typer.Option(
            "--input",
            help="any-size puts resizing and cropping into the graph: the file takes RGB images of any size, so that "
            "any onnxruntime gives the same answers.",
            rich_help_panel=_PROGRAMS,
        ),
    ] = "fixed-size"
    triton: Annotated[
        Path | None,
        typer.Option(
            help="Also write the model into this model repository for Triton Inference Server.",
            metavar="DIR",
            rich_help_panel=_PROGRAMS,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """Everything that `tl export` was asked for."""

    source: _Source
    output: Annotated[Path, typer.Option("--out", "-o", help="Model file to write.")] = Path("model.onnx")
    overwrite: Overwrite = False
    precision: _PrecisionFlags
    extra: _ExtraFlags
    parity: _ParityFlags
    programs: _ProgramFlags
    as_json: Annotated[bool, typer.Option("--json", help="Print the parity report as JSON on stdout.")] = False


@from_flags
def command(request: ExportRequest) -> None:
    """Export a run's best network to one self-describing, self-testing ONNX file.

    Examples:
    - `tl export runs/beetles -o beetles.onnx`

    - `tl export runs/beetles -o beetles-int8.onnx --precision int8 --device cpu`

    - `tl export --pretrained mobilenet_v2 --images photos/ -o imagenet.onnx --input any-size`

    The file is written only if it gives the same outputs as the trained network on real images. In lower precision, it
    must also agree with the fp32 file on the validation split and be faster. All measurements are stored in the file.
    """
    _check_choices(request)
    source, output, triton = request.source, request.output, request.programs.triton
    is_any_size = request.programs.input_size == "any-size"
    name = output.stem if source.model is None or is_any_size else source.model.stem
    writes = [output] if source.model is None or is_any_size else []
    if triton is not None:
        with packages_of("edit"):
            from tl.exporter.triton import repository_files, write_repository
        writes += repository_files(name, triton)
    check_outputs(request.overwrite, *writes, inputs=[source.model])
    written = source.model
    if writes[0] == output:
        with console_progress() as progress:
            done = _export_any_size(request, progress) if is_any_size else _export(request, output, progress)
        _report(done, request.as_json)
        written = done.path
    if triton is not None and written is not None:
        warn(f"{write_repository(written, triton, name)}: model repository folder for Triton Inference Server")


def _export_any_size(request: ExportRequest, progress: Progress) -> AnySizeFile:
    """Export a file of fixed size, if none is given, and convert it."""
    with packages_of("edit"):
        from tl.exporter.any_size.convert import to_any_size
        from tl.exporter.parity_images import find_parity_images
    source, parity = request.source, request.parity
    given = [*(source.images or []), *(parity.parity_images or [])]
    images = find_parity_images(given) if given else []
    golden: GoldenSource = "images" if parity.golden == "validation" else parity.golden
    if source.model is not None:
        return to_any_size(source.model, request.output, images, progress, golden=golden)
    if source.run is not None:
        from tl.exporter.export import validation_paths
        from tl.trainer.run_folder.run import Run

        golden = parity.golden
        images = [*validation_paths(Run(source.run)), *images]
    with TemporaryDirectory(prefix="tl-") as folder:
        fixed = Path(folder) / request.output.name
        _export(request, fixed, progress)
        return to_any_size(fixed, request.output, images, progress, golden=golden)


def _export(request: ExportRequest, output: Path, progress: Progress) -> Exported:
    """Export a run or a pretrained network to a file of fixed size."""
    with packages_of("train"):
        from tl.exporter.export import export_pretrained, export_run
        from tl.exporter.export_source import DEFAULT_OUTPUTS, ExtraOutputs
        from tl.trainer.run_folder.run import Run
    source, flags, extra = request.source, request.precision, request.extra
    golden, parity_images = request.parity.golden, request.parity.parity_images or []
    if source.run is None:
        return export_pretrained(
            *(str(source.pretrained), source.weights, source.images or [], output, progress),
            parity_images=parity_images,
            golden="images" if golden == "validation" else golden,
            jpeg_scale=source.jpeg_scale,
        )
    if flags.precision == "fp32":
        further = ExtraOutputs(
            extra.unknown,
            extra.false_alarm or DEFAULT_OUTPUTS.false_alarm,
            extra.cam,
            extra.taxonomy,
            extra.min_precision,
        )
        return export_run(
            Run(source.run), output, progress, parity_images=parity_images, golden=golden, further=further
        )
    from tl.exporter.precision import Lowering, export_lowered  # loads onnxruntime's converters

    lowering = Lowering(
        flags.precision,
        min_agreement=flags.min_agreement,
        calibration_images=flags.calibration_images,
        seed=flags.seed,
        device=flags.device,
        keep_slower=flags.keep_slower,
        taxonomy=request.extra.taxonomy,
    )
    return export_lowered(Run(source.run), output, progress, lowering, parity_images=parity_images, golden=golden)


def _check_choices(request: ExportRequest) -> None:
    source, precision, extra = request.source, request.precision.precision, request.extra
    if (source.run is None) == (source.pretrained is None):
        raise ConfigError("give either a run folder or --pretrained NAME")
    if source.model is not None:
        _check_conversion(request)
        return
    if source.pretrained is not None and not source.images:
        raise ConfigError("--pretrained requires --images DIR: real images for the parity check")
    if source.pretrained is not None and precision != "fp32":
        raise ConfigError(
            f"--precision {precision} requires a run, because it uses the run's training and validation images"
        )
    if precision == "bf16" and request.programs.input_size == "any-size":
        raise ConfigError("--precision bf16 requires a fixed input size: OpenVINO resizes differently")
    is_plain_run = source.run is not None and precision == "fp32"
    if extra.cam and not is_plain_run:
        raise ConfigError("--cam requires a run and fp32")
    if extra.taxonomy is not None and source.run is None:
        raise ConfigError("--taxonomy requires a run")
    if extra.min_precision is not None and not (is_plain_run and 0 < extra.min_precision <= 1):
        raise ConfigError("--min-precision requires a run and fp32, and a number above 0 and at most 1")
    if extra.false_alarm is not None and not (is_plain_run and extra.unknown):
        raise ConfigError("--false-alarm requires a run and fp32, without --no-unknown")
    if extra.false_alarm is not None and not 0 < extra.false_alarm < 1:
        raise ConfigError(f"--false-alarm must be between 0 and 1, found {extra.false_alarm:g}")


def _check_conversion(request: ExportRequest) -> None:
    """Check what is asked of a model file that exists already."""
    source, programs = request.source, request.programs
    if programs.input_size == "fixed-size" and programs.triton is None:
        raise ConfigError(
            f"{source.model}: is a model file already: give --input any-size or --triton DIR to convert it"
        )
    if programs.input_size == "any-size" and not (source.images or request.parity.parity_images):
        raise ConfigError(
            "--input any-size of a model file requires --images DIR: real images to compare both files on"
        )
    refuse_given(request.extra, "a model file is converted as it is: export the run again")
    refuse_given(request.precision, "a model file is converted as it is: export the run again")


def _report(done: Exported | AnySizeFile, as_json: bool) -> None:
    from tl.runtime.model_file.contract import NOUNS
    from tl.runtime.model_file.summary import any_size_text, parity_text

    parity, golden = done.contract.parity, done.contract.golden
    warn(f"parity on {parity.images} images: {parity_text(parity)}")
    contract = done.contract
    if contract.any_size is not None:
        warn(f"resizing in the graph, {any_size_text(contract.any_size, contract)}")
    what = f"{len(contract.names)} {NOUNS[contract.task]}"
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
        show_json(report | {"any_size": to_plain(contract.any_size)})
