"""What a scan tells Prometheus, through Ray's metrics: names, tags and buckets. `scan-dashboard.json` draws them.

Ray's agent shows a metric as `ray_` and its name, a counter with `_total` behind; see the metrics port of each node.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Histogram

# Seconds: a JPEG from a near store takes a millisecond, a whole-slide frame from a slow one minutes.
_SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]


class ScanMetrics:
    """The metrics of one scoring process. Objects are told by outcome (`scored`, or an error code), never by name."""

    def __init__(self) -> None:
        self._objects = Counter("retroscan_objects", "Objects by outcome.", ("outcome",))
        self._bytes = Counter("retroscan_bytes", "Bytes of the objects that were fetched.")
        self._seconds = {
            stage: Histogram(f"retroscan_{stage}_seconds", text, boundaries=_SECONDS)
            for stage, text in (
                ("fetch", "Fetching an object."),
                ("decode", "Decoding an object."),
                ("score", "Scoring a frame with all models."),
            )
        }

    def object(self, outcome: str, size: int | None) -> None:
        """Count one object."""
        self._objects.inc(1, {"outcome": outcome})
        if size:
            self._bytes.inc(size)

    def took(self, stage: str, seconds: float) -> None:
        """Note how long one object or frame was in a stage: fetch, decode or score."""
        self._seconds[stage].observe(seconds)
