"""What happens → numbers for Prometheus, in a registry of the server's own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
BATCHES = (1, 2, 4, 8, 16)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "vizsla_requests", "Requests answered.", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "vizsla_request_seconds", "Time to an answer.", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._batches = Histogram(
            "vizsla_batch_size", "Pictures and texts that went through the model together.",
            buckets=BATCHES, registry=self.registry,
        )  # fmt: skip
        self._images = Gauge("vizsla_gallery_images", "Images found.", registry=self.registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, size: int) -> None:
        self._batches.observe(size)

    def gallery_size(self, images: int) -> None:
        self._images.set(images)

    def text(self) -> bytes:
        return generate_latest(self.registry)
