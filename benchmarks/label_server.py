"""How fast the server of `tl label` answers while it computes features and learns: `python benchmarks/label_server.py`.

Prints the time to the first grid, p50, p95 and p99 of actions and of lists, and the memory of the server. The photos
are hard links to a few, so that they cost no disk space; features are those of a small model file, so that the figures
are the server's own. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))
from tests.annotation.photos import color_of, link_photos, make_embedding_model


def memory_mb(pid: int, field: str) -> float:
    """Memory of a process in MB: VmRSS now, VmHWM at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e3


def shown(name: str, seconds: list[float]) -> str:
    """The percentiles of a list of times, in ms."""
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99)) * 1e3
    most = max(seconds) * 1e3
    return f"{name}: n {len(seconds)}, p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms, max {most:.0f} ms"


class Timed:
    """A client that notes how long answers take."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.seconds: dict[str, list[float]] = {}

    def ask(self, kind: str, method: str, path: str, **options: Any) -> Any:
        """Return the answer to a request."""
        began = time.perf_counter()
        answer = self.client.request(method, path, **options)
        self.seconds.setdefault(kind, []).append(time.perf_counter() - began)
        answer.raise_for_status()
        return answer.json() if answer.headers["content-type"] == "application/json" else answer.content


def first_grid(timed: Timed) -> float:
    """Seconds for what a page needs at first: state, list, records and 40 thumbnails, one after the other."""
    began = time.perf_counter()
    timed.ask("state", "GET", "/api/state")
    ids = timed.ask("list", "GET", "/api/list", params={"view": "next", "window": "w"})["ids"]
    timed.ask("records", "POST", "/api/records", json={"ids": ids})
    for i in ids:
        timed.ask("thumb", "GET", f"/thumb/{i}")
    return time.perf_counter() - began


def label(timed: Timed, count: int) -> None:
    """Label images as a fast person does, one every 0.1 s, with a list and the state now and then."""
    done = 0
    while done < count:
        ids = timed.ask("list", "GET", "/api/list", params={"view": "next", "window": "w"})["ids"]
        records = timed.ask("records", "POST", "/api/records", json={"ids": ids})["records"]
        timed.ask("all", "GET", "/api/list", params={"view": "all"})
        for record in records[: count - done]:
            seen = [{"id": record["id"], "version": record["version"]}]
            body = {"window": "w", "images": seen, "do": "label", "label": color_of(record["name"])}
            timed.ask("action", "POST", "/api/label", json=body)
            timed.ask("state", "GET", "/api/state")
            done += 1
            time.sleep(0.1)
        timed.ask("suggested", "GET", "/api/list", params={"view": "suggested"})


def main() -> None:
    """Start a server, act, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--labels", type=int, default=400)
    parser.add_argument("--model", type=Path, help="model file with an embedding, for the load of real features")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = link_photos(folder / "photos", asked.images)
        model = asked.model or make_embedding_model(folder / "m.onnx")
        words = ["label", photos, "-o", folder / "labels.csv", "-m", model, "--no-browser", "--json", "--device", "cpu"]
        began = time.perf_counter()
        environment = os.environ | {"TL_CACHE_DIR": os.fspath(folder / "cache")}
        command = [sys.executable, "-m", "tl", *map(str, words)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
            assert server.stdout is not None
            answer = json.loads(server.stdout.readline())
            print(f"{asked.images} images; page can be opened after {time.perf_counter() - began:.1f} s")
            with httpx.Client(base_url=answer["url"].rstrip("/"), timeout=60) as client:
                client.get(answer["link"])
                timed = Timed(client)
                print(f"first grid: {first_grid(timed):.2f} s")
                label(timed, asked.labels)
                features = timed.ask("state", "GET", "/api/state")["features"]
            for kind, seconds in sorted(timed.seconds.items()):
                print(shown(kind, seconds))
            print(f"features {features['done']} of {features['total']}")
            print(f"memory: {memory_mb(server.pid, 'VmRSS'):.0f} MB, at most {memory_mb(server.pid, 'VmHWM'):.0f} MB")
            began = time.perf_counter()
            server.terminate()
            print(f"exit code {server.wait(60)} after {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
