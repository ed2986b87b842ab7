"""Where a detector runs: what a CPU and a GPU are told to do with a batch, from host memory and back to it.

`pipelined` keeps a device busy and knows nothing of it; the few calls of CUDA stand in `Cuda` alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ad_jobs.scoring.engine import OnnxRuntime
from models.detector import Detector, InputSpec, Scores

Batch = TypeVar("Batch")
Sent = TypeVar("Sent")
Running = TypeVar("Running")
Result = TypeVar("Result")


class Answer(NamedTuple):
    """A batch's raw scores float32 [B] and heatmaps float32 [B, H, W], in host memory."""

    scores: NDArray[np.float32]
    heatmaps: NDArray[np.float32]


class Placed(Protocol):
    """A detector ready to score where it is: itself, or what runs the same call for it."""

    spec: InputSpec

    def score(self, images: Tensor) -> Scores: ...


class Device(Protocol):
    """Takes a batch in three steps, of which the first two may return before their work is done."""

    # Torch's name for it.
    kind: str
    # Whether reduced precision pays on it.
    amp: bool
    # Batches that are sent and run before the first of them is received.
    ahead: int

    def place(self, detector: Detector) -> Placed: ...
    def send(self, images: Tensor) -> Any: ...
    def run(self, placed: Placed, sent: Any) -> Any: ...
    def receive(self, running: Any) -> Answer: ...


def best_device() -> Device:
    """The GPU if torch has one, else the CPU with the engine that is fastest there."""
    return Cuda() if torch.cuda.is_available() else EngineCpu()


def pipelined(
    batches: Iterable[Batch],
    send: Callable[[Batch], Sent],
    run: Callable[[Sent], Running],
    receive: Callable[[Running], Result],
    *,
    ahead: int,
) -> Iterator[Result]:
    """`receive(run(send(batch)))` of every batch, in order; with `ahead` of them under way before one is received.

    Where `run` returns before its work is done, with `ahead` 1 a batch is sent while the one before it runs, and that
    one is received while this one runs.
    What any of the three raises comes out at once; results not yet received are lost with it.
    """
    under_way: deque[Running] = deque()
    for batch in batches:
        under_way.append(run(send(batch)))
        if len(under_way) > ahead:
            yield receive(under_way.popleft())
    while under_way:
        yield receive(under_way.popleft())


class Cpu:
    """Everything at once: nothing can overlap with what uses the same cores."""

    kind = "cpu"
    amp = False
    ahead = 0

    def place(self, detector: Detector) -> Placed:
        """The detector, ready to score."""
        return detector.eval()

    def send(self, images: Tensor) -> Tensor:
        """The images: they are there."""
        return images

    def run(self, placed: Placed, sent: Tensor) -> Scores:
        """The detector's scores.

        It is called plainly: it owns its grad mode, and some take a gradient to draw their heatmap.
        """
        return placed.score(sent)

    def receive(self, running: Scores) -> Answer:
        """The scores as arrays."""
        return Answer(*(part.detach().float().numpy() for part in running))


class EngineCpu(Cpu):
    """A CPU on which an engine made for inference runs the detectors that are one graph, and torch the others."""

    def place(self, detector: Detector) -> Placed:
        """The detector's graph in the engine, or the detector."""
        ready = detector.eval()
        return OnnxRuntime(ready) if OnnxRuntime.takes(ready) else ready


class _Arriving(NamedTuple):
    images: Tensor
    arrived: torch.cuda.Event


class _Running(NamedTuple):
    # Pinned, in host memory; not to be read before `done`.
    scores: Tensor
    heatmaps: Tensor
    done: torch.cuda.Event


def channels_last(detector: Detector) -> Detector:
    """The detector with its images and kernels, [N, C, H, W], in the layout that convolutions on GPUs are fastest in.

    Other tensors stay as they are: torch refuses this layout for five dimensions, which a detector's buffers may have.
    """
    for tensor in (*detector.parameters(), *detector.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return detector


class Cuda:
    """One GPU. A batch is copied on a stream of its own while another is scored on the current stream."""

    kind = "cuda"
    amp = True
    ahead = 1

    def __init__(self) -> None:
        self._device = torch.device("cuda")
        self._copies = torch.cuda.Stream(self._device)

    def place(self, detector: Detector) -> Placed:
        """The detector on the GPU, without TF32: it rounds as float16 does, unasked."""
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        return channels_last(detector.eval().to(self._device))

    def send(self, images: Tensor) -> _Arriving:
        """Begin to copy images [B, C, H, W] to the GPU, channels last."""
        # From pageable memory a copy is never asynchronous.
        # The pinned buffer may go at once: its allocator waits for the copy before it gives the memory to another.
        pinned = images.pin_memory()
        arrived = torch.cuda.Event()
        with torch.cuda.stream(self._copies):
            copied = pinned.to(self._device, non_blocking=True)
            copied = copied.contiguous(memory_format=torch.channels_last)
            arrived.record(self._copies)
        return _Arriving(copied, arrived)

    def run(self, placed: Placed, sent: _Arriving) -> _Running:
        """Begin to score what was sent, and to copy the answer back."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(sent.arrived)
        # The images' memory belongs to the copying stream, which would give it to a later batch while
        # this one is scored.
        sent.images.record_stream(stream)
        scores, heatmaps = (self._to_host(part) for part in placed.score(sent.images))
        done = torch.cuda.Event()
        done.record(stream)
        return _Running(scores, heatmaps, done)

    def _to_host(self, tensor: Tensor) -> Tensor:
        # On the stream that scores: on the copying one, the next batch's images would have to wait for this answer.
        host = torch.empty(tensor.shape, dtype=torch.float32, pin_memory=True)
        return host.copy_(tensor.detach().float(), non_blocking=True)

    def receive(self, running: _Running) -> Answer:
        """The answer, once it is there; it may be asked for again."""
        running.done.synchronize()
        return Answer(running.scores.numpy(), running.heatmaps.numpy())
