"""Servers in threads of this process, with real sockets, and a client that says everything in one call."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.annotation import review_data
from tests.annotation.photos import make_embedding_model, make_photos
from tests.annotation.review_data import spoil
from tests.docs.stage import write_weights
from tests.models import make_cam_model, make_model, solid
from tests.serving.label_server import KEYS
from tests.serving.models import make_careful_model, make_multilabel_model, make_regression_model
from tests.serving.web_driver import install_npm
from tests.spots import make_spot_model
from tl.annotation.opening import SessionPlan
from tl.serving.access import Access
from tl.serving.app import PAGE, build_app
from tl.serving.limits import Limits, Load
from tl.serving.metrics import Metrics
from tl.serving.models import ModelSource, ModelStore
from tl.serving.predict import Server
from tl.serving.server import bind, build_server
from tl.serving.workers import Batching, Workers

Files = list[tuple[str, tuple[str, bytes]]]


def encoded(color: tuple[int, int, int], kind: str = "PNG", hw: tuple[int, int] = (20, 30)) -> bytes:
    """An image file of one color."""
    buffer = BytesIO()
    Image.fromarray(solid(color, *hw)).save(buffer, kind)
    return buffer.getvalue()


RED, BLUE = encoded((200, 10, 10)), encoded((10, 10, 200))


def images(*contents: bytes) -> Files:
    """Upload image files named 0.png, 1.png ..."""
    return [("images", (f"{n}.png", content)) for n, content in enumerate(contents)]


@dataclass
class Running:
    """A server, its models and a client."""

    port: int
    client: httpx.Client
    models: ModelStore
    load: Load
    workers: Workers
    log: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def predict(self, *contents: bytes, **options: str) -> httpx.Response:
        return self.client.post("/predict", files=images(*contents), data=options)

    def labels(self, *contents: bytes) -> list[str]:
        answer = self.predict(*contents)
        assert answer.status_code == 200, answer.text
        return [one["label"] for one in answer.json()["results"]]

    def error(self, status: int, method: str, path: str, **options: Any) -> str:
        """The text of an error, which must be one line of JSON."""
        answer = self.client.request(method, path, **options)
        assert answer.status_code == status, answer.text
        assert list(answer.json()) == ["error"]
        text = answer.json()["error"]
        assert "\n" not in text
        return str(text)

    def metric(self, name: str) -> float:
        """The value of a metric with its labels, 0 if it is not there."""
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


StartServer = Callable[..., Running]


@contextmanager
def running(
    *sources: ModelSource,
    limits: Limits | None = None,
    token: str | None = None,
    threads: int = 1,
    batching: Batching | None = None,
    reload_s: float | None = None,
    idle_s: float = 15.0,
    page: Path = PAGE,
) -> Iterator[Running]:
    limits, log, metrics = limits or Limits(), [], Metrics()
    store = ModelStore(sources, device="cpu", opened=metrics.count_load, say=log.append)
    pixels = limits.max_megapixels * 1e6
    workers = Workers(threads, batching=batching, max_pixels=pixels, seen=metrics.count_batch)
    listening, load, ready = bind("127.0.0.1", 0), Load(limits), threading.Event()
    port = listening.getsockname()[1]
    app = build_app(
        Server(store, workers, load, metrics), Access("127.0.0.1", port, token), reload_s=reload_s, page=page
    )
    server = build_server(app, limits, started=ready.set, idle_s=idle_s)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    assert ready.wait(30)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield Running(port, client, store, load, workers, log)
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture
def start() -> Iterator[StartServer]:
    """Start servers that end with the test."""
    with ExitStack() as stack:
        yield lambda *sources, **options: stack.enter_context(running(*sources, **options))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model file of each kind, by the name under which it is served."""
    folder = tmp_path_factory.mktemp("served")
    made = {
        "color": make_model,
        "cam": make_cam_model,
        "careful": make_careful_model,
        "labels": make_multilabel_model,
        "numbers": make_regression_model,
        "spots": make_spot_model,
    }
    return {name: make(folder / f"{name}.onnx") for name, make in made.items()}


def source(path: Path) -> ModelSource:
    return ModelSource(path.stem, (path,))


@pytest.fixture(scope="session")
def server(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server of all models; read only."""
    other = make_model(tmp_path_factory.mktemp("members") / "other.onnx", gain=0.03)
    vote = ModelSource("ensemble", (files["color"], other), True)
    with running(*map(source, files.values()), vote) as found:
        yield found


@pytest.fixture(scope="session")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the packages that drive a browser."""
    return install_npm(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file whose features are mean colors, for `tl label`."""
    return make_embedding_model(tmp_path_factory.mktemp("model") / "colors.onnx")


@pytest.fixture
def plan(tmp_path: Path) -> SessionPlan:
    """To label 120 photos in three colors, of which the names tell the color."""
    return SessionPlan(make_photos(tmp_path / "photos", 120), tmp_path / "labels.csv", list(KEYS))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For `tl review`: photos with a wrong label and a copy."""
    write_weights(tmp_path / "weights")
    monkeypatch.setenv("TL_WEIGHTS_DIR", str(tmp_path / "weights"))
    return spoil(review_data.make_photos(tmp_path / "photos", 12))


def lines(text: str) -> list[dict[str, Any]]:
    """JSON lines."""
    return [json.loads(line) for line in text.splitlines()]
