"""How far the server is, and what it counts for Prometheus. Knows numbers and words only."""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

REQUEST_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
BATCH_SIZES = (1, 2, 4, 8, 16)
STAGES = {
    "loading": "loading the model",
    "embedding": "embedding the pictures",
    "indexing": "building the index",
    "warming": "warming up",
    "failed": "the server could not start",
}


class Metrics:
    """Counters and histograms, in a registry of the server's own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "vizsla_requests", "Requests answered.", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "vizsla_request_seconds", "Time to an answer.", ["route"],
            buckets=REQUEST_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._batches = Histogram(
            "vizsla_batch_size", "Pictures and texts in one batch of the model.",
            buckets=BATCH_SIZES, registry=self.registry,
        )  # fmt: skip
        self._images = Gauge(
            "vizsla_gallery_images", "Images in the gallery.", registry=self.registry
        )

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Counts an answer of a route, and the time that it took."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_batch(self, size: int) -> None:
        """Counts a batch of the model."""
        self._batches.observe(size)

    def set_gallery_size(self, images: int) -> None:
        """Sets how many images can be found."""
        self._images.set(images)

    def text(self) -> bytes:
        """All values in the text format of Prometheus."""
        return generate_latest(self.registry)


@dataclass
class Progress:
    """How far the server is on its way to answering. done, total: images, while embedding."""

    stage: str = "loading"
    done: int = 0
    total: int = 0
    error: str | None = None
    metrics: Metrics = field(default_factory=Metrics)

    @property
    def text(self) -> str:
        """One sentence without its full stop: what the server is doing."""
        if self.stage == "embedding" and self.total:
            return f"{self.done:,} of {self.total:,} pictures embedded"
        return STAGES.get(self.stage, self.stage)
