"""`tl review`: find doubtful labels and duplicates, and correct them on a local page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl.commands.console import EXIT_SOME_FAILED, console_progress, packages_of, show, warn
from tl.commands.local_page import bind_page, serve_page
from tl.commands.model_files import check_model_files, warn_of_equal_files
from tl.commands.options import (
    FOR_ENSEMBLES,
    Device,
    ImageFolder,
    LabelColumn,
    Overwrite,
    PathColumn,
    SplitColumn,
    Threads,
    check_outputs,
)
from tl.commands.requests import from_flags, refuse_given
from tl.errors import ConfigError

if TYPE_CHECKING:
    import socket

    from tl.annotation.problems import Evidence, Problem
    from tl.annotation.review import Review
    from tl.data.manifests import ManifestColumns

_OUTPUT = Path("reviewed.csv")


@dataclass(frozen=True, kw_only=True)
class _DataColumns:
    """How a CSV manifest is read."""

    split_column: SplitColumn = "split"
    path_column: PathColumn = None
    label_column: LabelColumn = None
    images: ImageFolder = None

    def columns(self) -> ManifestColumns:
        """Return them for `read_images`."""
        from tl.data.manifests import ManifestColumns

        images = None if self.images is None else str(self.images)
        return ManifestColumns(self.split_column, self.path_column, self.label_column, images)

    def of_output(self) -> list[str]:
        """Return the flags with which the reviewed CSV is read, whose paths are its own."""
        named = {"--split-column": self.split_column, "--path-column": self.path_column}
        named |= {"--label-column": self.label_column}
        pairs = [(flag, name) for flag, name in named.items() if name not in (None, "split")]
        return [str(word) for pair in pairs for word in pair]


@dataclass(frozen=True, kw_only=True)
class _Page:
    """The local page."""

    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 for a free one.")] = 0
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True


@dataclass(frozen=True, kw_only=True)
class ReviewRequest:
    """Everything that `tl review` was asked for."""

    data: Annotated[
        Path,
        typer.Argument(
            help="Labeled images: class folders, CSV or a labeling tool's file; or a run.", metavar="DATA|RUN"
        ),
    ]
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="CSV of the data after the review. Default: reviewed.csv.", show_default=False
        ),
    ] = None
    kinds: Annotated[
        str | None,
        typer.Option(
            help="Kinds of problems, as in label,duplicate: label, duplicate, disagreement, error, rare, outlier. "
            "Default: all.",
            show_default=False,
        ),
    ] = None
    page: Annotated[bool, typer.Option("--page/--no-page", help="Open the page, or print the problems as CSV.")] = True
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the problems, or the address of the page, as JSON on stdout.")
    ] = False
    overwrite: Overwrite = False
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Merged model file whose members' disagreement is looked for.")
    ] = None
    ensemble: Annotated[
        list[Path] | None,
        typer.Option(
            help="Model files whose disagreement is looked for, all after one flag.", rich_help_panel=FOR_ENSEMBLES
        ),
    ] = None
    backbone: Annotated[
        str | None,
        typer.Option(help="Pretrained network that compares images. Default: that of tl train.", show_default=False),
    ] = None
    local: _Page = _Page()
    columns: _DataColumns = _DataColumns()
    device: Device = "auto"
    threads: Threads = None
    seed: Annotated[int, typer.Option(min=0, help="Seed of the folds of held-out predictions.")] = 0

    def members(self) -> list[Path]:
        """Return the model files. Raises `ConfigError`."""
        if self.model and self.ensemble:
            raise ConfigError("give either --model a.onnx or --ensemble a.onnx b.onnx c.onnx")
        return self.ensemble or ([self.model] if self.model else [])


@from_flags
def command(request: ReviewRequest) -> None:
    """Find doubtful labels, duplicates and outliers in labeled images, and correct them on a local page.

    Examples:
    - `tl review photos/` opens a page; decisions are written to reviewed.csv and reviewed.changes.csv

    - `tl review labels.csv -o checked.csv --kinds label,duplicate`, then `tl train checked.csv`

    - `tl review runs/beetles --ensemble a.onnx b.onnx c.onnx` also shows errors of the run and where models disagree

    `--no-page` prints the problems as CSV: path, kind, score, label, suggested, other, reason. Photos and labels are
    never changed in place. The page is only for this machine, by the link that is printed. Stopping it loses nothing:
    the same command goes on. Exit code 3: with --no-page, some images could not be read.
    """
    kinds = _kinds(request.kinds)
    members = request.members()
    check_model_files(*members)
    warn_of_equal_files(members)
    if request.page:
        _open_page(request, kinds, members)
    else:
        refuse_given(request.local, "without a page there is nothing to serve")
        _print_problems(request, kinds, members)


def _kinds(text: str | None) -> tuple[str, ...]:
    """Return the kinds of a list such as `label,duplicate`. Raises `ConfigError`."""
    from tl.annotation.problems import KINDS

    if text is None:
        return tuple(KINDS)
    asked = [word.strip() for word in text.split(",") if word.strip()]
    if not asked or (unknown := [word for word in asked if word not in KINDS]):
        found = f"'{unknown[0]}' is not one" if asked else "names none"
        raise ConfigError(f"--kinds {text}: {found} of {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in asked)


def _find(request: ReviewRequest, kinds: Sequence[str], members: Sequence[Path]) -> tuple[Evidence, list[Problem]]:
    """Return what is known of the images, and their problems."""
    with packages_of("train"):
        from tl.annotation.problems import find_problems, gather_evidence
    with console_progress() as progress:
        evidence = gather_evidence(
            request.data,
            columns=request.columns.columns(),
            members=members,
            backbone=request.backbone,
            device=request.device,
            threads=request.threads,
            seed=request.seed,
            progress=progress,
        )
    return evidence, find_problems(evidence, kinds)


def _print_problems(request: ReviewRequest, kinds: Sequence[str], members: Sequence[Path]) -> None:
    """Print or write the problems, and fail with 3 if images could not be read."""
    from tl.annotation.problem_rows import PROBLEM_COLUMNS, problem_rows
    from tl.runtime.output.files import write_text
    from tl.runtime.sources.tables import csv_text

    check_outputs(request.overwrite, request.out, inputs=[request.data, *members])
    evidence, problems = _find(request, kinds, members)
    rows = problem_rows(evidence, problems)
    if request.as_json:
        text = json.dumps(rows, indent=None if request.out is None else 2) + "\n"
    else:
        text = csv_text([PROBLEM_COLUMNS, *([row[name] for name in PROBLEM_COLUMNS] for row in rows)])
    if request.out is None:
        show(text.removesuffix("\n"))
    else:
        write_text(request.out, text)
    warn(summary(evidence, problems))
    if evidence.failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def summary(evidence: Evidence, problems: Sequence[Problem]) -> str:
    """`12 of 2,400 images are doubtful: wrong labels 7, duplicates 5`."""
    from tl.annotation.review_items import ABOUT, ReviewItems

    items = ReviewItems(evidence, tuple(problems))
    counts = [f"{ABOUT[kind][0].lower()} {len(items.places(kind)):,}" for kind in items.kinds]
    total, found = len(items.images), len(items.places(None))
    return f"{found:,} of {total:,} images are doubtful" + (f": {', '.join(counts)}" if counts else "")


def _open_page(request: ReviewRequest, kinds: Sequence[str], members: Sequence[Path]) -> None:
    """Find the problems and serve the page until a signal."""
    from tl.annotation.review import Review
    from tl.annotation.review_items import ReviewItems
    from tl.annotation.review_output import ReviewOutput
    from tl.annotation.review_table import read_review_table

    output = request.out or _OUTPUT
    _check_not_input(output, request.data)
    with ExitStack() as stack:
        listening = stack.enter_context(bind_page(request.local.port))
        table = read_review_table(request.data, request.columns.columns())
        held = stack.enter_context(ReviewOutput(output, table, warn, overwrite=request.overwrite))
        evidence, problems = _find(request, kinds, members)
        warn(summary(evidence, problems))
        review = Review(ReviewItems(evidence, tuple(problems)), table, held, warn)
        stack.callback(review.close)
        _serve(request, review, listening)
    _say_outcome(review, _next_command(request, output))


def _check_not_input(output: Path, data: Path) -> None:
    """Raise `ConfigError` for an output that the review reads."""
    from tl.annotation.reviewed import ReviewedFiles

    for path in ReviewedFiles(output).all:
        if path.exists() and data.exists() and path.samefile(data):
            raise ConfigError(f"{path}: is read by this command: give the output another name with -o")


def _serve(request: ReviewRequest, review: Review, listening: socket.socket) -> None:
    from tl.serving.review.routes import ReviewApi, build_review_app, open_thumbnails

    thumbnails = open_thumbnails(review)
    api = ReviewApi(review, [_next_command(request, review.files.output)])
    serve_page(
        lambda access: build_review_app(api, review, thumbnails, access),
        listening,
        api.stream,
        thumbnails,
        output=review.files.output,
        told="Ctrl-C stops, and loses nothing",
        opens_browser=request.local.browser,
        as_json=request.as_json,
    )


def _next_command(request: ReviewRequest, output: Path) -> str:
    words = ["tl", "train", str(output), *request.columns.of_output(), "--out", f"runs/{output.stem}"]
    return shlex.join(words)


def _say_outcome(review: Review, next_command: str) -> None:
    """Say what was decided, and what to do next."""
    counts: dict[str, int] = {}
    for made in review.decisions().values():
        counts[made.do] = counts.get(made.do, 0) + 1
    if not counts:
        warn("nothing was decided")
        return
    told = ", ".join(f"{count} {do}" for do, count in counts.items())
    warn(f"decided: {told}; written to {review.files.output}, {review.files.changes} and {review.files.text}")
    warn(f"next: {next_command}")
