"""Fine-tuning on a machine whose cores other programs use too: images/s with each time that waiting threads spin.

    python benchmarks/busy.py PHOTOS [--others 0 2] [--rounds 2] [--spins 300000 10000]

PHOTOS: class folders. `--others`: numbers of programs that compute all the time. `--spins`: values of GOMP_SPINCOUNT;
300000 is what libgomp takes without it, 10000 what `tl` sets. Rounds alternate. Each figure is the median of the epochs
but the first, of `tl train --method finetune` with the default backbone.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

EPOCHS = 3
BUSY = (sys.executable, "-c", "while True: pass")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--others", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--spins", type=int, nargs="+", default=[300_000, 10_000])
    asked = parser.parse_args()
    print("| other programs | " + " | ".join(f"spin {spin}" for spin in asked.spins) + " |")
    print("|---|" + "---|" * len(asked.spins))
    for others in asked.others:
        speeds: dict[int, list[float]] = {spin: [] for spin in asked.spins}
        with ExitStack() as stack:
            for _ in range(others):
                program = stack.enter_context(subprocess.Popen(BUSY, start_new_session=True))
                stack.callback(program.kill)
            for _ in range(asked.rounds):
                for spin in asked.spins:
                    speeds[spin].append(measure(asked.photos, spin))
        cells = [f"{statistics.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})" for found in speeds.values()]
        print(f"| {others} | " + " | ".join(cells) + " |", flush=True)


def measure(photos: Path, spin: int) -> float:
    """Images/s of one training."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", photos, "--method", "finetune", "--epochs", EPOCHS, "--soup", 1, "--out", f"{folder}/run"]
        environment = {**os.environ, "GOMP_SPINCOUNT": str(spin), "TL_CACHE_DIR": f"{folder}/cache"}
        command = [sys.executable, "-m", "tl", *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = [float(speed) for speed in re.findall(r"^epoch .* ([\d.]+) images/s$", done.stderr, re.MULTILINE)]
    return statistics.median(found[1:EPOCHS])


if __name__ == "__main__":
    main()
