"""Build the page of a model file: metadata, and drawings of filters and feature maps. Does not run the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tl.runtime.imaging.colors import shown_rgb
from tl.runtime.metric_names import MAIN_METRICS, plain_name
from tl.runtime.model_file.contract import NOUNS, Contract
from tl.runtime.model_file.selftest import golden_image
from tl.runtime.model_file.summary import summarize_contract
from tl.studies.report.page import Block, Card, Facts, Gallery, Note, Page, Section, Table, write_page
from tl.studies.report.thumbnails import encode

# Source of the golden samples, in words.
_SOURCES = {"validation": "validation", "images": "given", "synthetic": "synthetic"}


@dataclass(frozen=True)
class Look:
    """A drawing of filters or feature maps. `note` describes it."""

    title: str
    note: str
    drawing: Image.Image


@dataclass(frozen=True)
class Ranking:
    """The most probable classes of an image, (name, probability), best first."""

    image: str
    rows: Sequence[tuple[str, float]]


def write_model_page(
    model: Path, contract: Contract, out: Path, *, looks: Sequence[Look] = (), ranking: Ranking | None = None
) -> Path:
    """Write one HTML file. Raises `OutputError`, `MissingExtraError`."""
    write_page(build_model_page(model, contract, looks=looks, ranking=ranking), out)
    return out


def build_model_page(
    model: Path, contract: Contract, *, looks: Sequence[Look] = (), ranking: Ranking | None = None
) -> Page:
    """Build the page."""
    names, what = contract.names, NOUNS[contract.task]
    figures = [
        (what, str(len(names))),
        (contract.precision, f"{model.stat().st_size / 1e6:.1f} MB"),
        ("input, pixels", " x ".join(map(str, contract.preprocessing.input_hw))),
        *_headline(contract),
    ]
    sections = [Section("Summary", [Facts(dict(summarize_contract(contract)))])]
    if ranking is not None:
        rows = [(name, 100 * probability) for name, probability in ranking.rows]
        sections.append(Section("Most probable", [Note(ranking.image), Table(("class", "percent"), rows)]))
    for look in looks:
        block: Block = Gallery([Card(encode(look.drawing), [look.note])])
        sections.append(Section(look.title, [block]))
    sections.append(Section("Self-test", _samples(contract)))
    if contract.provenance.config:
        options = {name: _plain(value) for name, value in contract.provenance.config.items() if value is not None}
        sections.append(Section("Training options", [Facts(options)]))
    sections.append(Section(what.capitalize(), [Table(("index", "name"), list(enumerate(names)))]))
    subtitle = f"{contract.task} by {contract.provenance.backbone}"
    return Page(model.name, subtitle, figures, sections, kicker="Model file")


def _headline(contract: Contract) -> list[tuple[str, str]]:
    metrics = contract.provenance.val_metrics
    return [(f"validation {plain_name(name)}", f"{metrics[name]:.4g}") for name in MAIN_METRICS if name in metrics]


def _samples(contract: Contract) -> list[Block]:
    golden = contract.golden
    cards = []
    for number, sample in enumerate(golden.samples):
        expected = np.array(sample.expected)
        line = f"sample {number + 1}"
        if contract.class_names:
            line = f"{contract.class_names[int(expected.argmax())]} {expected.max():.3f}"
        elif contract.target_names:
            line = ", ".join(f"{name} {value:.4g}" for name, value in zip(contract.target_names, expected, strict=True))
        cards.append(Card(encode(Image.fromarray(shown_rgb(golden_image(sample, contract, "self-test")))), [line]))
    note = f"Samples that tl verify runs to check the file on any machine ({_SOURCES[golden.source]} images)."
    return [Gallery(cards, note)]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
