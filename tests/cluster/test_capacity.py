"""The capacity model: by hand in small cases, and what holds of any costs and clusters."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.capacity import Assumptions, Costs, NodeType, Timing, hours, layout, predict, price_per_hour
from cluster.division import Node, divide_for_scan

ASSUMED = Assumptions(
    latency_ms=10.0,
    fetch_threads=8,
    ray_cpu_ms=1.0,
    ray_cores=0.5,
    task_ms=128.0,
    start_s=20.0,
    chapter_s=5.0,
    chapter_objects=1000,
)
COSTS = Costs(
    object_bytes=1e5,
    fetch=Timing(10.0, 2.0),
    decode=Timing(8.0, 9.0),
    score=Timing(20.0, 21.0),
    write_cpu_ms=1.0,
    gpu_score=Timing(0.5, 1.0),
)
FAST = NodeType(Node(8), 1, network_bytes_per_s=1e9)

MS = st.floats(0.01, 500.0)
ANY_COSTS = st.builds(
    Costs,
    object_bytes=st.floats(1e3, 1e8),
    fetch=st.builds(Timing, MS, MS),
    decode=st.builds(Timing, MS, MS),
    score=st.builds(Timing, MS, MS),
    write_cpu_ms=MS,
    gpu_score=st.builds(Timing, MS, MS),
)
ANY_TYPE = st.builds(
    NodeType,
    node=st.builds(Node, cpus=st.sampled_from([1, 2, 3, 4, 6, 8, 16, 96]), gpus=st.sampled_from([0, 0, 1, 8])),
    size=st.integers(1, 9),
    network_bytes_per_s=st.floats(1e6, 1e10),
    speed=st.floats(0.3, 3.0),
)


def test_every_limit_by_hand() -> None:
    found = predict(COSTS, [FAST], ASSUMED)
    assert (found.division.actors, found.division.fetch_tasks) == (8, 4)
    assert found.limits == pytest.approx(
        {
            "fetch": 4 * 8 / 20e-3,
            # Two of the ten ms are a pause, shared by the 64 images of a task.
            "decode": 4 / 10e-3,
            # Eight actors would do more than all cores.
            "score": 7.5 / 21e-3,
            # 2 + 9 + 21 + 1 + 1 ms.
            "cpu": 7.5 / 34e-3,
            "network": 1e9 / 1e5,
        }
    )
    assert (found.bottleneck, found.images_per_s) == ("cpu", pytest.approx(220.59, rel=1e-4))


def test_a_small_scan_has_fewer_actors() -> None:
    found = predict(COSTS, [FAST], ASSUMED, objects=500)
    assert found.limits["score"] == pytest.approx(2 / 20e-3)
    assert found.bottleneck == "score"


def test_a_node_never_does_more_than_its_cores() -> None:
    costs = COSTS._replace(decode=Timing(1.0, 40.0))
    assert predict(costs, [FAST], ASSUMED).limits["decode"] == pytest.approx(7.5 / 40e-3)


def test_a_faster_core_speeds_up_what_runs_on_it_and_a_gpu_does_not_care() -> None:
    slow, fast = (predict(COSTS, [FAST._replace(speed=speed)], ASSUMED).limits for speed in (1.0, 2.0))
    for name in ("decode", "score", "cpu"):
        assert fast[name] == pytest.approx(2 * slow[name])
    assert fast["fetch"] == slow["fetch"]
    with_gpu = FAST._replace(node=Node(8, 1))
    assert predict(COSTS, [with_gpu._replace(speed=2.0)], ASSUMED).limits["score"] == pytest.approx(1 / 0.5e-3)


def test_what_the_costs_do_not_tell_is_refused() -> None:
    with pytest.raises(ValueError, match="GPU"):
        predict(COSTS._replace(gpu_score=None), [NodeType(Node(8, 1), 1)], ASSUMED)


@settings(deadline=None)
@given(ANY_COSTS, st.lists(ANY_TYPE, min_size=1, max_size=3))
def test_the_bottleneck_is_the_slowest(costs: Costs, types: list[NodeType]) -> None:
    found = predict(costs, types, ASSUMED)
    assert found.limits[found.bottleneck] == found.images_per_s
    assert all(limit >= found.images_per_s > 0 for limit in found.limits.values())


@settings(deadline=None)
@given(ANY_COSTS, ANY_TYPE, st.integers(1, 5))
def test_more_nodes_of_a_shape_never_lower_what_is_achieved(costs: Costs, of_type: NodeType, more: int) -> None:
    before, after = (
        predict(costs, [of_type._replace(size=size)], ASSUMED).images_per_s
        for size in (of_type.size, of_type.size + more)
    )
    assert after >= before * (1 - 1e-9)


@settings(deadline=None)
@given(ANY_COSTS, st.lists(ANY_TYPE, min_size=1, max_size=3), st.floats(1.0, 10.0))
def test_a_dearer_image_never_raises_what_is_achieved(costs: Costs, types: list[NodeType], factor: float) -> None:
    dearer = [
        costs._replace(object_bytes=factor * costs.object_bytes),
        costs._replace(fetch=Timing(factor * costs.fetch.ms, costs.fetch.cpu_ms)),
        costs._replace(decode=Timing(factor * costs.decode.ms, factor * costs.decode.cpu_ms)),
        costs._replace(write_cpu_ms=factor * costs.write_cpu_ms),
    ]
    base = predict(costs, types, ASSUMED).images_per_s
    assert all(predict(one, types, ASSUMED).images_per_s <= base * (1 + 1e-9) for one in dearer)


ANY_NODE = st.builds(
    Node,
    cpus=st.sampled_from([0.5, 1, 1.5, 2, 4, 7, 16, 96]),
    gpus=st.sampled_from([0, 0, 0, 0.5, 1, 2, 8]),
    memory=st.sampled_from([1, 2, 8, 64]).map(lambda gib: gib << 30),
)


@settings(deadline=None)
@given(st.lists(ANY_NODE, min_size=1, max_size=8), st.sampled_from([None, 1, 5000]))
# Where an actor would hold 0.1875 of a CPU.
@example([Node(1.5, 4), Node(4, 8)], None)
def test_the_layout_is_that_of_the_division(nodes: list[Node], objects: int | None) -> None:
    division = divide_for_scan(nodes, objects=objects)
    placed = layout(nodes, division)
    assert sum(one.actors for one in placed) == division.actors
    assert sum(one.fetch_tasks for one in placed) == division.fetch_tasks
    for one, node in zip(placed, nodes, strict=True):
        held = one.actors * division.actor_cpus + one.fetch_tasks * division.fetch_cpus
        assert held <= node.cpus + 1e-6 * (one.actors + one.fetch_tasks)
        assert not division.actor_gpus or one.actors <= int(node.gpus)


def test_hours_count_the_start_and_the_pauses_between_chapters() -> None:
    assert hours(1000, 100.0, ASSUMED) == pytest.approx((20 + 10) / 3600)
    assert hours(2001, 100.0, ASSUMED) == pytest.approx((20 + 2 * 5 + 20.01) / 3600)


def test_the_price_is_that_of_all_nodes() -> None:
    types = [NodeType(Node(8), 3, price_per_hour=0.5), NodeType(Node(4, 1), 2, price_per_hour=1.25)]
    assert price_per_hour(types) == pytest.approx(4.0)
