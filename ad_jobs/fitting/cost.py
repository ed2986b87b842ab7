"""What a fitted detector costs: a scan divides a cluster by it before it has loaded the model, or torch."""

from __future__ import annotations

import time

import torch

from models.detector import Detector

IMAGES = 2


def score_cpu_ms(detector: Detector) -> float:
    """Milliseconds of one CPU in which the detector, on the CPU, scores an image; to a tenth.

    It says how much there is to score, on a machine like this one, and no more: of a batch an image costs less.
    """
    spec = detector.spec
    shape = IMAGES, spec.channels, spec.height_px, spec.width_px
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # The first time prepares what the second finds.
        return round(1e3 * min(_cpu_s(detector, images) for _ in range(2)) / IMAGES, 1)
    finally:
        torch.set_num_threads(threads)


def _cpu_s(detector: Detector, images: torch.Tensor) -> float:
    # Of this thread: what else runs in the process, or on the machine, does not count.
    start = time.thread_time()
    detector.score(images)
    return time.thread_time() - start
