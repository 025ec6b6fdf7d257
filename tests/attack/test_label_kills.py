"""`tl label` that is killed while people label: nothing that was answered is lost, and the next start goes on."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.annotation.photos import make_embedding_model, make_photos
from tests.attack.conftest import finish, start_tl

COUNT = 60
NAMES = ("red", "green", "blue")


@contextmanager
def started(*words: object) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A process of `tl label`, and a client with its cookie. The caller ends the process."""
    process = start_tl("label", *words, "--no-browser", "--json", "--device", "cpu", "--threads", 1)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, finish(process)[2]
    answer = json.loads(line)
    with httpx.Client(base_url=answer["url"].rstrip("/"), timeout=30) as client:
        assert client.get(answer["link"]).status_code == 200
        yield process, client


def label_until_killed(client: httpx.Client, window: str, chance: random.Random, kept: dict[int, str | None]) -> None:
    """Label random images of this window; `kept` has what was answered, by image, and None while it is asked."""
    mine = range(NAMES.index(window), COUNT, 3)
    try:
        while True:
            i, name = chance.choice(mine), chance.choice(NAMES)
            body = {"window": window, "images": [{"id": i, "version": 0}], "do": "label", "label": name}
            before, kept[i] = kept.get(i, ""), None
            answer = client.post("/api/label", json=body)
            if answer.status_code != 200 or answer.json()["conflicts"]:
                kept[i] = before
                continue
            kept[i] = name
    except httpx.HTTPError:
        return


def shown(client: httpx.Client) -> list[dict[str, Any]]:
    answer = client.post("/api/records", json={"ids": list(range(COUNT))})
    found: list[dict[str, Any]] = answer.json()["records"]
    return found


def kill_often(folder: Path, count: int) -> None:
    photos, output, chance = make_photos(folder / "photos", COUNT), folder / "labels.csv", random.Random(0)
    words = [photos, "-o", output, "--classes", ",".join(NAMES), "-m", make_embedding_model(folder / "m.onnx")]
    kept: dict[int, str | None] = {}
    answered = 0
    for _ in range(count):
        with started(*words) as (process, client):
            for record in shown(client):
                expected = kept.get(record["id"], "")
                if expected is None:  # asked, and not answered: either is right
                    continue
                assert (record["label"] or "") == expected
            for record in shown(client):
                kept[record["id"]] = record["label"] or ""
            threads = [
                threading.Thread(target=label_until_killed, args=(client, name, random.Random(chance.random()), kept))
                for name in NAMES
            ]
            for thread in threads:
                thread.start()
            time.sleep(chance.uniform(0.05, 1))
            process.send_signal(signal.SIGKILL)
            for thread in threads:
                thread.join()
            finish(process)
            answered += sum(1 for name in kept.values() if name)
    assert answered > count
    with started(*words) as (process, client):
        final = {record["name"]: record["label"] for record in shown(client) if record["label"]}
        process.send_signal(signal.SIGINT)
        code, _, err = finish(process)
    assert code == 0, err
    assert f"stopped: {len(final)} labeled photos" in err
    with output.open(newline="") as stream:
        assert {row["path"].removeprefix("photos/"): row["label"] for row in csv.DictReader(stream)} == final


def test_label__killed_twenty_times(tmp_path: Path) -> None:
    kill_often(tmp_path, 20)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_label__stops_in_order(tmp_path: Path, sent: signal.Signals) -> None:
    """With a window that listens, a request in progress and features half done."""
    photos, output = make_photos(tmp_path / "photos", COUNT), tmp_path / "labels.csv"
    words = (photos, "-o", output, "-m", make_embedding_model(tmp_path / "m.onnx"))
    with started(*words) as (process, client), client.stream("GET", "/api/events") as stream:
        next(stream.iter_lines())
        body = {"window": "w", "images": [{"id": 0, "version": 0}], "do": "label", "label": "red"}
        assert client.post("/api/label", json=body).status_code == 200
        process.send_signal(sent)
        code, out, err = finish(process, 30)
    assert code == 0, err
    assert out == ""
    assert err.splitlines()[-1] == f"stopped: 1 labeled photos in {output}"
    assert output.read_text().splitlines()[1].startswith("photos/0000-red.png,red,")
    left = ["labels.csv", "labels.journal.jsonl", "m.onnx", "photos"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_label__full_disk_from_the_start(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 5)
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))"
    code, out, err = finish(start_tl("label", photos, "-o", tmp_path / "l.csv", "--no-browser", before=before))
    assert (code, out) == (1, "")
    assert "cannot be written" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_label__two_processes_on_one_output(tmp_path: Path) -> None:
    photos, output = make_photos(tmp_path / "photos", 5), tmp_path / "labels.csv"
    model = make_embedding_model(tmp_path / "m.onnx")
    with started(photos, "-o", output, "-m", model) as (process, _):
        code, _, err = finish(start_tl("label", photos, "-o", output, "-m", model, "--no-browser"))
        assert code == 1
        assert f"is being written by process {process.pid}" in err
        process.send_signal(signal.SIGTERM)
        assert finish(process)[0] == 0


def test_label__photos_are_never_changed(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 9)
    before = {path.name: (path.read_bytes(), os.stat(path).st_mtime_ns) for path in photos.iterdir()}
    model = make_embedding_model(tmp_path / "m.onnx")
    with started(photos, "-o", tmp_path / "labels.csv", "-m", model) as (process, client):
        for i in range(9):
            assert client.get(f"/thumb/{i}").status_code == client.get(f"/view/{i}").status_code == 200
        body = {"window": "w", "images": [{"id": 0, "version": 0}], "do": "label", "label": "../../x"}
        assert client.post("/api/label", json=body).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert finish(process)[0] == 0
    assert before == {path.name: (path.read_bytes(), os.stat(path).st_mtime_ns) for path in photos.iterdir()}
