"""What torch.compile would gain: images per second of the bare detector with and without it, and what it costs."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.fits import synchronize
from benchmarks.gpu.stages import Bench, Clock
from benchmarks.gpu.throughput import fitted, images_per_s, on_device

KINDS = ("padim", "mkd")
LIMIT_S = 60.0


def run(bench: Bench, clock: Clock) -> None:
    """One result a kind, at one size and batch: every other shape would be compiled anew."""
    for kind in bench.chosen(KINDS):
        about = {"kind": kind, "size_px": bench.size_px(256), "batch": 4 if bench.small else 128}
        limit = min(LIMIT_S, clock.left())
        if limit <= 5:
            bench.write("compile", **about, skipped="no time left")
            continue
        bench.guard("compile", partial(_compare, bench, limit, about), **about)


def _compare(bench: Bench, limit: float, about: dict[str, Any]) -> None:
    batch = about["batch"]
    detector, pictures = fitted(bench, about["kind"], about["size_px"])
    images = on_device(bench, detector, pictures.pixels, batch)
    plain = images_per_s(bench, lambda: detector.score(images), batch)
    exact = detector.score(images).image.detach().cpu().numpy()
    compiled = torch.compile(detector.score, dynamic=False)
    start = time.perf_counter()
    with _at_most(limit):
        found = compiled(images).image.detach().cpu().numpy()
        synchronize(bench.device)
    compile_s = time.perf_counter() - start
    bench.write(
        "compile",
        **about,
        compile_s=compile_s,
        plain_images_per_s=plain,
        compiled_images_per_s=images_per_s(bench, lambda: compiled(images), batch),
        relative=float((np.abs(found - exact) / np.maximum(np.abs(exact), 1e-12)).max()),
    )


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError inside after so many seconds; of the main thread alone."""

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise TimeoutError(f"compiling took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
