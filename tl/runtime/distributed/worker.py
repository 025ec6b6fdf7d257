"""The side of a worker: open the models that another process has opened, and predict chunks of images.

Knows nothing of the program that starts workers and carries their messages.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tl
from tl.errors import ModelFileError, TlError, WorkerError
from tl.runtime.predictor import Predictor
from tl.runtime.session import Session
from tl.runtime.sources.boxed_images import PredictionSource
from tl.runtime.sources.paths import hash_file
from tl.runtime.sources.remote import iter_opened
from tl.runtime.streams import nothing_known


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to predict as this process does. Picklable.

    `members`: from `dump_members`. `device`, `threads`: of the worker. `folder`: the folder that names are relative
    to. `version`: that of this process. `max_bytes`: of an image that the worker reads from a server.
    """

    members: bytes
    with_votes: bool
    device: str
    threads: int
    folder: str
    version: str
    max_bytes: int


@dataclass(frozen=True)
class Digested:
    """In the place of a result: the image `path` could be read, and was not predicted."""

    path: str


class Worker:
    """Predicts chunks of images, with models that are opened once."""

    def __init__(self) -> None:
        self._predictor: Predictor[Any] | None = None
        self._max_bytes = 0

    def open(self, recipe: Recipe) -> str:
        """Open the models and return the provider they run on.

        Raises `WorkerError`, and the errors of opening models, with the name of this machine.
        """
        node = f"node {socket.gethostname()}"
        if recipe.version != tl.__version__:
            raise WorkerError(
                f"{node}: has tl {tl.__version__}, but the command runs {recipe.version}: install the same on all nodes"
            )
        try:
            os.chdir(recipe.folder)  # names of images and models may be relative
        except OSError as error:
            raise WorkerError(
                f"{node}: {recipe.folder}: {error.strerror}: images and models must have the same paths on all nodes"
            ) from error
        try:
            members = load_members(recipe.members, device=recipe.device)
        except TlError as error:
            raise type(error)(f"{node}: {error}", options=error.options) from error
        self._max_bytes = recipe.max_bytes
        predictor = self._predictor = Predictor(members, with_votes=recipe.with_votes, threads=recipe.threads)
        return str(predictor.provider)

    def answer(
        self, items: Sequence[PredictionSource], batch_size: int | None, *, hashes: bool, only_digests: bool
    ) -> list[tuple[str, Any]]:
        """Return digests and results as `Predictor.predict_unknown` does; without `hashes`, each digest is "".

        Images that are given by addresses of servers are read here, with the credentials of this process.
        `only_digests`: return `Digested` for images that could be read, without predicting them.
        """
        if self._predictor is None:
            raise RuntimeError("this worker has not opened its models")
        opened = iter_opened(items, self._max_bytes)
        if not hashes:
            return [("", result) for result in self._predictor.predict_iter(opened, batch_size=batch_size)]
        known = _digested if only_digests else nothing_known
        return list(self._predictor.predict_unknown(opened, known, batch_size=batch_size))


def dump_members(members: Any) -> bytes:
    """Return an ensemble as bytes that `load_members` reads where its model files have the same paths."""
    stream = io.BytesIO()
    _Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(members)
    return stream.getvalue()


def load_members(data: bytes, *, device: str) -> Any:
    """Open an ensemble on a device, with one thread for each run.

    Raises `ModelFileError` for a model file that is missing, or another one than that of `dump_members`, and the errors
    of `Session`.
    """
    return _Unpickler(io.BytesIO(data), device).load()


class _Pickler(pickle.Pickler):
    """Stores the place and the hash of a model file instead of an open session."""

    def persistent_id(self, obj: Any) -> tuple[str, str] | None:
        return (obj.path, hash_file(obj.path)) if isinstance(obj, Session) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, device: str) -> None:
        super().__init__(stream)
        self._device = device

    def persistent_load(self, pid: tuple[str, str]) -> Session:
        path, digest = pid
        try:
            found = hash_file(path)
        except OSError as error:
            raise ModelFileError(
                f"{path}: {error.strerror}: model files must have the same paths on all nodes"
            ) from error
        if found != digest:
            raise ModelFileError(f"{path}: another model file than the one of the command: copy it to all nodes")
        return Session(path, device=self._device, threads=1)


def _digested(name: str, digest: str) -> Digested:
    return Digested(name)
