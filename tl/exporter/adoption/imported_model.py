"""A foreign classifier with the facts from its preset, its files and the user: size, pixels, names, output.

Collects these facts and detects contradictions. Does not write graphs or model files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tl.errors import ConfigError, ModelFileError
from tl.evaluation.calibration import softmax
from tl.evaluation.multilabel import sigmoid
from tl.exporter.adoption.foreign import Foreign, ForeignSession, Kind, Layout, read_foreign, read_metadata, tell_kind
from tl.exporter.adoption.huggingface import find_model, huggingface_preset
from tl.exporter.adoption.labels import check_names, read_labels
from tl.exporter.adoption.presets import (
    ForeignPreprocessing,
    Overrides,
    Preset,
    PresetName,
    apply_overrides,
    imagenet_preset,
    timm_preset,
    ultralytics_preset,
)
from tl.runtime.imaging.preprocessing import Preprocessing
from tl.runtime.output.columns import LABEL_SEPARATOR


@dataclass(frozen=True)
class AdoptOptions:
    """User options for a foreign file. None is detected automatically, or an error requests the value.

    `labels`: file of class names. `config`: timm's config.json. `image_size`: input (H, W). `output_name`: which output
    of several; `outputs`: what it contains. `is_multilabel`: whether each class is decided by itself. `overrides`:
    replace parts of the preset's preprocessing.
    """

    preset: PresetName
    labels: Path | None = None
    config: Path | None = None
    image_size: tuple[int, int] | None = None
    layout: Layout | None = None
    output_name: str | None = None
    outputs: Kind | None = None
    overrides: Overrides = field(default_factory=Overrides)
    is_multilabel: bool | None = None


@dataclass(frozen=True)
class Plan:
    """The facts about a foreign classifier before it is run. `names_from`: source of `class_names`.

    `is_multilabel`: whether each class is decided by itself, by a sigmoid.
    """

    foreign: Foreign
    preset: PresetName
    pixel_rules: ForeignPreprocessing
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    names_from: str
    is_multilabel: bool = False


@dataclass(frozen=True)
class ImportedModel:
    """A runnable foreign classifier: the plan, and what its output contains."""

    plan: Plan
    session: ForeignSession
    kind: Kind

    def probabilities(self, inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The foreign file's output for inputs uint8 (N, H, W, 3), normalized outside any graph: (N, C)."""
        rows = self.session.run(self.plan.pixel_rules.normalize(inputs))
        if self.kind == "probabilities":
            return rows
        return sigmoid(rows) if self.plan.is_multilabel else softmax(rows)


def read_plan(path: Path, options: AdoptOptions) -> Plan:
    """Read a foreign file, or a Hugging Face folder. Raises `ModelFileError` or `ConfigError`."""
    file, folder = _locate(path, options.preset)
    if options.config is not None and options.preset != "timm":
        raise ConfigError(f"config is timm's config.json, but preset {options.preset} does not use one")
    foreign = read_foreign(file, options.layout, options.output_name)
    preset = _preset(foreign, folder, options)
    input_hw = _input_hw(foreign, preset, options.image_size)
    try:
        pixel_rules = apply_overrides(preset.build(input_hw), options.overrides)
        preprocessing = pixel_rules.preprocessing(input_hw)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    names, names_from = _class_names(options, preset, path)
    is_multilabel = options.is_multilabel
    if is_multilabel is None:
        is_multilabel = preset.is_multilabel or foreign.final_op == "Sigmoid"
    if is_multilabel and (odd := next((name for name in names if LABEL_SEPARATOR in name), None)):
        raise ConfigError(
            f"{names_from}: '{odd}' cannot be the name of a label: rename it, without '{LABEL_SEPARATOR}'"
        )
    return Plan(foreign, preset.name, pixel_rules, preprocessing, names, names_from, is_multilabel)


def open_imported_model(plan: Plan, inputs: NDArray[np.uint8], asked: Kind | None) -> ImportedModel:
    """Run the foreign file on images, uint8 (N, H, W, 3), and detect what its output contains.

    Raises `ModelFileError` or `ConfigError`.
    """
    session = ForeignSession(plan.foreign)
    rows = session.run(plan.pixel_rules.normalize(inputs))
    check_names(plan.class_names, rows.shape[1], plan.names_from)
    return ImportedModel(plan, session, tell_kind(plan.foreign, rows, asked, is_multilabel=plan.is_multilabel))


def _locate(path: Path, preset: PresetName) -> tuple[Path, Path]:
    """The ONNX file, and the folder with its other files."""
    if preset != "huggingface-folder":
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; give the .onnx file in it", options=["preset=huggingface-folder"])
        return path, path.parent
    if path.is_dir():
        return find_model(path), path
    folders: Sequence[Path] = (path.parent, path.parent.parent)
    return path, next((folder for folder in folders if (folder / "preprocessor_config.json").is_file()), path.parent)


def _preset(foreign: Foreign, folder: Path, options: AdoptOptions) -> Preset:
    if options.preset == "imagenet":
        return imagenet_preset()
    if options.preset == "timm":
        return timm_preset(options.config)
    if options.preset == "ultralytics":
        return ultralytics_preset(read_metadata(foreign.model), os.fspath(foreign.path))
    return huggingface_preset(folder)


def _input_hw(foreign: Foreign, preset: Preset, asked: tuple[int, int] | None) -> tuple[int, int]:
    """The input size, from the user, the graph or the preset's files; all that are given must agree."""
    wanted = asked or (None if preset.is_default_hw else preset.declared_hw)
    whose = "image_size" if asked else f"preset {preset.name}"
    sizes = [fixed or open_ for fixed, open_ in zip(foreign.graph_hw, wanted or preset.declared_hw, strict=True)]
    if wanted is not None and tuple(sizes) != wanted:
        raise ModelFileError(
            f"{foreign.path}: {whose} specifies {wanted[1]}x{wanted[0]}, but the graph only accepts "
            f"{sizes[1]}x{sizes[0]} "
            "(width x height)"
        )
    return sizes[0], sizes[1]


def _class_names(options: AdoptOptions, preset: Preset, path: Path) -> tuple[tuple[str, ...], str]:
    if options.labels is not None:
        return read_labels(options.labels), os.fspath(options.labels)
    if preset.class_names is None:
        raise ConfigError(
            f"{path}: contains no class names: give a file of labels, one name per line", options=["labels=FILE"]
        )
    return preset.class_names, f"{path}, read with preset {preset.name}"
