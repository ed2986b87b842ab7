"""How a cluster is divided: every actor fits on a node, and something is always left to read and write with."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.division import ACTOR_START_MS, GIB, USUAL_SCORE_MS, Node, ScanDivision, divide_for_fit, divide_for_scan
from cluster.errors import ClusterError

NODES = st.lists(
    st.builds(
        Node,
        cpus=st.sampled_from([0, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 7, 8, 12, 16, 48, 96]),
        gpus=st.sampled_from([0, 0, 0, 0.5, 1, 2, 4, 8]),
        memory=st.sampled_from([1, 2, 8, 64]).map(lambda gib: gib * GIB),
    ),
    min_size=1,
    max_size=8,
).filter(lambda nodes: sum(node.cpus for node in nodes) > 0)
UNTIMED = settings(deadline=None)
# Of a CPU: sums of floats.
ROUNDING = 1e-6


def places(node: Node, found: ScanDivision) -> int:
    """How many of the actors the node could hold."""
    by_cpus = int((node.cpus + ROUNDING) / found.actor_cpus) if found.actor_cpus else found.actors
    return min(by_cpus, int(node.gpus)) if found.actor_gpus else by_cpus


@UNTIMED
@given(NODES)
def test_every_actor_fits_on_a_node_and_the_sums_never_exceed(nodes: list[Node]) -> None:
    found = divide_for_scan(nodes)
    assert found.actors >= 1
    assert sum(places(node, found) for node in nodes) >= found.actors
    assert found.actors * found.actor_cpus < sum(node.cpus for node in nodes)
    assert found.actors * found.actor_gpus <= sum(node.gpus for node in nodes)


@UNTIMED
@given(NODES, st.randoms(use_true_random=False))
# The only place where an actor of one CPU fits.
@example([Node(1), Node(0.5), Node(0.5)], random.Random(0))
def test_wherever_the_actors_land_a_node_has_room_to_fetch_and_write(nodes: list[Node], draw: random.Random) -> None:
    found = divide_for_scan(nodes)
    free = [node.cpus for node in nodes]
    gpus = [int(node.gpus) if found.actor_gpus else found.actors for node in nodes]
    for _ in range(found.actors):
        able = [i for i in range(len(nodes)) if free[i] + ROUNDING >= found.actor_cpus and gpus[i]]
        assert able, "no node takes this actor: it waits for ever"
        chosen = draw.choice(able)
        free[chosen] -= found.actor_cpus
        gpus[chosen] -= 1
    assert found.fetch_cpus > 0
    assert found.write_cpus > 0
    assert max(free) >= found.fetch_cpus + found.write_cpus - ROUNDING, "a full pool starves the reader"


@UNTIMED
@given(NODES)
def test_fetch_tasks_are_those_that_fit_beside_the_actors(nodes: list[Node]) -> None:
    found = divide_for_scan(nodes)
    held = found.actors * found.actor_cpus + found.write_cpus + found.fetch_tasks * found.fetch_cpus
    assert found.fetch_tasks >= 1
    assert held <= sum(node.cpus for node in nodes) + ROUNDING * (found.actors + found.fetch_tasks)


@UNTIMED
@given(NODES)
def test_no_two_stages_ask_for_the_same(nodes: list[Node]) -> None:
    found = divide_for_scan(nodes)
    asked = {(found.fetch_cpus, 0.0), (found.write_cpus, 0.0), (found.actor_cpus, found.actor_gpus)}
    assert len(asked) == 3, "stages of equal resources are fused, and do not overlap"


@UNTIMED
@given(NODES, st.sampled_from([None, 1, 4, 50]))
def test_calls_and_blocks_are_whole_batches(nodes: list[Node], size: int | None) -> None:
    found = divide_for_scan(nodes, size)
    assert found.batch_size == (size or found.batch_size)
    assert found.call_rows % found.batch_size == found.block_rows % found.batch_size == 0


@pytest.mark.parametrize(
    # Actors, CPUs they hold, CPUs to fetch with, fetch tasks.
    ("cpus", "expected"),
    [
        (0.5, (1, 0.25, 0.2, 1)),
        (1, (1, 0.5, 0.4, 1)),
        (2, (2, 0.5, 0.8, 1)),
        (3, (3, 0.5, 0.8, 1)),
        (4, (4, 0.5, 0.8, 2)),
        (8, (8, 0.5, 0.8, 4)),
        (96, (96, 0.5, 0.8, 59)),
    ],
)
def test_a_single_node(cpus: float, expected: tuple[float, ...]) -> None:
    found = divide_for_scan([Node(cpus, memory=512 * GIB)])
    assert (found.actors, found.actor_cpus, found.fetch_cpus, found.fetch_tasks) == expected
    assert (found.batch_size, found.call_rows, found.block_rows) == (32, 32, 64)


@pytest.mark.parametrize(
    # Actors, CPUs to fetch with.
    ("shapes", "expected"),
    [
        # An actor on each leaves half a CPU everywhere.
        ([1] * 8, (8, 0.4)),
        ([2] * 4, (8, 0.8)),
        ([16, *[1] * 4], (20, 0.8)),
        # 0.75 of one of them is free at least.
        ([2, 1], (3, 0.6)),
        # A head without CPUs.
        ([0, 8, 8], (16, 0.8)),
    ],
)
def test_several_nodes(shapes: list[int], expected: tuple[float, ...]) -> None:
    found = divide_for_scan([Node(cpus, memory=64 * GIB) for cpus in shapes])
    assert (found.actors, found.fetch_cpus) == expected


def test_actors_fit_into_memory() -> None:
    assert divide_for_scan([Node(16, memory=3 * GIB)]).actors == 3
    assert divide_for_scan([Node(16, memory=GIB // 2)]).actors == 1


def test_an_actor_is_made_for_as_much_to_score_as_its_start_costs() -> None:
    nodes = [Node(8, memory=64 * GIB)]

    def actors(objects: int, score_ms: float | None) -> int:
        return divide_for_scan(nodes, 10, objects, score_ms).actors

    assert [actors(objects, ACTOR_START_MS / 100) for objects in (0, 1, 199, 200, 300, 10_000)] == [1, 1, 1, 2, 3, 8]
    # As many objects, of another cost.
    assert [actors(600, ms) for ms in (2, 20, 100, 1000)] == [1, 2, 8, 8]
    assert actors(600, None) == actors(600, USUAL_SCORE_MS)
    with_gpus = [Node(8, 4, memory=64 * GIB)]
    found = [divide_for_scan(with_gpus, objects=objects, score_ms=50).actors for objects in (600, 6_000, 60_000)]
    assert found == [1, 3, 4], "a GPU has done as much in a twentieth of the time"


def test_a_small_scan_has_something_for_every_actor() -> None:
    nodes = [Node(8, memory=64 * GIB)]
    few = divide_for_scan(nodes, objects=24, score_ms=2_000)
    assert (few.actors, few.call_rows, few.batch_size) == (8, 3, 32)
    assert divide_for_scan(nodes, objects=10_000, score_ms=2_000).call_rows == 32


def test_of_large_objects_fewer_travel_together() -> None:
    nodes = [Node(8, memory=64 * GIB)]
    usual, large, huge = (divide_for_scan(nodes, object_bytes=size) for size in (1 << 20, 16 << 20, 1 << 30))
    assert usual == divide_for_scan(nodes)
    assert (large.call_rows, large.block_rows, large.batch_size) == (8, 8, 32)
    assert (huge.call_rows, huge.block_rows) == (1, 1)


def test_one_actor_for_each_gpu_wherever_it_is() -> None:
    found = divide_for_scan([Node(16, 4), Node(8, 1), Node(32)])
    assert (found.actors, found.actor_gpus, found.actor_cpus) == (5, 1.0, 1.0)
    crowded = divide_for_scan([Node(4, 8), Node(32)])
    assert (crowded.actors, crowded.actor_cpus) == (8, 0.25)
    assert found.call_rows > found.batch_size, "with one batch a call, nothing is worked on ahead"


def test_a_node_with_little_memory_makes_small_batches_where_it_may_hold_an_actor() -> None:
    small, large = Node(8, memory=2 * GIB), Node(8, memory=64 * GIB)
    assert divide_for_scan([small, large]).batch_size < divide_for_scan([large, large]).batch_size
    assert divide_for_scan([small._replace(cpus=0), large]).batch_size == divide_for_scan([large]).batch_size


def test_nodes_without_cpus_are_refused() -> None:
    with pytest.raises(ClusterError, match="at least one CPU"):
        divide_for_scan([Node(0), Node(0, 4)])
    with pytest.raises(ClusterError, match="at least one CPU"):
        divide_for_scan([])


@UNTIMED
@given(NODES, st.integers(1, 12))
def test_workers_of_a_fit_find_room_on_nodes_with_equal_shares(nodes: list[Node], workers: int) -> None:
    if sum(int(node.cpus) for node in nodes) < workers:
        with pytest.raises(ClusterError, match=f"--workers {workers}"):
            divide_for_fit(nodes, workers)
        return
    found = divide_for_fit(nodes, workers)
    fitting = [int(node.cpus // found.cpus) for node in nodes]
    if found.gpus:
        fitting = [min(n, int(node.gpus)) for n, node in zip(fitting, nodes, strict=True)]
    assert sum(fitting) >= workers
    assert found.threads == found.cpus >= 1


def test_a_fit_on_one_node_and_on_several() -> None:
    assert divide_for_fit([Node(2)], 1) == (1, 2.0, 0.0, 2)
    assert divide_for_fit([Node(8)], 3) == (3, 2.0, 0.0, 2)
    assert divide_for_fit([Node(4), Node(4), Node(4)], 2) == (2, 4.0, 0.0, 4), "6 CPUs fit on no node"
    assert divide_for_fit([Node(8, 2)], 2) == (2, 4.0, 1.0, 4)
    assert divide_for_fit([Node(8, 1)], 2) == (2, 4.0, 0.0, 4), "no GPU for some and none for others"
    assert divide_for_fit([Node(8)], 2, threads=1).threads == 1


def test_the_division_does_not_hang_on_the_order_of_the_nodes() -> None:
    for nodes in ([Node(8), Node(2), Node(1, memory=GIB)], [Node(2), Node(1), Node(1)]):
        assert len({divide_for_scan(order) for order in itertools.permutations(nodes)}) == 1
