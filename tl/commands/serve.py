"""`tl serve`: offer model files over HTTP."""

from __future__ import annotations

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
    from tl.serving.limits import Limits
    from tl.serving.models import ModelSource, ModelStore
    from tl.serving.workers import Batching

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
    from tl.runtime.devices import usable_cores

    flags, address = request.models, request.address
    sources = _sources(flags)
    try:
        from tl.serving.access import Access, is_loopback, url_of
        from tl.serving.app import build_app
        from tl.serving.limits import Load
        from tl.serving.metrics import Metrics
        from tl.serving.predict import Server
        from tl.serving.server import bind, build_server
        from tl.serving.workers import Workers
    except ImportError as error:
        raise MissingExtraError(
            f"serving requires additional packages ({error.name} is missing): pip install 'tl-toolkit[serve]'"
        ) from error
    if not is_loopback(address.host) and not address.token:
        raise ConfigError(f"--host {address.host}: other machines can reach this address: also give --token")
    listening, metrics, limits = bind(address.host, address.port), Metrics(), _limits(request.limits)
    port = int(listening.getsockname()[1])
    batching = _batching(request.limits)
    store = _open(sources, flags.device, metrics.count_load, batching)
    is_cpu = store.get(None).predictor.provider == "CPUExecutionProvider"
    workers = Workers(
        flags.threads or usable_cores(),
        batching=None if is_cpu else batching,
        max_pixels=limits.max_megapixels * 1e6,
        seen=metrics.count_batch,
    )
    server = Server(store, workers, Load(limits), metrics)
    access = Access(address.host, port, address.token or None)
    app = build_app(server, access, reload_s=1.0 if address.reload else None)
    url = url_of(address.host, port)

    def started() -> None:
        names = ", ".join(model.name for model in store.all())
        warn(f"serving {names} at {url}{'?token=...' if address.token else ''}; Ctrl-C stops")
        if address.as_json:
            show_json({"url": url, "port": port, "models": [model.name for model in store.all()]})

    build_server(app, limits, started=started).run([listening])
    warn("stopped")


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


def _batching(flags: _LimitFlags) -> Batching:
    from tl.serving.workers import Batching

    return Batching(flags.max_batch, flags.max_delay)


def _open(sources: list[ModelSource], device: str, opened: object, batching: Batching) -> ModelStore:
    from tl.serving.models import ModelStore

    sizes = [1 << n for n in range((batching.max_batch - 1).bit_length() + 1)]
    return ModelStore(sources, device=device, opened=opened, say=warn, warm=sizes)  # type: ignore[arg-type]
