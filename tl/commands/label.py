"""`tl label`: label a folder of photos on a local page, with a head that learns meanwhile."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl.commands.console import warn
from tl.commands.local_page import bind_page, serve_page
from tl.commands.model_files import check_model_files
from tl.commands.options import Device, Threads
from tl.commands.requests import from_flags
from tl.errors import ConfigError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tl.annotation.feature_sources import FeatureSource
    from tl.annotation.opening import SessionPlan

_PAGE = "Page"
# Names of threads that cannot be ended: of `annotation.features`, and of `annotation.model_job`.
_ENDS_WITH_PROCESS = ("tl-prepare", "tl-model")


@dataclass(frozen=True, kw_only=True)
class _Session:
    """What is labeled, and where the labels go."""

    photos: Annotated[Path, typer.Argument(help="Folder of photos; photos in its sub-folders are labeled too.")]
    classes: Annotated[
        str | None, typer.Option(help="Names of classes, separated by commas. The page can add more.")
    ] = None
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV of labels, which tl train reads.")] = Path("labels.csv")
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="Model file whose features are used. Default: a pretrained backbone."),
    ] = None
    backbone: Annotated[
        str | None, typer.Option(help="Backbone whose features are used. Default: that of tl train.")
    ] = None
    groups: Annotated[
        Literal["folder"] | None,
        typer.Option(help="folder: photos of one sub-folder, such as those of one specimen, stay in one split."),
    ] = None
    labels: Annotated[
        Path | None,
        typer.Option("--import", help="Labels to begin with: a CSV, class folders or a labeling tool's file."),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Rename the labels of an earlier session, and begin anew.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class _Page:
    """Where the page is, and what computes."""

    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page; 0 for a free one.", rich_help_panel=_PAGE)
    ] = 0
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.", rich_help_panel=_PAGE)
    ] = True
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Seed of the random draw of a new session, to repeat one. Default: a new seed.",
            show_default=False,
            rich_help_panel=_PAGE,
        ),
    ] = None
    device: Device = "auto"
    threads: Threads = None
    as_json: Annotated[bool, typer.Option("--json", help="Print the page's link as JSON when it can be opened.")] = (
        False
    )


@dataclass(frozen=True, kw_only=True)
class LabelRequest:
    """Everything that `tl label` was asked for."""

    session: _Session
    page: _Page


@from_flags
def command(request: LabelRequest) -> None:
    """Label a folder of photos on a local page: similar photos together, and the most useful ones first.

    Examples:
    - `tl label photos --classes ant,bee,wasp`, then label by keys; labels.csv is up to date at every moment

    - `tl label photos -o labels.csv --model beetles.onnx` uses the features of a model file

    - `tl label photos --groups folder --import old.csv` goes on from existing labels; a folder is one specimen

    Every answer is on disk before the page confirms it; the same command goes on later. Photos are never changed, and
    nothing leaves this machine. The accuracy shown is that on random photos which are labeled without a suggestion.
    Ctrl-C stops.
    """
    flags = request.session
    if flags.model is not None and flags.backbone is not None:
        raise ConfigError("give either --model or --backbone: both compute features")
    if flags.model is not None:
        check_model_files(flags.model)
    with bind_page(request.page.port) as listening:
        _label(request, listening)
    _leave()


def _label(request: LabelRequest, listening: socket.socket) -> None:
    """Open the session and serve its page until a signal."""
    from tl.annotation.model_making import make_model
    from tl.annotation.opening import open_session
    from tl.serving.label.routes import build_label_app
    from tl.serving.local.app import RevisionStream
    from tl.serving.local.thumbnails import Thumbnails

    page, plan = request.page, _plan(request)
    make = partial(
        make_model,
        trunk=request.session.model,
        backbone=request.session.backbone,
        photos=request.session.photos,
    )
    with open_session(plan, _source(request), warn, make) as session:
        thumbnails = Thumbnails(session.photos.locate, len(session.photos), threads=page.threads)
        stream = RevisionStream(lambda: session.revision)
        serve_page(
            lambda access: build_label_app(session, thumbnails, stream, access),
            listening,
            stream,
            thumbnails,
            output=plan.output,
            told=f"labeling {len(session.photos)} photos of {plan.photos}; Ctrl-C stops",
            opens_browser=page.browser,
            as_json=page.as_json,
        )
        labeled = session.state()["counts"]["labeled"]
    warn(f"stopped: {labeled} labeled photos in {plan.output}")


def _leave() -> None:
    """End the process at once if a network is still being opened or trained: such a thread would end in an abort.

    All labels are written by then.
    """
    if any(thread.name in _ENDS_WITH_PROCESS for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _plan(request: LabelRequest) -> SessionPlan:
    from tl.annotation.opening import SessionPlan

    flags = request.session
    return SessionPlan(
        flags.photos,
        flags.out,
        [name.strip() for name in (flags.classes or "").split(",") if name.strip()],
        flags.labels,
        flags.groups == "folder",
        flags.overwrite,
        request.page.seed,
    )


def _source(request: LabelRequest) -> Callable[[], FeatureSource]:
    """Return what opens the network. A model file is open now; a backbone opens later, as torch loads slowly."""
    from tl.annotation.feature_sources import open_source

    flags, page = request.session, request.page
    if flags.model is not None:
        source = open_source(flags.model, None, page.device, page.threads)
        return lambda: source
    return lambda: open_source(None, flags.backbone, page.device, page.threads)
