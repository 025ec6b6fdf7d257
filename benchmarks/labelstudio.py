"""Predict, import into a running Label Studio, annotate by its API, export, read back, compare. See labelstudio.sh."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.models import make_model
from tests.spots import make_spot_model, save_spots
from tl.runtime import load, load_landmarks
from tl.runtime.landmarks.files import read_landmarks

# Class names that XML and URLs must escape.
RED, GREEN, BLUE = "red <a>", "green & b", 'blue "ü"'
COLORS = ((250, 10, 10), (10, 250, 10), (10, 20, 250), (240, 30, 20), (30, 230, 10))


class Server:
    """The API of Label Studio."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token

    def call(self, path: str, body: Any = None, method: str | None = None, kind: str = "application/json") -> bytes:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Token {self.token}", "Content-Type": kind}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return bytes(answer.read())

    def json(self, path: str, body: Any = None, method: str | None = None) -> Any:
        return json.loads(self.call(path, body, method))

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            try:
                self.call("/api/projects/")
                return
            except (urllib.error.URLError, OSError):
                if time.monotonic() > end:
                    raise
                time.sleep(2)

    def upload(self, project: int, image: Path) -> None:
        edge = uuid.uuid4().hex
        head = f'--{edge}\r\nContent-Disposition: form-data; name="f"; filename="{image.name}"\r\n'
        body = head.encode() + b"Content-Type: image/png\r\n\r\n" + image.read_bytes() + f"\r\n--{edge}--\r\n".encode()
        self.call(f"/api/projects/{project}/import", body, kind=f"multipart/form-data; boundary={edge}")


def tl(folder: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "tl", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def make_project(server: Server, files: Path, tasks: str, photos: str) -> tuple[int, list[Any]]:
    """Import tasks with their labeling interface, and serve their photos. Returns the project and its tasks."""
    config = (files / tasks).with_suffix(".xml").read_text()
    project = server.json("/api/projects/", {"title": tasks, "label_config": config})["id"]
    storage = {"project": project, "path": str(files / photos), "use_blob_urls": True}
    server.json("/api/storages/localfiles", storage)
    written = json.loads((files / tasks).read_bytes())
    server.json(f"/api/projects/{project}/import", written)
    found = server.json(f"/api/tasks?project={project}&fields=all&page_size=100")["tasks"]
    assert len(found) == len(written)
    assert all(len(task["predictions"]) == 1 for task in found), "a prediction was lost"
    for task in found:
        path = urllib.request.url2pathname(task["data"]["image"].split("?d=")[1])
        assert server.call(task["data"]["image"]) == (files / path).read_bytes(), "the link does not serve the photo"
    return project, found


def accept(server: Server, task: Any, **changes: Any) -> None:
    """Submit the prediction as an annotation, as a person does who finds nothing to correct."""
    server.json(f"/api/tasks/{task['id']}/annotations/", {"result": task["predictions"][0]["result"], **changes})


def export(server: Server, project: int, kind: str, path: Path) -> None:
    query = f"exportType={kind}&download_all_tasks=true"
    path.write_bytes(server.call(f"/api/projects/{project}/export?{query}"))


def check_classes(server: Server, files: Path) -> None:
    (files / "photos").mkdir()
    for i, color in enumerate(COLORS):
        Image.fromarray(np.full((40, 30 + i, 3), color, np.uint8)).save(files / f"photos/ä {i}.png")
    make_model(files / "color.onnx", (RED, GREEN, BLUE))
    tl(files, "predict", "photos", "--model", "color.onnx", "--to", "labelstudio", "-o", "classes.json")
    project, tasks = make_project(server, files, "classes.json", "photos")
    accept(server, tasks[0])
    accept(server, tasks[1])
    accept(server, tasks[2], was_cancelled=True)
    accept(server, tasks[3])  # and then corrected by a second annotation
    other = [{**tasks[3]["predictions"][0]["result"][0], "value": {"choices": [GREEN]}}]
    server.json(f"/api/tasks/{tasks[3]['id']}/annotations/", {"result": other})
    expected = {"photos/ä 0.png": RED, "photos/ä 1.png": GREEN, "photos/ä 3.png": GREEN}
    server.upload(project, files / "photos/ä 4.png")
    added = server.json(f"/api/tasks?project={project}&fields=all&page_size=100")["tasks"][-1]
    assert "/data/upload/" in added["data"]["image"], added
    server.json(f"/api/tasks/{added['id']}/annotations/", {"result": [{**other[0], "value": {"choices": [BLUE]}}]})
    for kind in ("JSON", "JSON_MIN"):
        export(server, project, kind, files / f"classes.{kind}.json")
        said = tl(files, "convert", f"classes.{kind}.json", "-o", f"{kind}.csv", "--images", "photos")
        with (files / f"{kind}.csv").open(encoding="utf-8", newline="") as stream:
            rows = {row["path"]: row["label"] for row in csv.DictReader(stream)}
        assert {name: rows[name] for name in expected} == expected, rows
        assert sorted(rows.values()) == [BLUE, GREEN, GREEN, RED], rows
        print(f"classes, {kind}: {len(rows)} of {len(rows)} labels as annotated; " + said.strip().replace("\n", "; "))
    with load(files / "color.onnx") as model:
        same = [model.predict(files / name).label == label for name, label in expected.items()]
    print(f"classes: {sum(same)} of {len(same)} accepted labels are the predicted ones, 1 was corrected")


def check_points(server: Server, files: Path) -> None:
    (files / "wings").mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        xy = np.array([[20.0, 15], [60, 20], [30, 45]]) + rng.integers(-4, 5, (3, 2))
        save_spots(files / f"wings/{i}.png", xy)
    make_spot_model(files / "wing.onnx")
    tl(files, "predict", "wings", "--model", "wing.onnx", "--to", "labelstudio", "-o", "points.json")
    project, tasks = make_project(server, files, "points.json", "wings")
    for task in tasks:
        accept(server, task)
    with load_landmarks(files / "wing.onnx") as model:
        for kind in ("JSON", "JSON_MIN"):
            export(server, project, kind, files / f"points.{kind}.json")
            tl(files, "convert", f"points.{kind}.json", "-o", f"points.{kind}.csv")
            found = read_landmarks(files / f"points.{kind}.csv")
            assert found.keypoint_names == tuple(model.keypoint_names)
            assert len(found.images) == len(tasks)
            gaps = [np.abs(i.keypoints_xy - model.predict(files / i.name).keypoints_xy).max() for i in found.images]
            assert max(gaps) < 1e-3, gaps
            print(f"points, {kind}: {len(found.images)} images x 3 points, largest difference {max(gaps):.1e} px")


def main() -> None:
    files, url, token = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    server = Server(url, token)
    server.wait(300)
    release = server.json("/api/version")["release"]
    print(f"Label Studio {release}")
    check_classes(server, files)
    check_points(server, files)


if __name__ == "__main__":
    main()
