"""What the service counts, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dna_probe.detector import Prediction

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters in a registry of their own, so that two services in one process do not mix.

    Args:
        version, backbone: labels of ``dna_probe_model_info``.
    """

    def __init__(self, version: str, backbone: str):
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

        self.registry = CollectorRegistry()
        self._requests = Counter("dna_probe_requests", "Requests answered", ["route", "status"], registry=self.registry)
        self._seconds = Histogram(
            "dna_probe_request_seconds",
            "Seconds from the head of a request to the end of its answer",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._samples = Counter(
            "dna_probe_samples", "Samples judged, by verdict; or unreadable", ["verdict"], registry=self.registry
        )
        self._batches = Histogram(
            "dna_probe_batch_size", "Samples in a forward pass", buckets=BATCH_SIZES, registry=self.registry
        )
        self._queue = Gauge("dna_probe_queue_length", "Samples that wait for a batch", registry=self.registry)
        Info("dna_probe_model", "The detector served", registry=self.registry).info(
            {"version": version, "backbone": backbone}
        )

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Read the length of the queue whenever the metrics are read."""
        self._queue.set_function(length)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_sample(self, prediction: Prediction) -> None:
        self._samples.labels(prediction.verdict or "unreadable").inc()

    def count_batch(self, size: int) -> None:
        self._batches.observe(size)

    def render(self) -> tuple[bytes, str]:
        """The text, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST
