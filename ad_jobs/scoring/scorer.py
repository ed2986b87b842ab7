"""From frames to scores: the one place where a detector runs, so that every verb computes the same number."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ad_jobs.errors import JobError, UsageError
from ad_jobs.images.model_input import to_input
from ad_jobs.images.policy import Tiles
from ad_jobs.images.tiling import Stitch, Tiling
from ad_jobs.scoring.batching import BatchSize
from ad_jobs.scoring.devices import Answer, Device, best_device, pipelined
from ad_jobs.scoring.engine import OnnxRuntime, torch_name
from ad_jobs.scoring.tolerances import AMP_TOLERANCE, share_off
from models.detector import Detector

# float16 and not bfloat16: eight times the precision, and what overflows becomes a failed row, never a wrong one.
AMP_DTYPE = torch.float16


class FrameScore(NamedTuple):
    """One frame's raw score and heatmap float32 [H, W]; the time is its share of its batch."""

    score: float
    heatmap: NDArray[np.float32]
    finite: bool
    score_ms: float


class _Batch(NamedTuple):
    """A batch on its way: what the device made of it, how many frames it has, and when it was begun, by both clocks."""

    work: Any
    frames: int
    start: float
    cpu: float


class Scorer:
    """A detector on the best device at hand, and in the engine that is fastest there.

    float32 throughout: neither autocast nor TF32, because a score must be the same within 1e-5 wherever
    it is computed again.
    `tiles`: frames are of any size, and cut into tiles of the detector's input, which are what is scored at once, those
    of several frames together; a frame's score and heatmap are stitched of theirs.
    `batch_size` frames are scored at once; None: what is fastest on a CPU, by the first batches, and never more than
    `at_most`.
    `amp` gives that up for speed on a GPU: scores then agree within AMP_TOLERANCE, which the first batch must show.

    Raises:
        UsageError: `amp` on a CPU.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        tiles: Tiles | None = None,
        batch_size: int | None = 32,
        at_most: int = 32,
        threads: int | None = None,
        amp: bool = False,
        device: Device | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = device or best_device()
        if batch_size is not None:
            self._size = BatchSize(batch_size)
        else:
            self._size = BatchSize.measured(at_most) if self._device.kind == "cpu" else BatchSize(at_most)
        if amp and not self._device.amp:
            raise no_gpu_for_amp("a process in which torch finds no CUDA device")
        self._detector = self._device.place(detector)
        self._tiling = None if tiles is None else Tiling(*detector.spec.size_px, tiles.overlap_px)
        self._amp = amp
        self._unproven = amp
        self._last_end = 0.0

    @property
    def engine(self) -> str:
        """What runs the detector, with its version; known once a batch is scored."""
        return self._detector.name if isinstance(self._detector, OnnxRuntime) else torch_name()

    def score(self, pixels: Iterable[NDArray[np.uint16]]) -> Iterator[FrameScore]:
        """One FrameScore for each uint16 [c, h, w] of `pixels`, in order, scored in batches.

        Raises:
            JobError: this model's scores do not stand reduced precision.
        """
        return self._whole(pixels) if self._tiling is None else self._stitched(pixels, self._tiling)

    def _stitched(self, pixels: Iterable[NDArray[np.uint16]], tiling: Tiling) -> Iterator[FrameScore]:
        # Cut and not yet scored; beside a batch of tiles no more than the frames that it is of are held.
        waiting: deque[tuple[Stitch, tuple[int, int]]] = deque()

        def cut() -> Iterator[NDArray[np.uint16]]:
            for frame in pixels:
                stitch = Stitch(tiling, *frame.shape[-2:])
                for corner in tiling.corners(*frame.shape[-2:]):
                    waiting.append((stitch, corner))
                    yield tiling.cut(frame, corner)

        finite, spent_ms = True, 0.0
        for tile in self._whole(cut()):
            stitch, corner = waiting.popleft()
            stitch.add(corner, tile.score, tile.heatmap)
            finite, spent_ms = finite and tile.finite, spent_ms + tile.score_ms
            if not stitch.left:
                yield FrameScore(stitch.score, stitch.heatmap, finite, spent_ms)
                finite, spent_ms = True, 0.0

    def _whole(self, pixels: Iterable[NDArray[np.uint16]]) -> Iterator[FrameScore]:
        for scored in pipelined(
            self._size.batches(pixels), self._send, self._run, self._receive, ahead=self._device.ahead
        ):
            yield from scored

    def _send(self, frames: list[NDArray[np.uint16]]) -> _Batch:
        start, cpu = time.perf_counter(), time.process_time()
        channels = self._detector.spec.channels
        images = torch.from_numpy(np.stack([to_input(frame, channels) for frame in frames]))
        return _Batch(self._device.send(images), len(frames), start, cpu)

    def _run(self, batch: _Batch) -> _Batch:
        reduced = torch.autocast(self._device.kind, AMP_DTYPE) if self._amp else nullcontext()
        with reduced:
            running = self._device.run(self._detector, batch.work)
        if self._unproven:
            exact = self._device.receive(self._device.run(self._detector, batch.work))
            _demand_close(self._device.receive(running), exact)
            self._unproven = False
        return batch._replace(work=running)

    def _receive(self, batch: _Batch) -> list[FrameScore]:
        answer = self._device.receive(batch.work)
        end = time.perf_counter()
        # Of this process alone, whatever else keeps the machine busy.
        self._size.took(batch.frames, time.process_time() - batch.cpu)
        # Batches that overlap must not count the same time twice.
        share = 1e3 * (end - max(batch.start, self._last_end)) / batch.frames
        self._last_end = end
        return [
            FrameScore(float(score), heatmap, bool(np.isfinite(score) and np.isfinite(heatmap).all()), share)
            for score, heatmap in zip(*answer, strict=True)
        ]


def no_gpu_for_amp(what: str) -> UsageError:
    """The refusal of `--amp` by what is there instead of a GPU."""
    return UsageError(
        "--amp is for GPUs: on a CPU reduced precision costs accuracy and time.",
        what,
        "Leave --amp out, or scan on a cluster with GPUs (--address).",
    )


def _demand_close(reduced: Answer, exact: Answer) -> None:
    # NaN if any is.
    off = np.max([share_off(*parts) for parts in zip(reduced, exact, strict=True)])
    if not off <= AMP_TOLERANCE:
        raise JobError(
            f"This model does not stand --amp: on the first batch its scores or heatmaps change by {off:.1%}, "
            f"more than {AMP_TOLERANCE:.0%}.",
            "Scan without --amp, into another folder.",
        )
