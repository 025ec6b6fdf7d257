"""`tl serve`: offer model files over HTTP."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tl.commands.console import show_json, warn
from tl.commands.model_files import check_model_files, warn_of_equal_files
from tl.commands.options import FOR_ENSEMBLES, FOR_SPEED, Device, Threads, VoteWeights, parse_vote_weights
from tl.commands.requests import from_flags
from tl.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    import socket

    from tl.serving.limits import Limits
    from tl.serving.models import ModelSource

_LIMITS = "Limits"
ENSEMBLE_NAME = "ensemble"


@dataclass(frozen=True, kw_only=True)
class _Models:
    """What is served, and where it runs."""

    models: Annotated[
        list[Path] | None, typer.Argument(help="Model files, each served under the name of its file.")
    ] = None
    ensemble: Annotated[
        list[Path] | None,
        typer.Option(help=f"Model files that vote together, all after one flag; served as '{ENSEMBLE_NAME}'."),
    ] = None
    vote: Annotated[
        Literal["soft", "hard", "max"], typer.Option(help="Voting rule of --ensemble.", rich_help_panel=FOR_ENSEMBLES)
    ] = "soft"
    vote_weights: VoteWeights = None
    device: Device = "auto"
    threads: Threads = None


@dataclass(frozen=True, kw_only=True)
class _Address:
    """Where the server listens, and who may ask."""

    host: Annotated[str, typer.Option(help="Address to listen on. Others than this machine's own require --token.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")] = 8000
    token: Annotated[
        str | None,
        typer.Option(
            help="Text that every request must show. Safer in the environment variable TL_SERVE_TOKEN.",
            envvar="TL_SERVE_TOKEN",
            show_envvar=False,
        ),
    ] = None
    reload: Annotated[bool, typer.Option(help="Load a model file again when it is replaced, after its self-test.")] = (
        True
    )
    as_json: Annotated[
        bool, typer.Option("--json", help="Print address and models as JSON on stdout when the server is ready.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class _LimitFlags:
    """What one request may ask for, and all together."""

    max_body_mb: Annotated[int, typer.Option(min=1, help="MiB of a request.", rich_help_panel=_LIMITS)] = 64
    max_images: Annotated[int, typer.Option(min=1, help="Images of a request.", rich_help_panel=_LIMITS)] = 64
    max_megapixels: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Million pixels of an image. Default: 178, as for tl predict.",
            show_default=False,
            rich_help_panel=_LIMITS,
        ),
    ] = None
    max_requests: Annotated[
        int,
        typer.Option(
            min=1, help="Requests that are predicted or wait for it; others get 503.", rich_help_panel=_LIMITS
        ),
    ] = 64
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds until a prediction must be finished.", rich_help_panel=_LIMITS)
    ] = 60.0
    receive_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds in which a client must send a request.", rich_help_panel=_LIMITS)
    ] = 60.0
    max_batch: Annotated[
        int,
        typer.Option(
            min=1,
            help="CUDA: images of several requests that are predicted together. On a CPU, one image at a time on each "
            "core is fastest.",
            rich_help_panel=FOR_SPEED,
        ),
    ] = 64
    max_delay: Annotated[
        float,
        typer.Option(
            min=0, help="CUDA: milliseconds that an image waits for others of its batch.", rich_help_panel=FOR_SPEED
        ),
    ] = 5.0


@dataclass(frozen=True, kw_only=True)
class ServeRequest:
    """Everything that `tl serve` was asked for."""

    models: _Models
    address: _Address
    limits: _LimitFlags


@from_flags
def command(request: ServeRequest) -> None:
    """Serve predictions over HTTP: uploaded images, the Open Inference Protocol, and a web page to drop images on.

    Examples:
    - `tl serve beetles.onnx`, then open http://127.0.0.1:8000/ or `curl -F images=@a.jpg http://127.0.0.1:8000/predict`

    - `tl serve beetles.onnx moths.onnx --ensemble a.onnx b.onnx c.onnx` serves the models beetles, moths and ensemble

    - `TL_SERVE_TOKEN=$(openssl rand -hex 16) tl serve beetles.onnx --host 0.0.0.0` serves other machines

    POST /predict answers as tl predict does. /v2 is the Open Inference Protocol of KServe and Triton, /metrics is for
    Prometheus, /openapi.json describes it all. Ctrl-C and SIGTERM finish the requests in progress, with exit code 0.
    """
    address = request.address
    sources = _sources(request.models)
    try:
        from tl.serving.access import is_loopback
        from tl.serving.server import bind
    except ImportError as error:
        raise MissingExtraError(
            f"serving requires additional packages ({error.name} is missing): pip install 'tl-toolkit[serve]'"
        ) from error
    if not is_loopback(address.host) and not address.token:
        raise ConfigError(f"--host {address.host}: other machines can reach this address: also give --token")
    with bind(address.host, address.port) as listening:
        _serve(request, sources, listening)
    warn("stopped")


def _serve(request: ServeRequest, sources: list[ModelSource], listening: socket.socket) -> None:
    """Open the models and serve them until a signal."""
    from tl.runtime.devices import usable_cores
    from tl.runtime.providers import runs_on_cpu
    from tl.serving.access import Access, url_of
    from tl.serving.app import build_app
    from tl.serving.limits import Load
    from tl.serving.metrics import Metrics
    from tl.serving.models import ModelStore
    from tl.serving.predict import Server
    from tl.serving.server import build_server
    from tl.serving.workers import Batching, Workers

    flags, address, limits, metrics = request.models, request.address, _limits(request.limits), Metrics()
    batching = Batching(request.limits.max_batch, request.limits.max_delay)
    store = ModelStore(sources, device=flags.device, opened=metrics.count_load, say=warn, warm=batching.sizes)
    is_cpu = runs_on_cpu(store.get(None).predictor.provider)
    workers = Workers(
        flags.threads or usable_cores(),
        batching=None if is_cpu else batching,
        max_pixels=limits.max_megapixels * 1e6,
        seen=metrics.count_batch,
    )
    port = int(listening.getsockname()[1])
    app = build_app(
        Server(store, workers, Load(limits), metrics),
        Access(address.host, port, address.token or None),
        reload_s=1.0 if address.reload else None,
    )
    url, names = url_of(address.host, port), [model.name for model in store.all()]

    def started() -> None:
        warn(f"serving {', '.join(names)} at {url}{'?token=...' if address.token else ''}; Ctrl-C stops")
        if address.as_json:
            show_json({"url": url, "port": port, "models": names})
            sys.stdout.flush()  # a program that started the server waits for this line

    build_server(app, limits, started=started).run([listening])


def _sources(flags: _Models) -> list[ModelSource]:
    """Return what to serve, named by the files."""
    from tl.serving.models import ModelSource

    singles, members = flags.models or [], flags.ensemble or []
    if not singles and not members:
        raise ConfigError("give at least one model file, or --ensemble a.onnx b.onnx c.onnx")
    check_model_files(*singles, *members)
    warn_of_equal_files(members)
    sources = [ModelSource(path.stem, (path,)) for path in singles]
    if members:
        weights = parse_vote_weights(flags.vote_weights, members)
        given = None if weights is None else tuple(weights)
        sources.append(ModelSource(ENSEMBLE_NAME, tuple(members), True, flags.vote, given))
    return sources


def _limits(flags: _LimitFlags) -> Limits:
    from tl.serving.limits import Limits

    return Limits(
        max_body_mb=flags.max_body_mb,
        max_images=flags.max_images,
        max_megapixels=flags.max_megapixels or Limits.max_megapixels,
        max_requests=flags.max_requests,
        timeout_s=flags.timeout,
        receive_s=flags.receive_timeout,
    )
