"""Memory and time of a list of many names, as `tl predict --files-from` and `--resume` hold it. No image is read.

    python benchmarks/listing.py 1000000

Each line is measured in a process of its own: the growth of its peak resident memory per million names.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


def names(count: int) -> Iterator[str]:
    """Names as camera traps write them, of 52 characters."""
    for i in range(count):
        yield f"survey-2026/site-{i // 50_000:03d}/camera-{i // 5_000 % 10:02d}/IMG_{i % 5_000:06d}-{i:08d}.JPG"


def as_list(path: Path) -> object:
    return tuple(path.read_text(encoding="utf-8").splitlines())


def as_packed(path: Path) -> object:
    from tl.runtime.sources.packed_names import PackedNames
    from tl.runtime.sources.paths import iter_path_list

    return PackedNames(iter_path_list(str(path)))


def as_shard(path: Path) -> object:
    from tl.runtime.sources.inputs import Inputs
    from tl.runtime.sources.paths import FoundImages
    from tl.runtime.sources.shards import Shard

    inputs, listing = Inputs((FoundImages(as_packed(path), 0, 0),)).of_shard(Shard(3, 64))  # type: ignore[arg-type]
    return len(inputs), listing.digest


def as_inputs(path: Path) -> object:
    """All of what `tl predict --files-from` does before the first image: the files are looked for, and do not exist."""
    from tl.runtime.sources.inputs import find_inputs
    from tl.runtime.sources.paths import iter_path_list

    return find_inputs([], listed=iter_path_list(str(path)))


def as_ledger(path: Path) -> object:
    from hashlib import sha256

    from tl.runtime.output.job import open_ledger

    ledger = path.with_suffix(".ledger")
    if not ledger.exists():
        with open_ledger(ledger, "key", resume=False) as new:
            for name in names(sum(1 for _ in path.open("rb"))):
                new.add(name, sha256(name.encode()).hexdigest(), f"{name},red,0.5,0.5,0.5,\n", False)
    with open_ledger(ledger, "key", resume=True) as again:
        return len(again)


KINDS = {"list": as_list, "packed": as_packed, "shard": as_shard, "inputs": as_inputs, "ledger": as_ledger}


def main() -> None:
    if len(sys.argv) == 4:
        path, kind = Path(sys.argv[2]), sys.argv[3]
        import tl.runtime.output.job
        import tl.runtime.sources.inputs  # noqa: F401  # what is imported is not counted

        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        held = KINDS[kind](path)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        millions = int(sys.argv[1]) / 1e6
        print(
            f"{kind}: {grown / 1024 / millions:.0f} MiB and {(time.monotonic() - started) / millions:.1f} s a million"
        )
        del held
        return
    count = sys.argv[1] if len(sys.argv) > 1 else "1000000"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.txt"
        with path.open("w", encoding="utf-8") as stream:
            stream.writelines(f"{name}\n" for name in names(int(count)))
        for kind in KINDS:
            if kind == "ledger":  # written by another process, so that only reading is measured
                subprocess.run([sys.executable, __file__, count, str(path), kind], check=True, capture_output=True)
            subprocess.run([sys.executable, __file__, count, str(path), kind], check=True)


if __name__ == "__main__":
    main()
