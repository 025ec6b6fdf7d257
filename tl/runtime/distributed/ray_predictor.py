"""A predictor whose images are predicted by a Ray cluster. What it yields equals what a local predictor yields."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any

import tl
from tl.errors import ImageReadError
from tl.runtime.distributed.ray_cluster import connect, disconnect, list_nodes
from tl.runtime.distributed.ray_pool import RayPool
from tl.runtime.distributed.resources import plan_actors
from tl.runtime.distributed.worker import Digested, Recipe, dump_members
from tl.runtime.predictor import CUDA_BATCH, Predictor
from tl.runtime.prefetch import prefetch_map
from tl.runtime.sources.archives import MAX_MEMBER_BYTES
from tl.runtime.sources.boxed_images import BoxedImage, PredictionSource, item_name
from tl.runtime.sources.memory_files import MemoryFile, UnreadableFile
from tl.runtime.sources.paths import read_regular
from tl.runtime.sources.remote import iter_opened, shown_name
from tl.runtime.streams import Found, Known, nothing_known

# Images per message: enough that messages cost little, few enough that all nodes end at about the same time.
_CPU_IMAGES, _CUDA_IMAGES = 32, 4 * CUDA_BATCH
# Content per message, for images that are sent: a message waits in memory until its images are predicted.
_MAX_BYTES = 4 << 20
_READERS, _READ_AHEAD = 8, 32


@dataclass(frozen=True)
class RaySettings:
    """Where and how images are predicted.

    `address`: see `connect`. `device`, `actors` (the number of workers) and `threads`: see `plan_actors`.
    `sends_images`: this process reads the images and sends them; otherwise workers read them, at the same paths and
    addresses. `max_bytes`: of an image that is read from a server.
    """

    address: str = "auto"
    actors: int | None = None
    device: str = "auto"
    threads: int | None = None
    sends_images: bool = False
    max_bytes: int = MAX_MEMBER_BYTES


class RayPredictor(Predictor[Found]):
    """Predicts streams of images on a Ray cluster, in input order; `predict` uses this process. For one thread.

    `predictor`: the same models opened in this process; it is used up. `say` is called with what the user should know.
    Raises the errors of `connect`, of `plan_actors` and those of opening the models on the nodes.
    """

    def __init__(
        self, predictor: Predictor[Found], settings: RaySettings, say: Callable[[str], None] = lambda line: None
    ) -> None:
        members: Any = predictor.ensemble  # mypy loses the constraint of `Found` here
        super().__init__(members, with_votes=predictor.with_votes, threads=1, boxes=predictor.boxes)
        self._ray: Any = None
        self._pool: RayPool | None = None
        ray = connect(settings.address)
        self._ray = ray
        try:
            options, device = plan_actors(
                list_nodes(ray), device=settings.device, count=settings.actors, threads=settings.threads
            )
            self._is_cpu = device == "cpu"
            self._settings = settings
            recipe = Recipe(
                members=dump_members(self.ensemble),
                with_votes=self.with_votes,
                device=device,
                threads=options.num_cpus,
                folder=os.getcwd(),
                version=tl.__version__,
                max_bytes=settings.max_bytes,
            )
            self._pool = RayPool(ray, recipe, options, say)
        except BaseException:
            self.close()
            raise

    def _stream(
        self,
        sources: Iterable[PredictionSource],
        batch_size: int | None,
        known: Callable[[str, str], Known | None],
        *,
        hashes: bool,
    ) -> Iterator[tuple[str, Found | Known]]:
        self._check_process()
        if self._pool is None:
            raise ValueError("this predictor is closed")
        if self._settings.sends_images:
            sources = iter_opened(sources, self._settings.max_bytes)
        items = self.items(sources)
        if self._settings.sends_images:
            items = prefetch_map(_with_content, items, workers=_READERS, ahead=_READ_AHEAD)
        usual = _CPU_IMAGES if self._is_cpu else _CUDA_IMAGES
        size = usual if batch_size is None else batch_size * math.ceil(usual / batch_size)
        chunks = (_Images(chunk, batch_size, known, hashes) for chunk in _split(items, size))
        for chunk in self._pool.map(chunks):
            yield from chunk.answers  # type: ignore[misc]  # none is missing in a completed chunk

    def close(self) -> None:
        """End the workers, and the connection to the cluster."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if self._ray is not None:
            disconnect(self._ray)
            self._ray = None
        super().close()


@dataclass
class _Images:
    """A chunk of images. `answers`: digest and answer of each image, None until it is known.

    If rows of an earlier job may be `known`, the chunk is requested twice: for the digests, then for what is not known.
    """

    items: list[PredictionSource]
    batch_size: int | None
    known: Callable[[str, str], Any]
    hashes: bool
    answers: list[tuple[str, Any] | None] = field(default_factory=list)
    _only_digests: bool = False

    def __post_init__(self) -> None:
        self.answers = [None] * len(self.items)
        self._only_digests = self.hashes and self.known is not nothing_known

    def request(self) -> dict[str, Any]:
        """Return the arguments of `Worker.answer` for the images without an answer."""
        return {
            "items": [item for item, answer in zip(self.items, self.answers, strict=True) if answer is None],
            "batch_size": self.batch_size,
            "hashes": self.hashes,
            "only_digests": self._only_digests,
        }

    def take(self, answers: Sequence[tuple[str, Any]]) -> bool:
        """Take the answers to the request; returns whether each image has one."""
        missing = [i for i, answer in enumerate(self.answers) if answer is None]
        for i, (digest, answer) in zip(missing, answers, strict=True):
            if isinstance(answer, Digested):
                answer = self.known(answer.path, digest)
            self.answers[i] = None if answer is None else (digest, answer)
        self._only_digests = False
        return all(answer is not None for answer in self.answers)

    def describe(self) -> str:
        """`a.jpg to b.jpg`."""
        first, last = (shown_name(item_name(self.items[i])) for i in (0, -1))
        return first if first == last else f"{first} to {last}"


def _split(items: Iterable[PredictionSource], size: int) -> Iterator[list[PredictionSource]]:
    """Yield lists of up to `size` items, fewer if their content in memory is large."""
    chunk: list[PredictionSource] = []
    num_bytes = 0
    for item in items:
        chunk.append(item)
        num_bytes += _num_bytes(item)
        if len(chunk) == size or num_bytes >= _MAX_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def _num_bytes(item: Any) -> int:
    source = item.source if isinstance(item, BoxedImage) else item
    return source.getbuffer().nbytes if isinstance(source, BytesIO) else 0


def _with_content(item: PredictionSource) -> PredictionSource:
    """Return an item whose image is in memory, or cannot be read. Other sources than paths are kept."""
    if isinstance(item, BoxedImage):
        return replace(item, source=_with_content(item.source))  # type: ignore[arg-type]  # a path stays an image
    if not isinstance(item, str | os.PathLike):
        return item
    name = os.fspath(item)
    try:
        return MemoryFile(name, read_regular(name))
    except ImageReadError as error:
        return UnreadableFile(name, error.reason)
