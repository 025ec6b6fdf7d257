"""Build the report of a run: sections common to all tasks, around those of its own task."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from tl.errors import ModelFileError
from tl.runtime.metric_names import plain_name
from tl.runtime.model_file.contract import Contract
from tl.runtime.model_file.summary import summarize_contract
from tl.studies.report.charts import Line, line_chart
from tl.studies.report.class_sections import (
    ClassCards,
    ClassResults,
    accuracy_note,
    class_figures,
    class_sections,
    rank_section,
    site_section,
    uncertainty_section,
)
from tl.studies.report.first_screen import (
    class_headline,
    examples,
    label_headline,
    number_headline,
    point_headline,
)
from tl.studies.report.image_map import map_section
from tl.studies.report.label_sections import label_figures, label_sections
from tl.studies.report.neighbors import neighbors_among, open_embeddings
from tl.studies.report.next_steps import MOST, class_steps, point_steps, review_command, test_step
from tl.studies.report.number_sections import number_figures, number_sections
from tl.studies.report.page import (
    Block,
    Card,
    Chart,
    Code,
    Facts,
    Gallery,
    Note,
    Page,
    Section,
    Step,
    Table,
    write_page,
)
from tl.studies.report.point_sections import error_note, point_figures, point_sections
from tl.studies.report.run_files import FinishedRun, open_finished, read_judged
from tl.studies.report.run_map import map_run
from tl.studies.report.samples import augmented_cards
from tl.text import time_in_words
from tl.trainer.config import TrainConfig
from tl.trainer.config_files import own_choices
from tl.trainer.options import is_solved
from tl.trainer.run_folder.run import Run

_SHOWN_FINDINGS = 200
_CURVES = {
    "loss": ("train_loss", "val_loss"),
    "accuracy": (
        *("train_top1_accuracy", "val_top1_accuracy", "train_label_accuracy", "val_label_accuracy", "val_macro_f1"),
    ),
    "error, input px": ("train_error_input_px", "val_error_input_px"),
    "error, standard deviations": ("train_scaled_mae", "val_scaled_mae"),
    "learning rate": ("lr",),
}


def write_run_report(run: Run, out: Path | None = None, contract: Contract | None = None) -> Path:
    """Write the report of a finished run to `report.html` in its folder, or to `out`; `contract` adds a summary.

    Raises `RunError`, `OutputError`, `MissingExtraError`, and `ModelFileError` if the file was trained on other data.
    """
    if contract is not None and contract.provenance.data_hash != run.data_hash():
        raise ModelFileError(f"this model file was not exported from {run.folder}: it was trained on different data")
    path = out or run.folder / "report.html"
    write_page(build_run_page(open_finished(run), contract), path)
    return path


def build_run_page(finished: FinishedRun, contract: Contract | None = None) -> Page:
    """Build the page. Raises `RunError`."""
    parts = _PARTS.get(str(finished.config.task), _classes)(finished)
    sections = [
        *parts.sections,
        *rank_section(finished.scores),
        *_sites(finished),
        *_methods(finished),
        *_curves(finished),
        *_audit(finished),
        *_samples(finished),
        *(_passport(contract) if contract else ()),
        _repeat(finished),
    ]
    figures = parts.figures
    if finished.split == "test" and parts.on_validation:
        figures.append(("on validation", parts.on_validation))
    return Page(
        title=finished.name,
        subtitle=_subtitle(finished),
        figures=[*figures, ("training", time_in_words(finished.metrics["train_seconds"]))],
        sections=sections,
        kicker=parts.kicker,
        headline=parts.headline,
        steps=[*parts.steps, *test_step(finished.split, len(finished.paths("test")), str(finished.run.folder))][:MOST],
        strip=parts.strip,
    )


def _subtitle(finished: FinishedRun) -> str:
    """How the model was made, and what its scores are on."""
    config = finished.config
    seen = {"test": "the test split, evaluated once", "val": "the validation split, which also selected the epoch"}
    if config.interpolate:
        seen["val"] = "the validation split, which also selected the interpolation of the weights"
    if config.refit and is_solved(config):
        scored = " and ".join({"train": "training", "val": "validation"}[one] for one in finished.run.scored_splits)
        seen["val"] = f"all {scored} images, each scored by a head that was fitted without it"
    elif config.refit:
        seen["val"] = "the validation split, each image scored by a network that was not trained on it"
    text = f"{config.method} of {config.backbone}, head {config.head}. Scores are on {seen[finished.split]}."
    if config.crop != "whole":
        text += " Each photo's region was taken from the annotations; errors are larger if a locator finds it."
    return text[:1].upper() + text[1:]


def _images(finished: FinishedRun) -> str:
    """What was scored, in words."""
    if finished.split == "test":
        return "test images"
    return "held-out images" if finished.config.refit and is_solved(finished.config) else "validation images"


@dataclass(frozen=True)
class _Parts:
    """What a page says of a task. `on_validation`: the main score of the validation split, "" if unknown."""

    kicker: str
    headline: str
    figures: list[tuple[str, str]]
    sections: list[Section]
    on_validation: str
    steps: Sequence[Step] = ()
    strip: Sequence[Card] = ()


def _on_validation(finished: FinishedRun, name: str, form: str, unit: str = "") -> str:
    value = finished.metrics.get("val", {}).get(name)
    return "" if value is None else f"{value:{form}}{unit}"


def _classes(finished: FinishedRun) -> _Parts:
    scores, names, judged = finished.scores, finished.card.class_names, read_judged(finished)
    before, temperature = scores["ece_uncalibrated"], finished.metrics["temperature"]
    embeddings = open_embeddings(finished)
    mapped = map_run(finished, judged, embeddings)
    results = ClassResults(
        class_names=names,
        preprocessing=finished.card.preprocessing,
        scores=scores,
        judged=judged,
        calibration=(
            f"; {before:.3f} before scaling with the temperature {temperature:.2f}, which was fitted on validation data"
        ),
        find_nearest=None if embeddings is None else neighbors_among(embeddings),
        review=review_command(str(finished.run.folder)),
    )
    cards = ClassCards(results)
    confusion, classes, *others = class_sections(results, cards)
    trained = Counter(row["label"] for row in finished.rows("manifest.csv") if row["split"] == "train")
    return _Parts(
        kicker=f"Classifier of {len(names)} classes",
        headline=class_headline(scores, _images(finished)),
        figures=class_figures(scores),
        sections=[
            confusion,
            *([] if mapped is None else map_section(mapped, names, finished.card.preprocessing)),
            classes,
            *uncertainty_section(accuracy_note(scores)),
            *others,
        ],
        on_validation=_on_validation(finished, "top1_accuracy", ".1%"),
        steps=class_steps(scores, judged, names, finished.rows("findings.csv"), trained, results.review),
        strip=[cards.brief(each) for each in examples(judged)],
    )


def _points(finished: FinishedRun) -> _Parts:
    scores, count = finished.scores, len(finished.card.keypoint_names)
    return _Parts(
        kicker=f"Landmarks: {count} points",
        headline=point_headline(scores, count, _images(finished)),
        figures=point_figures(finished),
        sections=[*point_sections(finished), *uncertainty_section(error_note(scores))],
        on_validation=_on_validation(finished, "error_px", ".2f", " px"),
        steps=point_steps(scores, finished.rows("findings.csv")),
    )


def _labels(finished: FinishedRun) -> _Parts:
    scores = finished.scores
    return _Parts(
        kicker=f"Several labels for each image, of {len(finished.card.class_names)}",
        headline=label_headline(scores, _images(finished)),
        figures=label_figures(finished),
        sections=label_sections(finished),
        on_validation=_on_validation(finished, "map", ".3f"),
    )


def _numbers(finished: FinishedRun) -> _Parts:
    scores, units = finished.scores, finished.config.unit or ()
    return _Parts(
        kicker=f"Numbers: {', '.join(finished.card.target_names)}",
        headline=number_headline(scores, f" {units[0]}" if len(units) == 1 else "", _images(finished)),
        figures=number_figures(finished),
        sections=number_sections(finished),
        on_validation=_on_validation(finished, "mae", ".4g"),
    )


_PARTS: dict[str, Callable[[FinishedRun], _Parts]] = {
    "landmarks": _points,
    "multilabel": _labels,
    "regression": _numbers,
}


def _methods(finished: FinishedRun) -> list[Section]:
    """How method auto chose."""
    rows = finished.rows("methods.csv")
    if not rows:
        return []
    columns = ("method", "held-out images", "top-1 accuracy", "log loss", "gain", "standard error", "seconds")
    names = ("method", "n", "top1_accuracy", "log_loss", "gain", "standard_error", "seconds")
    note = Note(
        f"Chosen: {finished.config.method}. Both methods were scored on the same images, which neither had seen. "
        "Fine-tuning wins if its log loss is lower by more than the standard error."
    )
    table = Table(
        columns,
        [tuple(row[name] if name in ("method", "n") else f"{float(row[name]):.3g}" for name in names) for row in rows],
    )
    return [Section("Method", [note, table])]


def _sites(finished: FinishedRun) -> list[Section]:
    names = ("n", "top1_accuracy", "ci_low", "ci_high", "left_out_top1_accuracy")
    rows = finished.rows("sites.csv")
    return site_section([(row["site"], *(float(row[name]) if row[name] else None for name in names)) for row in rows])


def _curves(finished: FinishedRun) -> list[Section]:
    history = finished.history()
    if not history:  # a head that is solved directly, without epochs
        return []
    best = finished.metrics["best_epoch"]
    blocks: list[Block] = []
    for title, names in _CURVES.items():
        lines = []
        for name in names:
            known = ~np.isnan(history.get(name, np.array([np.nan])))
            if known.any():
                lines.append(Line(plain_name(name), history["epoch"][known].tolist(), history[name][known].tolist()))
        if lines:
            blocks.append(Chart(line_chart(title, "epoch", lines, marked_x=best)))
    speed = np.median(history["images_per_s"])
    kept = "the last one, which is used" if finished.config.interpolate else "whose checkpoint was kept"
    blocks.append(Note(f"The dashed line marks epoch {best}, {kept}. Training speed: {speed:.0f} images/s."))
    return [Section("Curves", blocks)]


def _audit(finished: FinishedRun) -> list[Section]:
    counts = Counter(row["split"] for row in finished.rows("manifest.csv"))
    rows = finished.rows("findings.csv")
    skipped = finished.rows("skipped.csv")
    facts = {split: f"{count} images" for split, count in counts.items()}
    facts["data"] = finished.run.data_hash()[:16]
    blocks: list[Block] = [Facts(facts)]
    if skipped:
        blocks += [
            Note(f"{len(skipped)} images could not be read and were skipped:"),
            Table(("image", "split", "reason"), [(row["path"], row["split"], row["error"]) for row in skipped]),
        ]
    if rows:
        review = review_command(str(finished.run.folder))
        more = f" The first {_SHOWN_FINDINGS} are shown; findings.csv lists all." if len(rows) > _SHOWN_FINDINGS else ""
        blocks += [
            Note(f"{len(rows)} findings to review, for example with {review}.{more}"),
            Table(
                ("kind", "image", "other", "detail"),
                [(row["kind"], row["path"], row["other"], row["detail"]) for row in rows[:_SHOWN_FINDINGS]],
            ),
        ]
    else:
        is_audited = finished.config.audit
        blocks.append(Note("The audit found no problems." if is_audited else "The data was not audited."))
    return [Section("Data", blocks)]


def _samples(finished: FinishedRun) -> list[Section]:
    cards = augmented_cards(finished)
    if not cards:
        return []
    note = f"Training images after augmentation, as the network receives them (augment {finished.config.augment})."
    return [Section("Augmentation", [Gallery(cards, note)])]


def _passport(contract: Contract) -> list[Section]:
    return [Section("Model file", [Facts(dict(summarize_contract(contract)))])]


def _repeat(finished: FinishedRun) -> Section:
    facts = _flat(finished.environment())
    flags = {name: value for name, value in own_choices(finished.config).items() if name not in ("data", "out", "task")}
    words = ["tl", "train", finished.config.data]
    for name, value in flags.items():
        words += _flag(name, value)
    blocks: list[Block] = [Code(shlex.join(words))]
    if facts:
        blocks.append(Facts(facts))
    return Section("Repeat", blocks)


def _flag(name: str, value: object) -> list[str]:
    default = next(field.default for field in fields(TrainConfig) if field.name == name)
    if value == default:
        return []
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else f"--no-{name.replace('_', '-')}"]
    if isinstance(value, tuple | list):
        return [word for each in value for word in (flag, str(each))]
    return [flag, str(value)]


def _flat(facts: dict[str, object]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            flat[name] = ", ".join(f"{key} {each}" for key, each in value.items())
        elif isinstance(value, Sequence) and not isinstance(value, str):
            flat[name.replace("_", " ")] = ", ".join(map(str, value)) or "none"
        else:
            flat[name] = str(value)
    return flat
