"""Measure startup time: imports and `tl --help`, best and median of ten processes each.

Usage: python benchmarks/start.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

BASE = "import numpy, onnxruntime, orjson, PIL.Image, simplejpeg"
LINES = {
    "python -c pass": ["-c", "pass"],
    BASE: ["-c", BASE],
    f"{BASE}, tl.runtime": ["-c", f"{BASE}, tl.runtime"],
    "tl --help": ["-m", "tl", "--help"],
}


def main() -> None:
    print("| process | best s | median s |\n|---|---|---|")
    seconds: dict[str, list[float]] = {name: [] for name in LINES}
    for _ in range(10):  # alternating, so that other load affects all equally
        for name, words in LINES.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
            seconds[name].append(time.perf_counter() - started)
    for name, times in seconds.items():
        print(f"| `{name}` | {min(times):.3f} | {statistics.median(times):.3f} |")


if __name__ == "__main__":
    main()
