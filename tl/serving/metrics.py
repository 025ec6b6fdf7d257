"""Prometheus metrics of a server. Labels have few values: endpoints and models, never paths or file names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_PLAIN = ("/predict", "/info", "/metrics", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counts of one server. Thread-safe."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        common = {"registry": self._registry}
        self._requests = Counter("tl_requests", "HTTP requests.", ["endpoint", "status"], **common)
        self._seconds = Histogram(
            "tl_request_seconds", "Time from the headers of a request to the end of its answer.", ["endpoint"],
            buckets=_SECONDS, **common,
        )  # fmt: skip
        self._in_flight = Gauge("tl_requests_in_flight", "HTTP requests in progress.", **common)
        self._images = Counter(
            "tl_images", "Images, by outcome: predicted or unreadable.", ["model", "outcome"], **common
        )
        self._loads = Counter(
            "tl_model_loads", "Model files loaded, by outcome: loaded or refused.", ["model", "outcome"], **common
        )
        self._batches = Histogram(
            "tl_batch_images", "Images of a batch, where batches are formed.", buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            **common,
        )  # fmt: skip

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request as being in progress."""
        self._in_flight.inc()
        try:
            yield
        finally:
            self._in_flight.dec()

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count a finished request."""
        endpoint = endpoint_of(path)
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def count_images(self, model: str, predicted: int, unreadable: int) -> None:
        """Count the images of a request."""
        self._images.labels(model, "predicted").inc(predicted)
        self._images.labels(model, "unreadable").inc(unreadable)

    def count_load(self, model: str, loaded: bool) -> None:
        """Count a model that was loaded, or refused."""
        self._loads.labels(model, "loaded" if loaded else "refused").inc()

    def count_batch(self, images: int) -> None:
        """Count a batch."""
        self._batches.observe(images)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def endpoint_of(path: str) -> str:
    """Return the name of an endpoint: the path with NAME for a model and V for a version, "page" for other paths."""
    if path in _PLAIN:
        return path
    parts = path.strip("/").split("/")
    if parts[:2] != ["v2", "models"] or len(parts) > 6:
        return "page"
    last = parts[-1] if parts[-1] in ("infer", "ready") and len(parts) > 3 else ""
    return f"/v2/models/NAME{'/' if last else ''}{last}"
