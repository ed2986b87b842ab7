"""How a cluster is divided among the stages of a job: pure functions of the shapes of its nodes, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cluster.counting import counted
from cluster.errors import ClusterError

GIB = 1 << 30
# Of a node: with less, batches are smaller.
SMALL_MEMORY = 4 * GIB
CPU_BATCH, GPU_BATCH = 32, 128
# CPU time that an actor takes to start: Ray's worker, torch, the models. As much to score for each, or it does not pay.
ACTOR_START_MS = 5_000.0
# Of an object, under a model that does not say what it costs.
USUAL_SCORE_MS = 50.0
# Of decoded objects that travel together.
BLOCK_BYTES = 128 << 20
# How much faster a GPU scores than one CPU, at least.
GPU_SPEED = 20.0
# Of memory for each actor: torch, the models, a batch and its heatmaps.
ACTOR_BYTES = GIB
# An actor works ahead within one call: with a single batch there is nothing ahead.
GPU_BATCHES_A_CALL = 4


class Node(NamedTuple):
    """What one node offers: logical CPUs and GPUs; memory for workers and the object store, in bytes."""

    cpus: float
    gpus: float = 0.0
    memory: int = 8 * GIB
    object_store: int = 0


class ScanDivision(NamedTuple):
    """How a scan divides a cluster. Fetching, scoring and writing ask for different amounts of CPU.

    Ray fuses neighbouring stages whose resources are equal, and a fused stage decodes and scores in turn, never both at
    once.
    And what the actors hold for good must leave CPUs free: otherwise nothing is read, and the scan hangs.

    Attributes:
        actors: scoring processes.
        actor_cpus: logical CPUs that each of them holds.
        actor_gpus: GPUs that each of them holds, 0 or 1.
        fetch_cpus: of one fetch-and-decode task.
        fetch_tasks: how many of them fit beside the actors and one writing task.
        write_cpus: of one writing task.
        batch_size: frames scored at once.
        call_rows: objects given to an actor at once, a multiple of `batch_size`; fewer in a small scan, and of large
            objects.
        block_rows: objects of one fetch-and-decode task, a multiple of `batch_size`; fewer of large objects.
    """

    actors: int
    actor_cpus: float
    actor_gpus: float
    fetch_cpus: float
    fetch_tasks: int
    write_cpus: float
    batch_size: int
    call_rows: int
    block_rows: int


class FitDivision(NamedTuple):
    """How a fit divides a cluster: so many workers, each with so many CPUs, GPUs and threads."""

    workers: int
    cpus: float
    gpus: float
    threads: int


def divide_for_scan(
    nodes: Sequence[Node],
    batch_size: int | None = None,
    objects: int | None = None,
    score_ms: float | None = None,
    object_bytes: int = 0,
) -> ScanDivision:
    """How a scan of so many objects divides the nodes; `batch_size` overrides the number of frames scored at once.

    `score_ms`: what an object costs its models of one CPU's time, USUAL_SCORE_MS if that is not known.
    `object_bytes`: what one takes once it is decoded; of large ones fewer than a batch travel together.
    A small scan has fewer actors than there is room for: to each as much to score as its own start costs.

    With GPUs: one actor each.
    Without: one actor of one thread for each CPU, of which it holds half; the other half is for fetching and decoding,
    so that whichever of the two is slower gets what the other leaves.
    Measured on two CPUs, two actors of one thread scored 1.9 times as many images as one of two threads, whose threads
    wait for each other at every layer.
    Every actor fits on a node, and wherever Ray puts them, some node has room for a fetching and a writing task beside
    them.

    Raises:
        ClusterError: the nodes have no CPU.
    """
    if sum(node.cpus for node in nodes) <= 0:
        raise ClusterError(
            f"A scan needs at least one CPU for its workers. Got: a cluster of "
            f"{counted(len(nodes), 'node')} with 0 CPUs.",
            "Start worker nodes, or give the head some (--num-cpus).",
        )
    nodes = sorted(nodes, reverse=True)
    with_gpu = [node for node in nodes if node.gpus >= 1]
    if with_gpu:
        actors = sum(int(node.gpus) for node in with_gpu)
        held = _down(min(1.0, *(node.cpus / 2 / int(node.gpus) for node in with_gpu)))
        free = max(node.cpus - int(node.gpus) * held for node in nodes)
    else:
        actors, held = _cpu_actors(nodes)
        free = _always_free([node.cpus for node in nodes], actors * held)
    size = batch_size or _batch_size(with_gpu or [node for node in nodes if node.cpus > 0], gpu=bool(with_gpu))
    call_rows = size * (GPU_BATCHES_A_CALL if with_gpu else 1)
    if objects is not None:
        work_ms = objects * (score_ms or USUAL_SCORE_MS) / (GPU_SPEED if with_gpu else 1.0)
        actors = max(1, min(actors, int(work_ms / ACTOR_START_MS)))
        # Something for each of them.
        call_rows = min(call_rows, max(1, -(-objects // actors)))
    most = max(1, BLOCK_BYTES // max(1, object_bytes))
    spread = spread_actors(nodes, actors, held, gpu=bool(with_gpu))
    # What one fetch task and one write task fit into, side by side.
    share = min(1.0, free)
    fetch, write = _down(0.8 * share), _down(0.1 * share)
    return ScanDivision(
        actors=actors,
        actor_cpus=held,
        actor_gpus=1.0 if with_gpu else 0.0,
        fetch_cpus=fetch,
        fetch_tasks=sum(fetch_tasks(nodes, spread, held, fetch, write)),
        write_cpus=write,
        batch_size=size,
        call_rows=min(call_rows, most),
        block_rows=min(2 * size, most),
    )


def _down(cpus: float) -> float:
    """As Ray takes it, in thousandths, and never more: what all hold together must fit."""
    return int(cpus * 1000 + 1e-6) / 1000


def _cpu_actors(nodes: Sequence[Node]) -> tuple[int, float]:
    """(actors, CPUs each holds): one a CPU, as far as there is memory for them; at least one."""
    actors = sum(min(int(node.cpus), node.memory // ACTOR_BYTES) for node in nodes)
    return max(1, actors), _down(min(1.0, max(node.cpus for node in nodes)) / 2)


def _always_free(cpus: Sequence[float], held: float) -> float:
    """The CPUs that some node has free, wherever those that are held are taken from.

    Were less than this free on every node, then less would be free in all than is.
    """
    left = sum(cpus) - held
    # Nodes up to the level count whole, `below` in all; the others count with the level.
    level, below = 0.0, 0.0
    for number, size in enumerate(sorted(cpus)):
        level = (left - below) / (len(cpus) - number)
        if level <= size:
            break
        below += size
    return level


def _batch_size(hosts: Sequence[Node], *, gpu: bool) -> int:
    """Frames at once, fewer where any node that may hold an actor has little memory."""
    size = GPU_BATCH if gpu else CPU_BATCH
    return size // 4 if min(node.memory for node in hosts) < SMALL_MEMORY else size


def spread_actors(nodes: Sequence[Node], actors: int, held: float, *, gpu: bool) -> list[int]:
    """How many actors come to each node, as Ray Data spreads them: always to that with the most CPUs left, or GPUs."""
    free = [float(int(node.gpus)) if gpu else node.cpus for node in nodes]
    placed = [0] * len(nodes)
    for _ in range(actors):
        most = free.index(max(free))
        placed[most] += 1
        free[most] -= 1 if gpu else held
    return placed


def fetch_tasks(nodes: Sequence[Node], spread: Sequence[int], held: float, fetch: float, write: float) -> list[int]:
    """Fetch tasks of each node that fit beside its actors, and one writing task on some node."""
    free = [node.cpus - count * held for node, count in zip(nodes, spread, strict=True)]
    free[free.index(max(free))] -= write
    return [int(max(0.0, left) / fetch + 1e-6) for left in free]


def divide_for_fit(nodes: Sequence[Node], workers: int, threads: int | None = None) -> FitDivision:
    """How a fit by so many workers divides the nodes: a GPU each if there are enough, and equal CPUs.

    `threads` is what the user asked for (OMP_NUM_THREADS); by default each computes with its CPUs.

    Raises:
        ClusterError: the nodes have no room for so many workers.
    """
    gpus = _places(nodes, 1.0, gpu=True) >= workers
    cpus = int(sum(node.cpus for node in nodes)) // workers
    while cpus >= 1 and _places(nodes, cpus, gpu=gpus) < workers:
        cpus -= 1
    if cpus < 1:
        raise ClusterError(
            f"Every worker needs a CPU of one node. Got: --workers {workers} on nodes of "
            f"{', '.join(f'{node.cpus:g}' for node in nodes)} CPUs.",
            f"Give --workers {max(1, _places(nodes, 1.0, gpu=False))}, or start more nodes.",
        )
    return FitDivision(workers, float(cpus), 1.0 if gpus else 0.0, threads or cpus)


def _places(nodes: Sequence[Node], cpus: float, *, gpu: bool) -> int:
    """How many workers of so many CPUs, and one GPU each, fit on the nodes."""
    by_cpus = [int(node.cpus // cpus) for node in nodes]
    return sum(map(min, by_cpus, (int(node.gpus) for node in nodes)) if gpu else by_cpus)
