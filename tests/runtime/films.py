"""Films for tests, made by ffmpeg: seconds of red, then green, then blue."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the program ffmpeg")


def make_film(
    path: Path, *options: str, colors: tuple[str, ...] = ("red", "green", "blue"), size: str = "64x48"
) -> Path:
    """A film of one second of each color, at 10 frames a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = ["ffmpeg", "-nostdin", "-v", "error", "-y"]
    for color in colors:
        words += ["-f", "lavfi", "-i", f"color={color}:size={size}:rate=10:duration=1"]
    joined = "".join(f"[{i}]" for i in range(len(colors))) + f"concat=n={len(colors)}[v]"
    words += ["-filter_complex", joined, "-map", "[v]", *options, f"file:{path}"]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    return path


def make_noise_film(path: Path, seconds: int, *options: str) -> Path:
    """A film of which every frame has much data, so that damage hits frames."""
    source = f"nullsrc=size=64x48:rate=10:duration={seconds},geq=random(1)*255:128:128"
    words = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-f", "lavfi", "-i", source, *options, f"file:{path}"]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    return path
