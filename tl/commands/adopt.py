"""`tl adopt`: convert a classifier exported by another tool to a verified model file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from tl.commands.console import console_progress, packages_of, show_json, warn
from tl.commands.model_files import check_model_files
from tl.commands.options import Overwrite, check_outputs
from tl.errors import ConfigError

if TYPE_CHECKING:
    from tl.exporter.adoption.adopt import Adopted

_Parsed = TypeVar("_Parsed")
_PREPROCESSING, _GRAPH = "Preprocessing", "Input and output of the graph"
_Preset = Annotated[
    Literal["imagenet", "timm", "ultralytics", "huggingface-folder"],
    typer.Option(help="Preprocessing preset; imagenet is torchvision's.", show_default=False),
]
_Labels = Annotated[
    Path | None,
    typer.Option(help="Class names in output order: one per line, or .json. Default: the file's own."),
]
_Images = Annotated[list[Path] | None, typer.Option(help="Images for the parity check. Default: random noise.")]
_Config = Annotated[
    Path | None, typer.Option(help="With --preset timm: the model's config.json. Default: timm's defaults.")
]
_ImageSize = Annotated[
    str | None,
    typer.Option(
        help="Input size if the graph does not fix it: 224, or 224x320 (height x width).",
        rich_help_panel=_PREPROCESSING,
    ),
]
_ResizeMode = Annotated[
    Literal["squash", "letterbox", "short_side"] | None,
    typer.Option(help="Override the preset's resize mode.", rich_help_panel=_PREPROCESSING),
]
_ShortSide = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Override the preset's shorter side before the center crop, in pixels.",
        rich_help_panel=_PREPROCESSING,
    ),
]
_Interpolation = Annotated[
    Literal["nearest", "bilinear", "bicubic", "lanczos"] | None,
    typer.Option(help="Override the preset's interpolation.", rich_help_panel=_PREPROCESSING),
]
_Scale = Annotated[
    str | None,
    typer.Option(
        help="Scale of the input, (pixel x scale - mean) / std: a number, or 1/255.", rich_help_panel=_PREPROCESSING
    ),
]
_Layout = Annotated[
    Literal["nchw", "nhwc"] | None,
    typer.Option(help="Layout of the input, if its shape is ambiguous.", rich_help_panel=_GRAPH),
]
_Outputs = Annotated[
    Literal["logits", "probabilities"] | None,
    typer.Option(help="Meaning of the output, if it cannot be inferred.", rich_help_panel=_GRAPH),
]
_Task = Annotated[
    Literal["classification", "multilabel"] | None,
    typer.Option(
        help="multilabel: each class is a label by itself, present from probability 0.5. Default: multilabel for an "
        "output that ends in a sigmoid, and for problem_type multi_label_classification in config.json.",
        rich_help_panel=_GRAPH,
    ),
]
_Golden = Annotated[
    Literal["images", "synthetic"],
    typer.Option(help="Self-test samples: four of --images, or synthetic ones so that no photo is embedded."),
]


def command(
    foreign: Annotated[
        Path, typer.Argument(help="ONNX file, or a Hugging Face folder with model.onnx.", show_default=False)
    ],
    preset: _Preset,
    output: Annotated[Path, typer.Option("--out", "-o", help="The model file to write.")] = Path("adopted.onnx"),
    overwrite: Overwrite = False,
    labels: _Labels = None,
    images: _Images = None,
    config: _Config = None,
    image_size: _ImageSize = None,
    resize_mode: _ResizeMode = None,
    short_side: _ShortSide = None,
    interpolation: _Interpolation = None,
    scale: _Scale = None,
    mean: Annotated[
        str | None, typer.Option(help="Mean: one number or three, as in 0.5,0.5,0.5.", rich_help_panel=_PREPROCESSING)
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="Standard deviation: one number or three.", rich_help_panel=_PREPROCESSING)
    ] = None,
    layout: _Layout = None,
    output_name: Annotated[
        str | None, typer.Option(help="Name of the output to use, if there are several.", rich_help_panel=_GRAPH)
    ] = None,
    outputs: _Outputs = None,
    task: _Task = None,
    golden: _Golden = "images",
    as_json: Annotated[bool, typer.Option("--json", help="Print the parity report as JSON on stdout.")] = False,
) -> None:
    """Convert an ONNX classifier from torchvision, timm, Ultralytics, Hugging Face or elsewhere to a model file.

    Examples:
    - `tl adopt resnet50.onnx --preset imagenet --labels names.txt --images photos/ -o resnet50-tl.onnx`

    - `tl adopt yolo26n-cls.onnx --preset ultralytics --images photos/`

    - `tl adopt exported-folder/ --preset huggingface-folder --images photos/`

    Adds the contract and the normalization. The model file is written only if it gives the same probabilities as the
    original file. It can then be used for prediction, voting and merging like any exported model.
    """
    check_outputs(overwrite, output)
    if preset != "huggingface-folder" and not any(foreign.glob("*.onnx")):
        check_model_files(foreign)
    with packages_of("edit"):
        from tl.exporter.adoption.adopt import adopt
        from tl.exporter.adoption.imported_model import AdoptOptions
        from tl.exporter.adoption.presets import Overrides
    numbers = (_given(scale, _number, "--scale"), _given(mean, _three, "--mean"), _given(std, _three, "--std"))
    overrides = Overrides(resize_mode, short_side, interpolation, *numbers)
    size = _given(image_size, _size, "--image-size")
    options = AdoptOptions(preset, labels, config, size, layout, output_name, outputs, overrides)
    if task is not None:
        options = replace(options, is_multilabel=task == "multilabel")
    if not images:
        warn("no --images: parity is checked on noise, which verifies the graph but does not reveal wrong class names")
    with console_progress() as progress:
        done = adopt(foreign, output, options, progress, images=images or (), golden=golden)
    _report(done, as_json)


def _given(text: str | None, parse: Callable[[str, str], _Parsed], option: str) -> _Parsed | None:
    return None if text is None else parse(text, option)


def _number(text: str, option: str) -> float:
    above, _, below = text.partition("/")
    try:
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{option}: expected a number, or a fraction such as 1/255, found '{text}'") from error


def _three(text: str, option: str) -> tuple[float, float, float]:
    values = [_number(word, option) for word in text.split(",")]
    if len(values) not in (1, 3):
        raise ConfigError(f"{option}: expected one number, or three as in 0.5,0.5,0.5, found '{text}'")
    red, green, blue = values if len(values) == 3 else values * 3
    return red, green, blue


def _size(text: str, option: str) -> tuple[int, int]:
    words = text.split("x")
    if len(words) > 2 or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"{option}: expected pixels, as in 224 or 224x320, found '{text}'")
    return int(words[0]), int(words[-1])


def _report(done: Adopted, as_json: bool) -> None:
    from tl.runtime.model_file.contract import NOUNS
    from tl.runtime.model_file.summary import parity_text

    parity = done.contract.parity
    kind = "images" if done.on_real_images else "noise images"
    warn(f"parity with the original file on {parity.images} {kind}: {parity_text(parity)}")
    size = done.path.stat().st_size / 1e6
    what = f"{len(done.contract.class_names)} {NOUNS[done.contract.task]}"
    warn(f"{done.path}: {size:.1f} MB, {what}, opset {done.opset}, verified")
    golden = done.contract.golden
    if golden.source != "synthetic":
        warn(f"the file embeds {len(golden.samples)} of these images for tl verify; --golden synthetic embeds none")
    if as_json:
        from tl.runtime.model_file.strict_json import to_plain

        show_json({"path": str(done.path), "opset": done.opset, "parity": to_plain(parity)})
