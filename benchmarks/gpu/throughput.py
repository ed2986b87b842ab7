"""Images per second and peak memory by detector, size, batch and precision: the product's scorer, and the bare network.

The scorer begins with uint16 pixels in host memory and ends with scores and heatmaps there; the bare detector's images
lie on the device and its answers stay there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import cycle
from typing import Any

import torch

from ad_jobs.images.model_input import to_input
from ad_jobs.scoring.scorer import AMP_DTYPE, Scorer
from benchmarks.gpu.fits import create, device_of, fit, short, synchronize
from benchmarks.gpu.pictures import Pictures, Pixels, load
from benchmarks.gpu.stages import Bench, Clock
from models.detector import Detector

KINDS = ("linear", "padim", "mkd", "pmad", "autoencoder", "fyd", "cyclegan", "ssm", "ssm_residual")
SIZES_PX = (128, 256)
BATCHES = (1, 8, 32, 128, 256)
# How long one figure is measured, and how often at least.
MEASURE_S = 0.25
REPEATS = 2
# Batches before, that are not counted.
WARM_UP = 2


def run(bench: Bench, clock: Clock) -> None:
    """One result for each detector, size, batch and way; each detector and size has its share of the time."""
    sizes = sorted({bench.size_px(wanted) for wanted in SIZES_PX})
    pairs = [(kind, size_px) for size_px in sizes for kind in bench.chosen(KINDS)]
    for number, (kind, size_px) in enumerate(pairs):
        share = clock.share(len(pairs) - number)
        bench.guard("throughput", partial(_measure, bench, share, kind, size_px), kind=kind, size_px=size_px)


def fitted(bench: Bench, kind: str, size_px: int) -> tuple[Detector, Pictures]:
    """A detector fitted in passing, so that its scores are finite, and images for it to score."""
    images = load(bench.pack, "br35h", "test", size_px, 10 if bench.small else 32)
    detector = create(kind, size_px, short(kind, 1), bench.weights)
    fit(detector, bench.device, images)
    return detector, images


def _measure(bench: Bench, share: Clock, kind: str, size_px: int) -> None:
    detector, images = fitted(bench, kind, size_px)
    precisions = ("float32", "amp") if device_of(bench.device).amp else ("float32",)
    ways = [(precision, way) for precision in precisions for way in ("scorer", "bare")]
    rates: dict[tuple[str, str], float] = {}
    for batch in (1, 4) if bench.small else BATCHES:
        for precision, way in list(ways):
            about = {"kind": kind, "size_px": size_px, "batch": batch, "precision": precision, "way": way}
            # As long as the steps take at the rate of the last batch's size.
            if share.left() <= (WARM_UP + REPEATS) * batch / rates.get((precision, way), float("inf")):
                bench.write("throughput", **about, skipped="no time left")
                continue

            def one(about: dict[str, Any] = about, key: tuple[str, str] = (precision, way)) -> None:
                found = (_scorer if key[1] == "scorer" else _bare)(bench, detector, images.pixels, about)
                rates[key] = found["images_per_s"]
                bench.write("throughput", **about, **found)

            if not bench.guard("throughput", one, **about):
                # Out of memory, or out of AMP's tolerance: so will be larger batches.
                ways.remove((precision, way))
                release(bench.device)


def _scorer(bench: Bench, detector: Detector, pixels: list[Pixels], about: dict[str, Any]) -> dict[str, Any]:
    batch = about["batch"]
    scorer = Scorer(detector, batch_size=batch, amp=about["precision"] == "amp", device=device_of(bench.device))
    # The first batch of AMP is scored twice; of each, the first takes plans and memory.
    for _ in scorer.score(_endless(pixels, WARM_UP * batch)):
        pass
    reset_peak(bench.device)
    start = time.perf_counter()
    scored = sum(1 for _ in scorer.score(_until(pixels, batch, start + _seconds(bench))))
    spent = time.perf_counter() - start
    return {"images_per_s": scored / spent, "images": scored, "peak_mib": peak_mib(bench.device)}


def _endless(pixels: list[Pixels], count: int) -> Iterator[Pixels]:
    for _, frame in zip(range(count), cycle(pixels), strict=False):
        yield frame


def _until(pixels: list[Pixels], batch: int, end: float) -> Iterator[Pixels]:
    """Whole batches until `end`, but at least REPEATS of them."""
    number = 0
    while number < REPEATS or time.perf_counter() < end:
        yield from _endless(pixels, batch)
        number += 1


def _bare(bench: Bench, detector: Detector, pixels: list[Pixels], about: dict[str, Any]) -> dict[str, Any]:
    batch = about["batch"]
    images = on_device(bench, detector, pixels, batch)
    with torch.autocast(bench.device, AMP_DTYPE) if about["precision"] == "amp" else nullcontext():
        reset_peak(bench.device)
        rate = images_per_s(bench, lambda: detector.score(images), batch)
    return {"images_per_s": rate, "peak_mib": peak_mib(bench.device)}


def on_device(bench: Bench, detector: Detector, pixels: list[Pixels], batch: int) -> torch.Tensor:
    """A batch of images where and as the scorer would send it; the detector is put there too."""
    device_of(bench.device).place(detector)
    rows = [torch.from_numpy(to_input(frame, detector.spec.channels)) for frame in _endless(pixels, batch)]
    return torch.stack(rows).to(bench.device).contiguous(memory_format=torch.channels_last)


def images_per_s(bench: Bench, step: Callable[[], object], batch: int) -> float:
    """How many images go through `step`, after WARM_UP steps that are not counted."""
    for _ in range(WARM_UP):
        step()
    synchronize(bench.device)
    start, steps = time.perf_counter(), 0
    while steps < REPEATS or time.perf_counter() - start < _seconds(bench):
        step()
        steps += 1
        # Else steps are begun by the hundred before the clock is looked at again.
        synchronize(bench.device)
    return steps * batch / (time.perf_counter() - start)


def _seconds(bench: Bench) -> float:
    return 0.02 if bench.small else MEASURE_S


def reset_peak(device: str) -> None:
    """Count the card's peak memory from now on."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_mib(device: str) -> float | None:
    """Allocated on the card at most, weights included; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None


def release(device: str) -> None:
    """Give the card's memory back, after a batch for which it did not suffice."""
    if device == "cuda":
        torch.cuda.empty_cache()
