"""`tl label` with 20,000 photos: answers are quick, and the memory of the server is bounded."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.annotation.photos import color_of, link_photos, make_embedding_model
from tests.attack.conftest import finish
from tests.attack.test_label_kills import started

COUNT = 20_000


def megabytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_label__twenty_thousand_photos(tmp_path: Path) -> None:
    photos, output = link_photos(tmp_path / "photos", COUNT), tmp_path / "labels.csv"
    with started(photos, "-o", output, "-m", make_embedding_model(tmp_path / "m.onnx")) as (process, client):
        began = time.perf_counter()
        ids = client.get("/api/list", params={"view": "next", "window": "w"}).json()["ids"]
        assert len(ids) == 40
        assert time.perf_counter() - began < 10
        assert len(client.get("/api/list", params={"view": "all"}).json()["ids"]) == COUNT
        seconds = []
        for _ in range(5):
            ids = client.get("/api/list", params={"view": "next", "window": "w"}).json()["ids"]
            records = client.post("/api/records", json={"ids": ids}).json()["records"]
            for record in records:
                seen = [{"id": record["id"], "version": record["version"]}]
                body = {"window": "w", "images": seen, "do": "label", "label": color_of(record["name"])}
                began = time.perf_counter()
                assert client.post("/api/label", json=body).status_code == 200
                seconds.append(time.perf_counter() - began)
                time.sleep(0.02)
        body = {"window": "w", "images": [{"id": i, "version": 0} for i in range(2000)], "do": "skip"}
        assert len(client.post("/api/label", json=body, timeout=60).json()["records"]) == 2000
        assert np.percentile(seconds, 95) < 2  # 0.02 s on a machine that does nothing else
        assert megabytes(process.pid) < 700
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
    assert code == 0, err
