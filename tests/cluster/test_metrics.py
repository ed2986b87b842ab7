"""What a scan tells Prometheus, and the dashboard that draws it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.util.metrics import Metric

from cluster import metrics
from cluster.session import session

DASHBOARD = Path(metrics.__file__).with_name("scan-dashboard.json")


def drawn() -> set[str]:
    """The series that the dashboard's panels ask for, without Ray's prefix."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    return set(re.findall(r"ray_(retroscan_\w+)", asked))


def metrics_of(told: metrics.ScanMetrics) -> Iterator[Metric]:
    """The metrics that it holds, one by one or by name."""
    for value in vars(told).values():
        yield from value.values() if isinstance(value, dict) else [value]


def test_the_dashboard_draws_every_metric_and_no_other() -> None:
    names = {metric.info["name"]: type(metric).__name__ for metric in metrics_of(metrics.ScanMetrics())}
    assert len(names) == 5
    # As Ray's agent names them: a counter gets `_total`, a histogram `_bucket`, `_sum` and `_count`.
    series = {f"{name}_total" for name, kind in names.items() if kind == "Counter"}
    series |= {f"{name}_{end}" for name, kind in names.items() if kind == "Histogram" for end in ("bucket", "count")}
    assert drawn() <= series
    assert {re.sub("_(total|bucket|count)$", "", name) for name in drawn()} == set(names)


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.ray
def test_a_worker_can_report() -> None:
    @ray.remote(num_cpus=0)
    def work() -> None:
        told = metrics.ScanMetrics()
        told.object("scored", 1234)
        told.object("truncated", None)
        told.took("decode", 0.25)

    with session(num_cpus=1):
        ray.get(work.remote())
