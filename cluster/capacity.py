"""What a cluster achieves in a scan, by what an image costs: images per second, bottleneck, hours and price.

A pure model of the steady state.
Every stage has a rate at which it would run alone, with the tasks and actors that `divide_for_scan` gives it; all
stages together share the CPUs and the network.
The lowest of these rates is the scan's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cluster.division import Node, ScanDivision, divide_for_scan, fetch_tasks, spread_actors


class Timing(NamedTuple):
    """Milliseconds that one image takes: on the clock, and of CPU."""

    ms: float
    cpu_ms: float


class Costs(NamedTuple):
    """What one image costs, measured on one core of some machine."""

    object_bytes: float
    # Of one GET; on the clock, several wait at once.
    fetch: Timing
    # Decoding and what else a fetch task does to an image.
    decode: Timing
    # Of an actor without a GPU.
    score: Timing
    write_cpu_ms: float
    # Of an actor with one: on the clock, and of its CPU.
    gpu_score: Timing | None = None


class NodeType(NamedTuple):
    """Nodes of one shape."""

    node: Node
    size: int
    price_per_hour: float = 0.0
    network_bytes_per_s: float = 1.25e9
    # Of a core, against the machine that the costs were measured on.
    speed: float = 1.0


class Assumptions(NamedTuple):
    """What the costs of an image do not tell."""

    # Of a GET, beyond what was measured.
    latency_ms: float
    # GETs that one fetch task keeps under way.
    fetch_threads: int
    # Of Ray, for each image.
    ray_cpu_ms: float
    # That Ray's own processes keep busy on each node.
    ray_cores: float
    # On the clock, from the last image of a fetch task to the first of the next.
    task_ms: float
    # From the command until the first image is scored.
    start_s: float
    # Between the last image of a chapter and the first of the next.
    chapter_s: float
    chapter_objects: int


class Placement(NamedTuple):
    """What comes to one node."""

    actors: int
    fetch_tasks: int


class Prediction(NamedTuple):
    """What is to be expected of a cluster; `limits` in images per second, by what sets them."""

    division: ScanDivision
    limits: Mapping[str, float]

    @property
    def bottleneck(self) -> str:
        """What sets the lowest limit."""
        return min(self.limits, key=lambda name: self.limits[name])

    @property
    def images_per_s(self) -> float:
        """The lowest limit."""
        return min(self.limits.values())


class Layout(NamedTuple):
    """How a scan divides the nodes of a cluster: all of them, in order, and what comes to each."""

    members: Sequence[NodeType]
    division: ScanDivision
    placed: Sequence[Placement]


def laid_out(
    types: Sequence[NodeType], objects: int | None = None, score_ms: float | None = None, object_bytes: int = 0
) -> Layout:
    """How a scan of so many objects, of so much CPU time to score each and so large once decoded, divides the nodes.

    Raises:
        ClusterError: the nodes have no CPU.
    """
    members = [of_type for of_type in types for _ in range(of_type.size)]
    nodes = [of_type.node for of_type in members]
    found = divide_for_scan(nodes, objects=objects, score_ms=score_ms, object_bytes=object_bytes)
    return Layout(members, found, layout(nodes, found))


def predict(costs: Costs, types: Sequence[NodeType], assumed: Assumptions, objects: int | None = None) -> Prediction:
    """The limits of a scan on the nodes, in the steady state; of so many objects, as a small scan has fewer actors.

    Raises:
        ClusterError: the nodes have no CPU.
        ValueError: the nodes have GPUs, and the costs lack the detector's time on one.
    """
    return predict_on(laid_out(types, objects, costs.score.cpu_ms), costs, assumed)


def predict_on(cluster: Layout, costs: Costs, assumed: Assumptions) -> Prediction:
    """The same on nodes that are divided already.

    Raises:
        ValueError: as `predict`.
    """
    found = cluster.division
    score = costs.gpu_score if found.actor_gpus else costs.score
    if score is None:
        raise ValueError("The nodes have GPUs, and the costs say nothing of scoring on one.")
    decode_ms = costs.decode.ms + assumed.task_ms / found.block_rows
    gets = decode = scoring = cores = 0.0
    for member, placed in zip(cluster.members, cluster.placed, strict=True):
        power = max(0.0, member.node.cpus - assumed.ray_cores) * member.speed
        cores += power
        gets += placed.fetch_tasks * assumed.fetch_threads
        # A node's tasks never do more than all of its cores together.
        decode += min(placed.fetch_tasks * member.speed / decode_ms, power / costs.decode.cpu_ms)
        # A GPU's own time does not hang on the speed of a core.
        speed = 1.0 if found.actor_gpus else member.speed
        scoring += min(placed.actors * speed / score.ms, power / score.cpu_ms)
    cpu_ms = costs.fetch.cpu_ms + costs.decode.cpu_ms + score.cpu_ms + costs.write_cpu_ms + assumed.ray_cpu_ms
    return Prediction(
        found,
        {
            "fetch": 1e3 * gets / (costs.fetch.ms + assumed.latency_ms),
            "decode": 1e3 * decode,
            "score": 1e3 * scoring,
            "cpu": 1e3 * cores / cpu_ms,
            "network": sum(member.network_bytes_per_s for member in cluster.members) / costs.object_bytes,
        },
    )


def layout(nodes: Sequence[Node], division: ScanDivision) -> list[Placement]:
    """What comes to each node where the actors are spread, as Ray Data asks for."""
    # The largest first, as the division looks at them.
    order = sorted(range(len(nodes)), key=lambda place: nodes[place], reverse=True)
    ordered = [nodes[place] for place in order]
    actors = spread_actors(ordered, division.actors, division.actor_cpus, gpu=division.actor_gpus > 0)
    tasks = fetch_tasks(ordered, actors, division.actor_cpus, division.fetch_cpus, division.write_cpus)
    placed = dict(zip(order, map(Placement, actors, tasks), strict=True))
    return [placed[place] for place in range(len(nodes))]


def hours(objects: int, images_per_s: float, assumed: Assumptions) -> float:
    """Hours that a scan of so many objects takes, its start and the ends of its chapters included."""
    chapters = -(-objects // assumed.chapter_objects)
    pauses_s = assumed.start_s + max(0, chapters - 1) * assumed.chapter_s
    return (pauses_s + objects / images_per_s) / 3600


def price_per_hour(types: Sequence[NodeType]) -> float:
    """What the nodes cost in an hour."""
    return sum(of_type.size * of_type.price_per_hour for of_type in types)
