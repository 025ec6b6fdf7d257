"""Run chunks of work on the actors of a Ray cluster, in order, with bounded memory, whatever happens to its nodes.

Built on Ray Core. Ray Data's sources are known in full before it begins (a driver's iterator cannot be one: Ray issue
39737), and it keeps the places of dead actors (62746); `ray.util.ActorPool` waits for actors that were never started
(32489) and takes its whole input at once. Here the chunks of a lost actor go to the others at once, and a
replacement is used when there is room for it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from tl.errors import TlError, WorkerError, first_line
from tl.runtime.distributed.ray_cluster import list_nodes
from tl.runtime.distributed.resources import ActorOptions, check_room
from tl.runtime.distributed.worker import Recipe, Worker

# One chunk is computed while the next one is on its way.
_CHUNKS_PER_ACTOR = 2
# Chunks between the oldest unfinished one and the newest, for each actor: nodes of different speed wait less.
_AHEAD_PER_ACTOR = 4
# Losses of a chunk's actor, after which the chunk itself is the suspect; and of actors that were not ready yet.
_MAX_LOSSES, _MAX_FAILED_STARTS = 4, 4
_SECONDS_PER_WAIT, _SECONDS_UNTIL_SAID = 1.0, 20.0


class Chunk(Protocol):
    """A piece of work."""

    def request(self) -> dict[str, Any]:
        """Return the arguments of `Worker.answer`."""

    def take(self, answers: list[tuple[str, Any]]) -> bool:
        """Take what it returned. Returns whether the chunk is complete; otherwise it is requested again."""

    def describe(self) -> str:
        """Name the chunk in an error message."""


Work = TypeVar("Work", bound=Chunk)


@dataclass
class _Task(Generic[Work]):
    number: int
    chunk: Work
    losses: int = 0


class RayPool:
    """Actors that have opened the models. For one thread and one stream at a time.

    Waits for room while others use the cluster, which is said once; if no node that is alive has room for an actor,
    raises `WorkerError`. `say` is called with what the user should know. Raises what `Worker.open` raises, once the
    first actor has answered.
    """

    def __init__(self, ray: Any, recipe: Recipe, options: ActorOptions, say: Callable[[str], None]) -> None:
        self._ray, self._options, self._say = ray, options, say
        self._recipe = ray.put(recipe)
        self._class = ray.remote(
            num_cpus=options.num_cpus,
            num_gpus=options.num_gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )(Worker)
        self._starting: dict[Any, Any] = {}  # answer of `open` -> actor
        self._idle: deque[Any] = deque()  # an actor for each chunk that it could take
        self._running: dict[Any, tuple[Any, _Task[Any]]] = {}
        self._lost: set[Any] = set()
        self._failed_starts = 0
        self._idle_since = time.monotonic()
        self._has_said = False
        try:
            for _ in range(options.count):
                self._start()
            while not self._idle:
                self._wait()
        except BaseException:
            self.close()
            raise

    def map(self, chunks: Iterable[Work]) -> Iterator[Work]:
        """Yield the completed chunks in order. `chunks` is read as there is room for more.

        Raises what workers raise, and `WorkerError` if a chunk's workers die again and again. If the caller stops
        early, the pool is closed.
        """
        source = iter(chunks)
        again: deque[_Task[Work]] = deque()
        done: dict[int, Work] = {}
        first = count = 0
        is_read = False
        ahead = _AHEAD_PER_ACTOR * self._options.count
        try:
            while True:
                while first in done:
                    yield done.pop(first)
                    first += 1
                while self._idle and (again or (not is_read and count - first < ahead)):
                    if again:
                        self._submit(again.popleft())
                        continue
                    chunk = next(source, None)
                    if chunk is None:
                        is_read = True
                        break
                    self._submit(_Task(count, chunk))
                    count += 1
                if is_read and first == count:
                    return
                for task, is_complete in self._wait():
                    if is_complete:
                        done[task.number] = task.chunk
                    else:
                        again.append(task)
        finally:
            if self._running:
                self.close()

    def close(self) -> None:
        """End the actors. Calling it twice does nothing."""
        actors = [*self._starting.values(), *self._idle, *(actor for actor, _ in self._running.values())]
        self._starting, self._running = {}, {}
        self._idle.clear()
        for actor in {actor._actor_id: actor for actor in actors}.values():
            self._end(actor)

    def _start(self) -> None:
        actor = self._class.remote()
        self._starting[actor.open.remote(self._recipe)] = actor

    def _submit(self, task: _Task[Any]) -> None:
        actor = self._idle.popleft()
        self._running[actor.answer.remote(**task.chunk.request())] = actor, task

    def _wait(self) -> list[tuple[_Task[Any], bool]]:
        """Wait for the next event. Returns tasks that have ended, and whether each is complete."""
        if self._running or self._idle:
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > _SECONDS_UNTIL_SAID:
            check_room(list_nodes(self._ray), self._options)
            if not self._has_said:
                self._say(f"waiting for room on the Ray cluster: {self._options.describe()}")
            self._has_said = True
            self._idle_since = time.monotonic()  # and look again
        refs = [*self._running, *self._starting]
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=_SECONDS_PER_WAIT)
        ended = []
        for ref in ready:
            if ref in self._starting:
                self._open(ref)
            elif ref in self._running:
                ended.append(self._finish(ref))
        return ended

    def _open(self, ref: Any) -> None:
        actor = self._starting.pop(ref)
        try:
            self._get(ref)
        except self._ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise WorkerError(f"workers on the Ray cluster cannot be started: {_last_line(error)}") from error
            self._end(actor)
            self._start()
            return
        self._failed_starts = 0
        self._idle += [actor] * _CHUNKS_PER_ACTOR

    def _finish(self, ref: Any) -> tuple[_Task[Any], bool]:
        actor, task = self._running.pop(ref)
        try:
            answers = self._get(ref)
        except self._ray.exceptions.RayError as error:
            self._replace(actor, error)
            task.losses += 1
            if task.losses >= _MAX_LOSSES:
                raise WorkerError(
                    f"{task.losses} workers on the Ray cluster have ended while they predicted "
                    f"{task.chunk.describe()}: {_last_line(error)}"
                ) from error
            return task, False
        self._idle.append(actor)
        return task, task.chunk.take(answers)

    def _get(self, ref: Any) -> Any:
        """Return an answer, or raise what the worker raised. Raises a `RayError` for a worker or an answer lost."""
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TlError):
                raise error.cause from None
            raise RuntimeError(f"a worker on the Ray cluster failed: {error}") from error

    def _replace(self, actor: Any, error: Exception) -> None:
        """Start another actor for one that was lost; its other chunks end with the same error."""
        if actor in self._lost:
            return
        self._say(f"a worker on the Ray cluster was lost; its images are predicted again ({_last_line(error)})")
        self._lost.add(actor)
        self._idle = deque(other for other in self._idle if other != actor)
        self._end(actor)
        self._start()

    def _end(self, actor: Any) -> None:
        with suppress(Exception):  # it is gone already, or the connection is
            self._ray.kill(actor)


def _last_line(error: Exception) -> str:
    """The last line of one of Ray's messages, which is the reason; the first is the same for all."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else first_line(error)
