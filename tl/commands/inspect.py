"""`tl inspect`: show a model file's metadata, filters and feature maps; write a page that runs it in a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl.commands.console import packages_of, show, show_json, show_table, warn
from tl.commands.model_files import check_model_files
from tl.commands.options import Overwrite, check_outputs
from tl.errors import ConfigError, ModelFileError

if TYPE_CHECKING:
    from tl.runtime.model_file.contract import Contract
    from tl.studies.report.model_page import Look, Ranking

_FILTERS, _ACTIVATIONS = "Filters", "Activations"
ModelArgument = Annotated[Path, typer.Argument(help="Model file.", show_default=False)]
Html = Annotated[Path | None, typer.Option(help="Also write everything to this file, a single HTML page.")]
Filters = Annotated[bool, typer.Option("--filters", help="Draw the first layer's filters.")]
Activations = Annotated[
    Path | None, typer.Option(help="Image whose feature maps are drawn before and after a layer's non-linearity.")
]
Layer = Annotated[
    str | None,
    typer.Option(
        help="Non-linearity that --activations shows: its number (default: 1), or the name of the layer before it."
    ),
]
Top = Annotated[
    tuple[int, Path] | None,
    typer.Option(help="Print the N most probable classes of an image.", metavar="N IMAGE", show_default=False),
]
OutFolder = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="Folder for the drawings, unless --html includes them. Default: the current folder."
    ),
]
Web = Annotated[
    Path | None,
    typer.Option(
        help="Write a folder for any web server: a page that runs this model in the browser, without a server of tl.",
        rich_help_panel="Browser",
        metavar="DIR",
    ),
]
OrtWeb = Annotated[
    Path | None,
    typer.Option(
        help="Folder in which 'npm install onnxruntime-web' was run, for --web. Default: the current folder.",
        rich_help_panel="Browser",
        metavar="NPM_FOLDER",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole contract as JSON, or the classes with --top.")]


def command(
    model: ModelArgument,
    html: Html = None,
    top: Top = None,
    filters: Filters = False,
    activations: Activations = None,
    layer: Layer = None,
    out: OutFolder = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    web: Web = None,
    ort_web: OrtWeb = None,
) -> None:
    """Show a model file's task, classes, preprocessing, provenance and parity, draw its filters and feature maps, or
    write a page that runs it in the browser.

    Examples:
    - `tl inspect beetles.onnx --top 5 photo.jpg` prints label,probability

    - `tl inspect beetles.onnx --html beetles.html --filters --activations photo.jpg --top 5 photo.jpg`

    - `tl inspect beetles.onnx --web site --ort-web ~/npm` writes site/, a page for any web server
    """
    if layer is not None and activations is None:
        raise ConfigError("--layer requires --activations IMAGE, whose layer it selects")
    if out is not None and (html is not None or not (filters or activations)):
        raise ConfigError("--out requires --filters or --activations, and cannot be combined with --html")
    if ort_web is not None and web is None:
        raise ConfigError("--ort-web requires --web DIR, the folder to write")
    if web is not None:
        if html or top or filters or activations or as_json:
            raise ConfigError("--web writes a page and shows nothing: leave out the other options")
        _write_web(model, web, ort_web, overwrite)
        return
    from tl.runtime.model_file.contract import dump_contract
    from tl.runtime.session import Session

    shown = {_FILTERS: filters, _ACTIVATIONS: activations is not None}
    drawings = [_drawing_path(out or Path(), model, title) for title, is_shown in shown.items() if is_shown]
    check_outputs(overwrite, *([html] if html is not None else drawings))
    check_model_files(model)
    contract = Session(model, device="cpu").contract
    if contract is None:
        raise ModelFileError(f"{model}: contains no contract")
    ranking = None if top is None else _rank(model, contract, *top)
    looks = _look_inside(model, contract, filters, activations, layer or "1")
    if html is not None:
        from tl.studies.report.model_page import write_model_page

        warn(f"page: {write_model_page(model, contract, html, looks=looks, ranking=ranking)}")
    else:
        _save(looks, out or Path(), model)
    if ranking is not None:
        _print_ranking(ranking, as_json)
    elif as_json:
        show(json.dumps(json.loads(dump_contract(contract)), indent=2, ensure_ascii=False))
    elif html is None and not looks:
        _print_summary(model, contract)


def _write_web(model: Path, folder: Path, ort_web: Path | None, overwrite: bool) -> None:
    from tl.serving.web_folder import write_web_folder

    check_model_files(model)
    page = write_web_folder(model, folder, ort_web, overwrite=overwrite)
    warn(f"page: {page}")
    warn(f"to try it: python -m http.server --directory {folder}, then open http://localhost:8000/")


def _rank(model: Path, contract: Contract, count: int, image: Path) -> Ranking:
    from tl.runtime.predictor import load
    from tl.studies.report.model_page import Ranking

    if contract.task != "classification" or count < 1:
        raise ConfigError("--top requires a number of at least 1, an image, and a classification model")
    with load(model, device="cpu") as predictor:
        probabilities = predictor.predict(image).probabilities
    best = (-probabilities).argsort(kind="stable")[:count]
    return Ranking(image.name, [(contract.class_names[i], float(probabilities[i])) for i in best])


def _look_inside(model: Path, contract: Contract, filters: bool, activations: Path | None, layer: str) -> list[Look]:
    if not filters and activations is None:
        return []
    with packages_of("edit"):
        from tl.exporter.feature_maps import choose_activation, first_filters, list_activations, run_activation
    from tl.runtime.explain.drawing import draw_filters, draw_maps
    from tl.runtime.imaging.pipeline import load_input
    from tl.studies.report.model_page import Look

    looks = []
    if filters:
        name, weights = first_filters(model)
        count, _, height, width = weights.shape
        note = f"{count} filters of {height} x {width}, {name}; gray is 0"
        looks.append(Look(_FILTERS, note, draw_filters(weights)))
    if activations is not None:
        there = list_activations(model)
        chosen = choose_activation(there, layer)
        before, after = run_activation(model, chosen, load_input(activations, contract.preprocessing))
        shown = min(16, len(before))
        size = f"{before.shape[1]} x {before.shape[2]}"
        note = f"{activations.name}: {shown} of {len(before)} maps of {size}, before (left) and after {chosen.kind} of "
        note += f"{chosen.layer} (number {chosen.number} of {len(there)}); middle gray is 0"
        looks.append(Look(_ACTIVATIONS, note, draw_maps(before, after, shown)))
    return looks


def _drawing_path(folder: Path, model: Path, title: str) -> Path:
    return folder / f"{model.stem}-{title.lower()}.png"


def _save(looks: list[Look], folder: Path, model: Path) -> None:
    from tl.runtime.output.files import atomic_path

    for look in looks:
        path = _drawing_path(folder, model, look.title)
        with atomic_path(path) as temporary:
            look.drawing.save(temporary, "PNG")
        warn(f"{path}: {look.note}")


def _print_ranking(ranking: Ranking, as_json: bool) -> None:
    if as_json:
        show_json([{"label": name, "probability": value} for name, value in ranking.rows])
        return
    show_table([("label", "probability"), *((name, f"{value:.6f}") for name, value in ranking.rows)])


def _print_summary(model: Path, contract: Contract) -> None:
    from tl.runtime.model_file.summary import summarize_contract

    rows = [("file", f"{model} ({model.stat().st_size / 1e6:.1f} MB)"), *summarize_contract(contract)]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        show(f"{name:<{width}}  {text}")
