"""Prometheus metrics of a server. Labels have few values: endpoints and models, never paths or file names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_PLAIN = ("/predict", "/info", "/metrics", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counts of one server. Thread-safe."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("tl_requests", "HTTP requests.", ["endpoint", "status"], registry=registry)
        duration = "Time from the headers of a request to the end of its answer."
        self._seconds = Histogram("tl_request_seconds", duration, ["endpoint"], buckets=_SECONDS, registry=registry)
        self._in_flight = Gauge("tl_requests_in_flight", "HTTP requests in progress.", registry=registry)
        images = "Images, by outcome: predicted or unreadable."
        self._images = Counter("tl_images", images, ["model", "outcome"], registry=registry)
        loads = "Model files that were loaded, or refused."
        self._loads = Counter("tl_model_loads", loads, ["model", "outcome"], registry=registry)
        sizes = "Images of a batch, where batches are formed."
        self._batches = Histogram("tl_batch_images", sizes, buckets=_SIZES, registry=registry)
        # Endpoint and status -> their counters: looking them up costs more than counting.
        self._found: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

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
        key = endpoint_of(path), status
        if key not in self._found:
            self._found[key] = self._requests.labels(key[0], str(status)), self._seconds.labels(key[0])
        requests, duration = self._found[key]
        requests.inc()
        duration.observe(seconds)

    def count_images(self, model: str, predicted: int, unreadable: int) -> None:
        """Count the images of a request."""
        if predicted:
            self._images.labels(model, "predicted").inc(predicted)
        if unreadable:
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
