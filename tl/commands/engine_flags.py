"""Flags for the engine of a prediction: this machine, or a Ray cluster."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from tl.commands.console import warn
from tl.commands.options import ModelFlags
from tl.commands.requests import refuse_given
from tl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO

    from tl.runtime.imaging.decode import ImageSource
    from tl.runtime.predictor import Predictor
    from tl.runtime.sources.inputs import Inputs

FOR_CLUSTERS = "Clusters"


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """Where images are predicted."""

    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="ray: predict on a Ray cluster, with the same rows. Images and models must have the same paths on all "
            "nodes.",
            rich_help_panel=FOR_CLUSTERS,
        ),
    ] = "local"
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of the cluster's head node; auto: RAY_ADDRESS, or the cluster that runs on this machine; "
            "local: start Ray on this machine. Default: auto.",
            metavar="auto|local|HOST:PORT",
            rich_help_panel=FOR_CLUSTERS,
        ),
    ] = None
    ray_actors: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of Ray workers, each on one node: with --threads CPUs (by default 1) or, if the cluster has "
            "GPUs, a share of a GPU and of its node's CPUs. Default: one for each GPU, or else for each CPU.",
            rich_help_panel=FOR_CLUSTERS,
        ),
    ] = None
    ray_send_images: Annotated[
        bool,
        typer.Option(
            "--ray-send-images",
            help="Read images here and send them to the workers, which need not reach the files or object stores.",
            rich_help_panel=FOR_CLUSTERS,
        ),
    ] = False


def local_models(engine: EngineFlags, models: ModelFlags) -> ModelFlags:
    """Return how models are opened in this process: with a cluster, on the CPU, because others predict."""
    return models if engine.engine == "local" else replace(models, device="cpu", threads=1)


def check_engine(engine: EngineFlags, **not_on_clusters: object) -> None:
    """Raise `ConfigError` for flags that do not apply to the engine. `not_on_clusters`: option -> value, None if not
    given.
    """
    if engine.engine == "local":
        refuse_given(replace(engine, engine="local"), "applies only to --engine ray")
        return
    if refused := [f"--{name.replace('_', '-')}" for name, value in not_on_clusters.items() if value is not None]:
        raise ConfigError(f"{', '.join(refused)}: not possible with --engine ray: leave out one of the two")


def on_engine(engine: EngineFlags, models: ModelFlags, predictor: Predictor[Any], *, max_bytes: int) -> Predictor[Any]:
    """Return the predictor itself, or one that predicts as it does on a cluster. Raises `WorkerError`.

    `max_bytes`: of an image that is read from a server.
    """
    if engine.engine == "local":
        return predictor
    from tl.runtime.distributed.ray_predictor import RayPredictor, RaySettings

    sys.stdout = cast("TextIO", _OneThread(sys.stdout))
    settings = RaySettings(
        address=engine.ray_address or "auto",
        actors=engine.ray_actors,
        device=models.device,
        threads=models.threads,
        sends_images=engine.ray_send_images,
        max_bytes=max_bytes,
    )
    return RayPredictor(predictor, settings, warn)


def sources_for(engine: EngineFlags, images: Inputs, *, reads_here: bool) -> Iterable[ImageSource]:
    """Return the images to predict. Those on servers are opened here, or left to the engine's workers.

    `reads_here`: this process needs the images, or their names without credentials, before they are predicted.
    """
    return images if engine.engine == "local" or reads_here else images.unopened()


class _OneThread:
    """A text stream that takes what this thread writes, and drops the rest.

    Source: Ray's `listen_error_messages`, a thread of its driver, prints what happens to nodes on stdout.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        """Write, or drop, the text."""
        return self._stream.write(text) if threading.get_ident() == self._thread else len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
