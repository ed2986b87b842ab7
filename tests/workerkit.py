"""Processes that are the ranks of one gloo group after another, without Ray, and what they do there.

The processes are started once, as importing torch takes them longer than a small fit.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from detectorkit import batches, build
from textures import textures, with_defects
from torch import Tensor, nn

from models.detector import Batch, Detector, Learner
from models.parts.batch_norm import BatchNorm2d
from models.runtime import Runtime, group_runtime

COLLECTIVE_S = 300.0  # after which a rank no longer waits for the others
ANSWER_S = 400.0  # a first import of torch on a busy machine included
SEED = 5


class Workers:
    """Several processes; `run` makes the first of them ranks of a group."""

    def __init__(self, processes: list[tuple[Any, Connection]], folder: Path) -> None:
        self._processes, self._folder = processes, folder
        self._runs = 0

    def run(self, world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(runtime, *arguments)` returned, or the exception that it raised, on every rank."""
        self._runs += 1
        store = str(self._folder / f"store-{self._runs}")
        ranks = self._processes[:world]
        for rank, (_, connection) in enumerate(ranks):
            connection.send((store, rank, world, function, arguments))
        found = []
        for rank, (process, connection) in enumerate(ranks):
            assert connection.poll(ANSWER_S), f"rank {rank} of {world} hangs"
            assert process.is_alive() or connection.poll(0), f"rank {rank} of {world} died"
            found.append(torch.load(io.BytesIO(connection.recv_bytes()), weights_only=False))
        return found


@contextmanager
def workers(count: int) -> Iterator[Workers]:
    """`count` processes for the length of the block."""
    spawn = multiprocessing.get_context("spawn")
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(count):
            here, there = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            there.close()
            processes.append((process, here))
        try:
            yield Workers(processes, Path(folder))
        finally:
            for process, connection in processes:
                connection.close()
                process.join(60)
                process.kill()


def _serve(connection: Connection) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    while True:
        try:
            store, rank, world, function, arguments = connection.recv()
        except EOFError:
            return
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store, world),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=COLLECTIVE_S),
        )
        try:
            with torch.random.fork_rng():
                answer = function(group_runtime(torch.device("cpu"), SEED), *arguments)
        except Exception as error:  # noqa: BLE001  # the test judges what it was
            answer = error
        connection.send_bytes(to_bytes(answer))
        dist.destroy_process_group()


def to_bytes(value: Any) -> bytes:
    """As a checkpoint holds it: a tensor sent as it is would stay in the sender's memory."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


# --- What ranks do


class Job(NamedTuple):
    """A small fit: what of, and on what."""

    kind: str
    options: Mapping[str, Any]
    size_px: tuple[int, int]
    images: int
    # float64 pins formulas, and lets no rounding grow.
    double: bool = True
    held_out: int = 6
    # A training image that is not a number.
    poisoned: int | None = None


class Outcome(NamedTuple):
    """A fit as one rank saw it."""

    losses: list[dict[str, float]]  # of every step
    weights: dict[str, Tensor]
    scores: Tensor
    state: bytes  # of the learner at the end, or where it stopped


Place = tuple[str, int]  # a phase, and how many epochs of it are done


def share(batch: Batch, runtime: Runtime) -> Batch:
    """What of a global batch lies on a rank."""
    mine = runtime.mine(len(batch.images))
    anomalous = None if batch.anomalous is None else batch.anomalous[mine]
    return Batch(batch.images[mine], batch.positions[mine], anomalous, len(batch.images))


def fit(runtime: Runtime, job: Job, stop: Place | None = None, resume: tuple[Place, bytes] | None = None) -> Outcome:
    """The outcome of a fit, this rank on its share of every batch, from its start or `resume` to its end or `stop`."""
    torch.manual_seed(SEED)
    detector = build(job.kind, job.size_px, **job.options)
    dtype = torch.float64 if job.double else torch.float32
    torch.set_default_dtype(dtype)  # of networks that live as long as the fit
    learner = detector.to(dtype).learner(runtime)
    torch.set_default_dtype(torch.float32)
    losses, state = run(learner, runtime, _sets(job, detector, dtype), stop, resume)
    scores = detector.float().eval().score(textures(4, *job.size_px, seed=4)).image
    return Outcome(losses, detector.state_dict(), scores, state)


def _sets(job: Job, detector: Detector, dtype: torch.dtype) -> dict[str, list[Batch]]:
    images = textures(job.images, *job.size_px, seed=1).to(dtype)
    if job.poisoned is not None:
        images[job.poisoned, 0, 0, 0] = torch.nan
    bad = with_defects(textures(job.images, *job.size_px, seed=2))[0].to(dtype)
    held_out = textures(job.held_out, *job.size_px, seed=3).to(dtype)
    size = detector.config.batch_size
    return {
        "train": batches(images, size, bad if detector.spec.needs_anomalous else None),
        "held_out": batches(held_out, size),
    }


def run(
    learner: Learner,
    runtime: Runtime,
    sets: dict[str, list[Batch]],
    stop: Place | None,
    resume: tuple[Place, bytes] | None,
) -> tuple[list[dict[str, float]], bytes]:
    """The phases from `resume` to `stop`; what every step reported, and the learner's state at the end."""
    losses = []
    names = [phase.name for phase in learner.phases]
    for phase in learner.phases[names.index(resume[0][0]) if resume else 0 :]:
        learner.start(phase.name)
        first = 0
        if resume is not None and resume[0][0] == phase.name:
            first = resume[0][1]
            learner.load_state_dict(torch.load(io.BytesIO(resume[1]), weights_only=True))
        for epoch in range(first, phase.epochs):
            for batch in sets[phase.images]:
                step = learner.step(share(batch, runtime))
                losses.append({name: float(value) for name, value in step.items()})
            learner.end_epoch()
            if stop == (phase.name, epoch + 1):
                return losses, to_bytes(learner.state_dict())
        learner.finish(phase.name)
    return losses, to_bytes(learner.state_dict())


class Passed(NamedTuple):
    """What two training passes through a batch norm gave this rank."""

    out: Tensor
    to_images: Tensor
    to_weight: Tensor | None
    to_bias: Tensor | None
    running: tuple[Tensor, Tensor]


def normalise(runtime: Runtime, images: Tensor, affine: bool, momentum: float | None) -> Passed:
    """Two passes of this rank's images, the first of them doubled, and a backward pass of a loss unlike over images."""
    norm = BatchNorm2d(images.shape[1], affine=affine, momentum=momentum, dtype=images.dtype)
    if affine:
        nn.init.normal_(norm.weight, 1.0, 0.3, generator=torch.Generator().manual_seed(1))
    if runtime.world > 1:
        norm.runtime = runtime
    own = images[runtime.mine(len(images))].clone().requires_grad_()
    norm(2 * own.detach())
    out = norm(own)
    weights = torch.arange(1.0, len(images) + 1).view(-1, 1, 1, 1)[runtime.mine(len(images))]
    (out.pow(3) * weights).sum().backward()
    assert own.grad is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gradients = (norm.weight.grad, norm.bias.grad) if affine else (None, None)
    return Passed(out.detach(), own.grad, *gradients, (norm.running_mean, norm.running_var))
