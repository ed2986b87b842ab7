"""The estimate on made costs: by hand, and how often its intervals hold the truth in seeded simulations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from ad_jobs.planning.estimate import ASSUMED, Cluster, Estimator, Share
from ad_jobs.planning.timing import COSTS, Timed

CLUSTER = Cluster(1, 8, price_per_hour=2.0)
OBJECTS = 1_000_000
# Of 95 % intervals in 200 trials, three standard deviations below; a bootstrap of 32 is a little too narrow.
COVERED = 0.87
TRIALS = 200


def costs(n: int, rng: np.random.Generator | None = None) -> NDArray[np.float64]:
    """So many objects: bytes, then fetch, decode, score and write in ms, rows, and bytes of heatmaps."""
    mean = np.array([1e5, 4.0, 10.0, 20.0, 1.0, 1.0, 50.0])
    if rng is None:
        return np.tile(mean, (n, 1))
    made = mean * rng.gamma(4.0, 0.25, (n, 1))
    made[:, COSTS.index("rows")] = 1.0
    return made


def timed(rows: NDArray[np.float64]) -> Timed:
    return Timed(rows, fetch_cpu_ms=1.0, row_bytes=200.0, part_bytes=10_000.0, by_code={})


def estimator(rows: NDArray[np.float64], share: Share | None = None) -> Estimator:
    return Estimator(timed(rows), share or Share(OBJECTS, OBJECTS, OBJECTS), models=1, seed=0)


def test_time_price_and_disk_by_hand() -> None:
    found = estimator(costs(10)).on(CLUSTER)
    # 1 + 10 + 20 + 1 ms, and 2 of Ray, on 7.85 cores.
    rate = 7.85 / 34e-3
    assert found["bottleneck"] == "cpu"
    assert found["images_per_s"] == pytest.approx({"value": rate, "low": rate, "high": rate})
    took = (20 + 4 * 1 + OBJECTS / rate) / 3600
    assert found["hours"] == pytest.approx({"value": took, "low": took, "high": took})
    assert found["cost"] == pytest.approx({"value": 2 * took, "low": 2 * took, "high": 2 * took})
    disk = estimator(costs(10)).disk()
    assert disk["table_bytes"]["value"] == pytest.approx(10_000 + 200 * OBJECTS)
    assert disk["heatmap_bytes"]["value"] == pytest.approx(50 * OBJECTS)


def test_a_cluster_is_divided_as_the_scan_will_divide_it() -> None:
    few = Share(100, 100, 100)
    as_measured = estimator(costs(10), few).on(CLUSTER)
    # By its model's own figure a scan of so few has one actor; large objects travel in smaller blocks.
    one = Estimator(timed(costs(10)), few, models=1, seed=0, score_ms=20.0, object_bytes=0).on(CLUSTER)
    assert one["images_per_s"]["value"] == pytest.approx(1 / 20e-3)  # type: ignore[index]
    large = Estimator(timed(costs(10)), few, models=1, seed=0, score_ms=500.0, object_bytes=1 << 27).on(CLUSTER)
    assert large["bottleneck"] == "decode"
    assert large["images_per_s"]["value"] < as_measured["images_per_s"]["value"]  # type: ignore[index]


def test_what_is_not_scored_is_fetched_and_has_a_row_for_each_model() -> None:
    half = Estimator(timed(costs(10)), Share(OBJECTS // 2, OBJECTS, OBJECTS), models=2, seed=0)
    assert half.on(CLUSTER)["images_per_s"]["value"] == pytest.approx(7.85 / (1 + 5 + 10 + 1 + 2) * 1e3)  # type: ignore[index]
    assert half.disk()["table_bytes"]["value"] == pytest.approx(10_000 + 200 * OBJECTS * (0.5 * 1 + 0.5 * 2))
    assert half.disk()["heatmap_bytes"]["value"] == pytest.approx(25 * OBJECTS)


def test_more_nodes_take_less_and_without_a_price_there_is_none() -> None:
    one, four = (estimator(costs(10)).on(Cluster(nodes, 8)) for nodes in (1, 4))
    assert four["hours"]["value"] < one["hours"]["value"] / 3  # type: ignore[index]
    assert one["cost"] is None


def test_the_same_seed_gives_the_same_interval() -> None:
    rows = costs(32, np.random.default_rng(1))
    assert estimator(rows).on(CLUSTER) == estimator(rows).on(CLUSTER)
    other = Estimator(timed(rows), Share(OBJECTS, OBJECTS, OBJECTS), models=1, seed=1)
    assert other.on(CLUSTER)["hours"] != estimator(rows).on(CLUSTER)["hours"]


def test_the_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth, disk = estimator(costs(10)).on(CLUSTER)["hours"]["value"], 50 * OBJECTS  # type: ignore[index]
    covered = np.zeros(2)
    for _ in range(TRIALS):
        found = estimator(costs(32, rng))
        took, maps = found.on(CLUSTER)["hours"], found.disk()["heatmap_bytes"]
        covered += [took["low"] <= truth <= took["high"], maps["low"] <= disk <= maps["high"]]  # type: ignore[index]
        assert took["low"] < took["value"] < took["high"]  # type: ignore[index]
    assert (covered / TRIALS >= COVERED).all(), covered / TRIALS


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_counts_of_a_sample_cover_the_truth(share: float) -> None:
    objects, looked_at = 20_000, 200
    rng = np.random.default_rng(0)
    hits = rng.hypergeometric(int(share * objects), objects - int(share * objects), looked_at, size=500)
    amounts = [Share(int(found), looked_at, objects).amount for found in hits]
    held = np.mean([one["low"] <= share * objects <= one["high"] for one in amounts])
    assert held >= 0.94, held
    assert all(0 <= one["low"] <= one["value"] <= one["high"] <= objects for one in amounts)


def test_a_count_of_all_is_exact_and_what_was_seen_is_certain() -> None:
    assert Share(3, 10, 10).amount == {"value": 3, "low": 3, "high": 3}
    assert Share(0, 0, 0).amount == {"value": 0, "low": 0, "high": 0}
    few = Share(9, 10, 12).amount
    assert (few["low"], few["high"]) == (9, 11)


def test_a_share_that_is_known_from_a_sample_alone_widens_the_interval() -> None:
    rows = costs(32, np.random.default_rng(2))
    known, sampled = (
        estimator(rows, share).disk()["heatmap_bytes"]
        for share in (Share(OBJECTS // 2, OBJECTS, OBJECTS), Share(15, 30, OBJECTS))
    )
    assert known["value"] == pytest.approx(sampled["value"])
    assert sampled["high"] - sampled["low"] > 1.3 * (known["high"] - known["low"])


def test_what_is_assumed_of_ray_is_what_the_capacity_page_assumes() -> None:
    path = Path(__file__).parents[3] / "benchmarks" / "capacity.yaml"
    measured = yaml.safe_load(path.read_text())["assumptions"]
    names = ("ray_cpu_ms", "ray_cores", "task_ms", "start_s", "chapter_s")
    assert {name: getattr(ASSUMED, name) for name in names} == {name: measured[name] for name in names}
