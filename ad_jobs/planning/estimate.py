"""What a scan takes, by what a sample of its objects took: images per second, hours, disk and price, with intervals.

Time follows from `cluster.capacity`, which divides a cluster as a scan does.
Intervals are of 95 %, by a bootstrap over the sampled objects: they say how far the objects of the archive may differ
from those that were drawn, and nothing of how far the model of a cluster may be off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from ad_jobs.archive.fetching import FETCH_THREADS
from ad_jobs.planning.timing import COSTS, Timed
from ad_jobs.scoring.thresholds import CONFIDENCE, clopper_pearson
from ad_jobs.specs import CHAPTER_OBJECTS
from cluster.capacity import Assumptions, Costs, NodeType, Timing, hours, laid_out, predict_on
from cluster.division import GIB, Node

REPLICATES = 1000
# Of Ray, as measured for benchmarks/results/capacity.md; a GET's latency is in what was timed.
ASSUMED = Assumptions(
    latency_ms=0.0,
    fetch_threads=FETCH_THREADS,
    ray_cpu_ms=2.0,
    ray_cores=0.15,
    task_ms=140.0,
    start_s=20.0,
    chapter_s=1.0,
    chapter_objects=CHAPTER_OBJECTS,
)
# Of a node, for each of its CPUs.
MEMORY_A_CPU = 4 * GIB
# A stage that costs nothing has no rate.
_LEAST_MS = 1e-6


class Amount(TypedDict):
    """A number and its 95 % interval; its bounds are the number where it is known."""

    value: float
    low: float
    high: float


class Share(NamedTuple):
    """How many of the objects that were looked at are of a kind, and how many objects there are in all."""

    hits: int
    looked_at: int
    objects: int

    @property
    def amount(self) -> Amount:
        """How many of all objects are of the kind: exactly, where all were looked at."""
        if self.looked_at == self.objects:
            return {"value": self.hits, "low": self.hits, "high": self.hits}
        low, high = clopper_pearson(self.hits, self.looked_at)
        others = self.looked_at - self.hits
        return {
            "value": round(self.hits / self.looked_at * self.objects),
            # What was seen is certain.
            "low": max(self.hits, floor(low * self.objects)),
            "high": min(self.objects - others, ceil(high * self.objects)),
        }

    def drawn(self, rng: np.random.Generator) -> float:
        """The share, as another sample of this size might have shown it."""
        share = self.hits / self.looked_at
        return share if self.looked_at == self.objects else float(rng.binomial(self.looked_at, share)) / self.looked_at


class Cluster(NamedTuple):
    """So many nodes of so many CPUs and GPUs, and what one of them costs in an hour, if that is known."""

    nodes: int
    cores: int
    gpus: int = 0
    price_per_hour: float | None = None

    @property
    def types(self) -> list[NodeType]:
        """The same, as a scan divides it."""
        return [NodeType(Node(self.cores, self.gpus, MEMORY_A_CPU * self.cores), self.nodes)]


@dataclass(frozen=True)
class Estimator:
    """What is known before the scan: the timed sample, how many of the objects will be scored, and how many models.

    `score_ms` and `object_bytes` are what the scan will divide the cluster by, whatever the sample took.
    """

    timed: Timed
    scored: Share
    models: int
    seed: int
    score_ms: float | None = None
    object_bytes: int = 0

    def on(self, cluster: Cluster) -> dict[str, object]:
        """Images per second, what limits them, hours, and the price if one is known; images are all objects read.

        Raises:
            ClusterError: it has no CPU.
        """
        costs = self._costs_of(*self._point())
        laid = laid_out(cluster.types, self.scored.objects, self.score_ms, self.object_bytes)
        found = predict_on(laid, costs, ASSUMED)
        rates = [predict_on(laid, self._costs_of(*drawn), ASSUMED).images_per_s for drawn in self._replicates()]
        rate = _amount(found.images_per_s, rates)
        took = [hours(self.scored.objects, one, ASSUMED) for one in (rate["value"], rate["high"], rate["low"])]
        price = None if cluster.price_per_hour is None else cluster.nodes * cluster.price_per_hour
        return {
            **cluster._asdict(),
            "images_per_s": rate,
            "bottleneck": found.bottleneck,
            "hours": _of(took),
            "cost": None if price is None else _of([price * one for one in took]),
        }

    def disk(self) -> dict[str, Amount]:
        """Bytes of the score table, and of the heatmaps that are kept."""
        table, heatmaps = zip(*(self._bytes_of(*drawn) for drawn in self._replicates()), strict=True)
        point = self._bytes_of(*self._point())
        return {"table_bytes": _amount(point[0], table), "heatmap_bytes": _amount(point[1], heatmaps)}

    def _point(self) -> tuple[dict[str, float], float]:
        return _named(self.timed.costs), self.scored.hits / self.scored.looked_at

    def _replicates(self) -> Iterator[tuple[dict[str, float], float]]:
        """Mean costs of an object that is scored, and the share of these, as other samples might have shown them."""
        rng = np.random.default_rng(self.seed)
        costs = self.timed.costs
        for _ in range(REPLICATES):
            drawn = costs[rng.integers(0, len(costs), len(costs))]
            yield _named(drawn), self.scored.drawn(rng)

    def _costs_of(self, mean: dict[str, float], share: float) -> Costs:
        """Of any object: all are fetched, and what is not scored is taken to be decoded no further than its header."""
        decode, score = (max(_LEAST_MS, share * mean[name]) for name in ("decode_ms", "score_ms"))
        fetch = max(_LEAST_MS, mean["fetch_ms"])
        return Costs(
            object_bytes=max(1.0, mean["bytes"]),
            fetch=Timing(fetch, min(fetch, self.timed.fetch_cpu_ms)),
            decode=Timing(decode, decode),
            score=Timing(score, score),
            write_cpu_ms=mean["write_ms"],
            gpu_score=Timing(score, score),
        )

    def _bytes_of(self, mean: dict[str, float], share: float) -> tuple[float, float]:
        """Of the table, in which an object that is not scored has a row for each model; and of the heatmaps."""
        rows = self.scored.objects * (share * mean["rows"] + (1 - share) * self.models)
        return self.timed.part_bytes + rows * self.timed.row_bytes, self.scored.objects * share * mean["heatmap_bytes"]


def _named(costs: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(COSTS, costs.mean(axis=0).tolist(), strict=True))


def _amount(value: float, drawn: Sequence[float]) -> Amount:
    """The percentile interval, widened where need be to hold the value."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(np.asarray(drawn), [tail, 100 - tail])
    return {"value": value, "low": min(float(low), value), "high": max(float(high), value)}


def _of(ordered: Sequence[float]) -> Amount:
    """A value, its least and its greatest."""
    value, low, high = ordered
    return {"value": value, "low": low, "high": high}
