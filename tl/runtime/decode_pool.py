"""Decode in worker processes, outside this process's GIL: chunks of image sources in, batches of inputs out.

Each worker is a fresh interpreter (`decode_worker`) connected by a socket. It imports neither the calling program nor
onnxruntime, nothing is forked, and it exits when the socket closes, however its parent ended. Pixels are returned in
shared memory mapped from an unnamed file, so nothing is left behind and the size of /dev/shm does not matter. POSIX
only.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from mmap import mmap
from multiprocessing.connection import Connection, Pipe
from queue import Empty, SimpleQueue
from types import TracebackType

import numpy as np

from tl.errors import ImageReadError, WorkerError
from tl.runtime.decode_worker import Outcome, SentSource, Setup, slot_arrays, slot_bytes
from tl.runtime.imaging.decode import ImageSource, check_source, read_stream
from tl.runtime.imaging.pillow_images import plain_source
from tl.runtime.imaging.pipeline import Inputs, Preparer
from tl.runtime.sources.boxed_images import BoxedImage, PredictionSource, UnboxedImage, item_name

# While one chunk is decoded, the next one is already in the worker's socket.
_CHUNKS_A_WORKER = 2
# More slots than chunks in progress, so that workers continue while decoded chunks are inferred.
_MORE_SLOTS = 2
_NAMES_IN_MESSAGE = 3
_SECONDS_TO_END = 5.0
# Let glibc keep freed memory. Returning and reallocating each image's memory costs 90 page faults per image, one sixth
# of the total.
_GLIBC = {"MALLOC_MMAP_THRESHOLD_": str(64 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}
_BOOT = "from tl.runtime.decode_worker import main; main()"


@dataclass(frozen=True)
class DecodedChunk:
    """A decoded chunk. `outcomes`: one per image, in order. `inputs`: preprocessing -> uint8 (N * V, H, W, 3).

    N counts the images that could be decoded. The inputs are in slot `slot` of the shared memory until
    `DecodePool.release`.
    """

    outcomes: list[Outcome]
    inputs: Inputs
    slot: int


@dataclass
class _Task:
    sources: list[SentSource]
    names: list[str]
    slot: int
    future: Future[DecodedChunk] = field(default_factory=Future)


class DecodePool:
    """Start `processes` workers; a context manager that ends them. `submit` and `release` are thread-safe.

    `batch_size`: maximum number of images per chunk. `hashes`: whether outcomes include digests. At most `slots` chunks
    may be between `submit` and `release`; a further `submit` blocks. Raises `WorkerError` if processes cannot be
    started.
    """

    def __init__(self, preparer: Preparer, processes: int, *, batch_size: int, hashes: bool) -> None:
        check_can_start()
        self.slots = _CHUNKS_A_WORKER * processes + _MORE_SLOTS
        self._preparer, self._batch_size = preparer, batch_size
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._free: SimpleQueue[int] = SimpleQueue()
        for slot in range(self.slots):
            self._free.put(slot)
        self._broken: WorkerError | None = None
        self._idle = 0  # threads that wait for a task; a briefly wrong count is harmless
        self._workers: list[subprocess.Popen[bytes]] = []
        self._channels: list[Connection] = []
        # Also ends the workers if the program exits while a stream is in progress.
        self._pid = os.getpid()
        self._finalizer = weakref.finalize(self, _end, self._pid, self._workers)
        num_bytes = self.slots * slot_bytes(preparer, batch_size)
        try:
            with _unnamed_file(num_bytes) as file:
                self._memory = mmap(file, num_bytes)
                self._start(processes, file, Setup(preparer, batch_size, hashes, num_bytes))
        except (OSError, ValueError) as error:  # too many processes or descriptors; mmap: more memory than available
            self._finalizer()
            raise WorkerError(f"{processes} decoding processes cannot be started: {error}") from error

    def _start(self, processes: int, file: int, setup: Setup) -> None:
        message, environment = pickle.dumps(setup), _environment()
        for _ in range(processes):
            ours, theirs = Pipe()
            self._channels.append(ours)
            with theirs:
                arguments = [sys.executable, "-P", "-W", "ignore", "-c", _BOOT, str(theirs.fileno()), str(file)]
                self._workers.append(
                    subprocess.Popen(
                        arguments,
                        env=environment,
                        pass_fds=(theirs.fileno(), file),
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        process_group=0,  # Ctrl-C must reach only the program, which ends its workers
                    )
                )
            ours.send_bytes(message)
        self._threads = [
            threading.Thread(target=self._serve, args=(worker, channel), name="tl-decode", daemon=True)
            for worker, channel in zip(self._workers, self._channels, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, sources: Sequence[PredictionSource]) -> Future[DecodedChunk]:
        """Decode a chunk; images without a box are passed over, with their reason as the outcome.

        The future raises `WorkerError` if its process dies, and for invalid sources the same errors as `decode_scaled`.
        """
        sent = [_item_to_send(source) for source in sources]
        task = _Task(sent, [item_name(source) for source in sources], self._free.get())
        self._tasks.put(task)
        return task.future

    def release(self, chunk: DecodedChunk) -> None:
        """Release the slot of a chunk whose inputs are no longer needed, so that another chunk can use it."""
        self._free.put(chunk.slot)

    def close(self) -> None:
        """End the workers. Chunks in progress fail."""
        self._broken = self._broken or WorkerError("the decoding processes were stopped")
        self._finalizer()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(_SECONDS_TO_END)
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pid == os.getpid():
            self.close()

    def _serve(self, worker: subprocess.Popen[bytes], channel: Connection) -> None:
        """Run the thread of one worker: send tasks and receive replies; if the worker dies, fail all waiting tasks."""
        under_way: deque[_Task] = deque()
        try:
            while self._hand_over(under_way, channel):
                reply = pickle.loads(channel.recv_bytes())
                self._finish(under_way.popleft(), reply)
            return
        except (EOFError, OSError):
            self._broken = self._broken or _death(worker, under_way[0].names if under_way else [])
        for task in under_way:
            self._fail(task, self._broken)
        while (waiting := self._tasks.get()) is not None:
            self._fail(waiting, self._broken)

    def _hand_over(self, under_way: deque[_Task], channel: Connection) -> bool:
        """Fill a worker's queue of tasks; return False when there are no more tasks."""
        while len(under_way) < _CHUNKS_A_WORKER:
            is_idle = not under_way
            if not is_idle and self._tasks.qsize() <= self._idle:
                return True  # leave the remaining tasks to idle workers
            self._idle += is_idle
            try:
                task = self._tasks.get(block=is_idle)
            except Empty:
                return True
            finally:
                self._idle -= is_idle
            if task is None:
                return False
            if self._broken is not None:
                self._fail(task, self._broken)
                continue
            under_way.append(task)
            channel.send_bytes(pickle.dumps((task.slot, task.sources)))
        return True

    def _finish(self, task: _Task, reply: list[Outcome] | Exception) -> None:
        if isinstance(reply, Exception):
            self._fail(task, reply)
            return
        good = sum(reason is None for _, reason in reply) * len(self._preparer.views)
        arrays = slot_arrays(self._memory, task.slot, self._preparer, self._batch_size)
        inputs = {preprocessing: array[:good] for preprocessing, array in arrays.items()}
        task.future.set_result(DecodedChunk(reply, inputs, task.slot))

    def _fail(self, task: _Task, error: Exception) -> None:
        self._free.put(task.slot)
        task.future.set_exception(error)


def check_can_start() -> None:
    """Raise `WorkerError` if this program cannot start a Python interpreter for decoding."""
    if os.name != "posix":
        raise WorkerError("decoding processes require Linux or macOS: leave decode_processes at 0")
    name = os.path.basename(sys.executable or "")
    # Frozen programs and programs that embed Python would start another copy of themselves.
    if getattr(sys, "frozen", False) or not re.match("(python|pypy)", name):
        raise WorkerError(
            f"decoding processes require a Python interpreter, but this program runs in {name or 'none'!r}: leave "
            "decode_processes at 0"
        )


def _item_to_send(item: PredictionSource) -> SentSource:
    if isinstance(item, UnboxedImage):
        return ImageReadError("", item.answer.error)
    if not isinstance(item, BoxedImage):
        return _to_send(item)
    sent = _to_send(item.source)
    return sent if isinstance(sent, ImageReadError) else BoxedImage(sent, item.box)


def _to_send(source: ImageSource) -> ImageSource | ImageReadError:
    """Convert a source so that any other Python process can unpickle it: read files, turn paths into plain text."""
    check_source(source)
    try:
        source = plain_source(source)
    except ImageReadError as error:
        return error
    if isinstance(source, str | os.PathLike):
        return str(os.fspath(source))
    if isinstance(source, bytes | np.ndarray):
        return source
    try:
        return read_stream(source)
    except ImageReadError as error:
        return error


def _environment() -> dict[str, str]:
    """Return the workers' environment: same module search path and file name encoding as here, one thread each."""
    return {
        **_GLIBC,
        **os.environ,
        "PYTHONPATH": os.pathsep.join(os.path.abspath(folder) for folder in sys.path),
        "PYTHONUTF8": str(sys.flags.utf8_mode),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def _unnamed_file(num_bytes: int) -> Iterator[int]:
    """Yield the descriptor of an in-memory file on Linux, of a temporary file elsewhere."""
    if sys.platform == "linux":
        file = os.memfd_create("tl-decode")
    else:
        file, name = tempfile.mkstemp()
        os.unlink(name)
    try:
        os.ftruncate(file, num_bytes)
        yield file
    finally:
        os.close(file)


def _end(pid: int, workers: list[subprocess.Popen[bytes]]) -> None:
    if pid != os.getpid():  # in a fork of the program, which does not own these workers
        return
    for worker in workers:
        worker.kill()  # it has no state that needs cleanup
    for worker in workers:
        with suppress(subprocess.TimeoutExpired):  # a worker that hangs on a dead network drive cannot be killed
            worker.wait(_SECONDS_TO_END)


def _death(worker: subprocess.Popen[bytes], names: Sequence[str]) -> WorkerError:
    """Return the error for a worker that died while decoding the images in `names`."""
    code = worker.wait()
    how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
    cause = ", possibly because memory ran out" if code == -signal.SIGKILL else ""
    shown = ", ".join(name or "unnamed data" for name in names[:_NAMES_IN_MESSAGE])
    more = f" and {len(names) - _NAMES_IN_MESSAGE} more" if len(names) > _NAMES_IN_MESSAGE else ""
    during = f" while decoding {shown}{more}" if names else ""
    return WorkerError(
        f"a decoding process ended ({how}{cause}){during}: use fewer decoding processes to save memory, "
        "or decode_processes 0 to decode in threads"
    )
