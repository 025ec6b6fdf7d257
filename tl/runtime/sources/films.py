"""Read frames of films with the program ffmpeg: one frame per interval, as uncompressed images in memory.

ffmpeg is a separate program, because the Python packages that contain it are under the GPL. Films are untrusted: a name
is never taken for an option or an address, playlists and network protocols are off, and a film that stops giving frames
is ended. Only frames before the first damage are given, because a decoder invents what is missing.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from typing import IO

from tl.errors import ImageReadError
from tl.runtime.imaging.decode import MAX_PIXELS, ImageSource
from tl.runtime.sources.memory_files import MemoryFile, UnreadableFile

MISSING = (
    "films require the program ffmpeg, which is not installed: install it, for example with apt install ffmpeg, "
    "brew install ffmpeg or winget install ffmpeg"
)
# Containers that hold a film themselves. Others, such as playlists, name further files to open.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpegts,mpeg,asf,flv,ogg"
_SAFE = ("-protocol_whitelist", "file,pipe", "-format_whitelist", _CONTAINERS)
# Seconds without a frame after which a film is given up, besides the time that decoding one interval may take.
_PATIENCE, _PROBE_PATIENCE = 60.0, 30.0
_MAX_TOLD, _MAX_LINE = 4000, 200
# Frames in memory, unless these are few; and seconds after which a caller that keeps every frame goes on.
_MAX_BYTES, _MAX_WAIT = 256 << 20, 1.0


@dataclass
class FrameBudget:
    """Limits the bytes of frames that are alive, so that decoding does not run ahead of prediction.

    `least`: as many frames are always allowed, and must be more than a batch and than the images that a thread decodes
    at once (`streams.MAX_GROUP`), which are put together before any of them is used.
    """

    max_bytes: int = _MAX_BYTES
    least: int = 65
    _bytes: int = 0
    _count: int = 0
    _freed: threading.Condition = field(default_factory=threading.Condition)

    def hold(self, frame: MemoryFile, num_bytes: int) -> None:
        """Wait until there is room, and count a frame until it is freed."""
        with self._freed:
            self._freed.wait_for(
                lambda: self._bytes + num_bytes <= self.max_bytes or self._count < self.least, _MAX_WAIT
            )
            self._bytes, self._count = self._bytes + num_bytes, self._count + 1
        weakref.finalize(frame, self._free, num_bytes).atexit = False

    def _free(self, num_bytes: int) -> None:
        with self._freed:
            self._bytes, self._count = self._bytes - num_bytes, self._count - 1
            self._freed.notify_all()


def count_frames(path: str, every: float) -> int:
    """Return how many frames a film gives at most by what it says of its length; 1 if that is unknown."""
    program = shutil.which("ffprobe")
    if program is None or not os.path.isfile(path):
        return 1
    words = [program, "-v", "error", *_SAFE, "-show_entries", "format=duration", "-of", "json", f"file:{path}"]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_PATIENCE, check=False
        )
        seconds = float(json.loads(done.stdout)["format"]["duration"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return 1
    return max(1, math.ceil(min(seconds, 1e7) / every)) if seconds > 0 else 1


def iter_frames(path: str, every: float, budget: FrameBudget | None = None) -> Iterator[ImageSource]:
    """Yield a film's frames at 0, `every`, 2 x `every` ... seconds, named `PATH#t=12.000`; upright, 8 bits per channel.

    If the film is damaged or cannot be read, the last source is named as the film and raises `ImageReadError`. Decoding
    ends at damaged frames; after damage between them, further frames follow.
    """
    budget = budget or FrameBudget()
    count = 0
    try:
        for content in _decode(path, every):
            frame = MemoryFile(f"{path}#t={count * every:.3f}", content)
            budget.hold(frame, len(content))
            count += 1
            yield frame
            del frame  # so that its memory is free before the next one
    except ImageReadError as error:
        reason = f"{error.reason}; {count} frames before it could be read" if count else error.reason
        yield UnreadableFile(path, reason)


def _decode(path: str, every: float) -> Iterator[bytes]:
    """Yield the frames as PPM files. Raises `ImageReadError` at the first damage, or if there is no frame."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise ImageReadError(path, MISSING)
    try:
        is_file = os.path.isfile(path) or not os.stat(path)
    except (OSError, ValueError) as error:
        raise ImageReadError(path, getattr(error, "strerror", None) or str(error)) from error
    if not is_file:  # opening a FIFO would block forever
        raise ImageReadError(path, "not a regular file")
    rate = 1 / Fraction(every).limit_denominator(1_000_000)
    # With rounding up, the frame at a time is the one that a player shows then.
    steps = f"fps={rate.numerator}/{rate.denominator}:round=up:start_time=0"
    words = [program, "-nostdin", "-hide_banner", "-loglevel", "error", "-xerror", "-err_detect", "explode"]
    words += ["-max_pixels", str(MAX_PIXELS), *_SAFE, "-i", f"file:{path}", "-map", "0:V:0", "-vf", steps]
    words += ["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "pipe:1"]
    found = 0
    with _running(path, words) as process:
        while content := process.read_frame(_PATIENCE + 2 * every):
            found += 1
            yield content
        code, told = process.end()
    if process.is_late:
        raise ImageReadError(path, f"ffmpeg gave no frame for {_PATIENCE + 2 * every:.0f} s")
    if not found:
        told = told or (f"exit code {code}" if code else "it has no frames")
        raise ImageReadError(path, f"not a film that ffmpeg reads ({told})")
    if code:  # which of several messages comes first depends on threads
        raise ImageReadError(path, "damaged film")
    if told:
        raise ImageReadError(path, f"damaged film ({told})")


class _Process:
    """A running ffmpeg. `is_late`: whether it was ended because it did not answer."""

    def __init__(self, process: subprocess.Popen[bytes], output: IO[bytes], messages: IO[bytes]) -> None:
        self.process, self._output, self._told = process, output, b""
        self.is_late = self._is_broken = False
        self._listener = threading.Thread(target=self._listen, args=(messages,), daemon=True)
        self._listener.start()

    def read_frame(self, seconds: float) -> bytes:
        """Return the next PPM file, b"" at the end; a file that is not complete is the end of the program."""
        with self._deadline(seconds):
            head = b"".join(self._output.readline(32) for _ in range(3))  # P6, width and height, 255
            match = re.fullmatch(rb"P6\n(\d{1,5}) (\d{1,5})\n255\n", head)
            if match is not None and int(match[1]) * int(match[2]) <= MAX_PIXELS:
                num_bytes = 3 * int(match[1]) * int(match[2])
                content = BytesIO()
                content.write(head)
                while num_bytes and (part := self._output.read(min(num_bytes, 1 << 22))):
                    num_bytes -= content.write(part)
                if not num_bytes:
                    return content.getvalue()
            if head:
                self._is_broken = True
                self.process.kill()
            return b""

    def end(self) -> tuple[int, str]:
        """Wait for the end after the last frame. Returns the exit code and the first error message, "" for none."""
        with self._deadline(_PATIENCE):
            code = self.process.wait()
            self._listener.join()
        lines = [re.sub(r"^(\[[^\]]*\] )+", "", line) for line in self._told.decode(errors="replace").splitlines()]
        return code or int(self._is_broken), next((line[:_MAX_LINE] for line in lines if line), "")

    @contextmanager
    def _deadline(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        self.is_late = True
        self.process.kill()

    def _listen(self, messages: IO[bytes]) -> None:
        """Read all messages, so that the program never waits for that, and keep the first ones."""
        while part := messages.read(1024):
            self._told = (self._told + part)[:_MAX_TOLD]


@contextmanager
def _running(path: str, words: list[str]) -> Iterator[_Process]:
    """Run ffmpeg, and end it with the block, or with this process. Raises `ImageReadError`."""
    try:
        process = subprocess.Popen(  # in a session of its own: Ctrl-C ends it through this process
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=1 << 20,
        )
    except (OSError, ValueError) as error:
        raise ImageReadError(path, f"ffmpeg cannot be started ({error})") from error
    stop = weakref.finalize(process, _stop, process)
    if process.stdout is None or process.stderr is None:
        raise ValueError("both outputs are pipes")
    try:
        yield _Process(process, process.stdout, process.stderr)
    finally:
        stop()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
