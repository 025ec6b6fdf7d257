"""`tl adopt`: a classifier that another tool exported -> a verified model file of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from tl.commands.console import console_progress, packages_of, warn
from tl.errors import ConfigError

if TYPE_CHECKING:
    from tl.exporter.adoption.adopt import Adopted

_Parsed = TypeVar("_Parsed")
_Preset = Annotated[
    Literal["imagenet", "timm", "ultralytics", "huggingface-folder"],
    typer.Option(help="Whose preprocessing: imagenet is torchvision's.", show_default=False),
]
_Labels = Annotated[
    Path | None,
    typer.Option(help="Class names in the network's order: one per line, or .json. Default: the file's own."),
]
_Images = Annotated[list[Path] | None, typer.Option(help="Images for the parity check. Default: noise.")]
_Config = Annotated[Path | None, typer.Option(help="With timm: its config.json. Default: timm's defaults.")]
_ImageSize = Annotated[
    str | None, typer.Option(help="Input size where the graph leaves it open: 224, or 224x320 (height x width).")
]
_ResizeMode = Annotated[
    Literal["squash", "letterbox", "short_side"] | None, typer.Option(help="In place of the preset's.")
]
_ShortSide = Annotated[
    int | None, typer.Option(min=1, help="Shorter side before the center crop, in place of the preset's.")
]
_Interpolation = Annotated[
    Literal["nearest", "bilinear", "bicubic", "lanczos"] | None, typer.Option(help="In place of the preset's.")
]
_Scale = Annotated[str | None, typer.Option(help="The network takes (pixel x scale - mean) / std: a number, or 1/255.")]
_Layout = Annotated[
    Literal["nchw", "nhwc"] | None, typer.Option(help="Order of the input's sizes, where they do not tell.")
]
_Outputs = Annotated[
    Literal["logits", "probabilities"] | None, typer.Option(help="What it holds, where that cannot be told.")
]
_Golden = Annotated[
    Literal["images", "synthetic"],
    typer.Option(help="Self-test samples: four of --images, or synthetic ones to embed no photo."),
]


def command(
    foreign: Annotated[
        Path, typer.Argument(help="ONNX file, or a Hugging Face folder with model.onnx.", show_default=False)
    ],
    preset: _Preset,
    output: Annotated[Path, typer.Option("--out", "-o", help="The model file to write.")] = Path("adopted.onnx"),
    labels: _Labels = None,
    images: _Images = None,
    config: _Config = None,
    image_size: _ImageSize = None,
    resize_mode: _ResizeMode = None,
    short_side: _ShortSide = None,
    interpolation: _Interpolation = None,
    scale: _Scale = None,
    mean: Annotated[str | None, typer.Option(help="One number or three, as in 0.5,0.5,0.5.")] = None,
    std: Annotated[str | None, typer.Option(help="One number or three.")] = None,
    layout: _Layout = None,
    output_name: Annotated[str | None, typer.Option(help="Which output, where there are several.")] = None,
    outputs: _Outputs = None,
    golden: _Golden = "images",
    as_json: Annotated[bool, typer.Option("--json", help="Print the parity report as JSON on stdout.")] = False,
) -> None:
    """Adopt a classifier from torchvision, timm, Ultralytics, Hugging Face or elsewhere, exported to ONNX.

    Writes contract and normalization around it. Before the file gets its name, it must give the same probabilities as
    the foreign file; from then on it predicts, votes and merges like one of ours.

    Examples:
    - `tl adopt resnet50.onnx --preset imagenet --labels names.txt --images photos/ -o resnet50-tl.onnx`

    - `tl adopt convnext.onnx --preset timm --config config.json --labels names.txt --images photos/`

    - `tl adopt yolo26n-cls.onnx --preset ultralytics --images photos/`

    - `tl adopt exported-folder/ --preset huggingface-folder --images photos/`
    """
    with packages_of("edit"):
        from tl.exporter.adoption.adopt import adopt
        from tl.exporter.adoption.imported_model import AdoptOptions
        from tl.exporter.adoption.presets import Overrides
    numbers = (_given(scale, _number, "--scale"), _given(mean, _three, "--mean"), _given(std, _three, "--std"))
    overrides = Overrides(resize_mode, short_side, interpolation, *numbers)
    size = _given(image_size, _size, "--image-size")
    options = AdoptOptions(preset, labels, config, size, layout, output_name, outputs, overrides)
    if not images:
        warn("no --images: parity is checked on noise, which proves the graph but shows no misread class names")
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
        raise ConfigError(f"{option}: expected a number, or two as in 1/255, found '{text}'") from error


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
    from tl.runtime.model_file.summary import parity_text

    parity = done.contract.parity
    kind = "images" if done.on_real_images else "noise images"
    warn(f"parity with the foreign file on {parity.images} {kind}: {parity_text(parity)}")
    size = done.path.stat().st_size / 1e6
    warn(f"{done.path}: {size:.1f} MB, {len(done.contract.class_names)} classes, opset {done.opset}, verified")
    golden = done.contract.golden
    if golden.source != "synthetic":
        warn(f"the file embeds {len(golden.samples)} of these images for tl verify; --golden synthetic embeds none")
    if as_json:
        from tl.runtime.model_file.strict_json import to_plain

        typer.echo(json.dumps({"path": str(done.path), "opset": done.opset, "parity": to_plain(parity)}))
