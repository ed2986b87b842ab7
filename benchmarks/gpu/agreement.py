"""Whether the CPU and the card give the same scores, for every detector at its defaults, shortly fitted."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from ad_jobs.schema import is_flagged
from ad_jobs.scoring.thresholds import threshold_for_fpr
from benchmarks.gpu.fits import MAX_FPR, create, fit, score, short
from benchmarks.gpu.pictures import Pictures, load
from benchmarks.gpu.stages import Bench, Clock
from models import registry

# What the product promises of an image score, as ad_jobs.verify checks it: relative above 1, absolute below.
TOLERANCE = 1e-5


def run(bench: Bench, clock: Clock) -> None:
    """One result a kind: the largest differences, and whether scores and flags are the same."""
    for kind in bench.chosen(registry.DETECTORS):
        if clock.left() <= 0:
            bench.write("agreement", kind=kind, skipped="no time left")
            continue
        bench.guard("agreement", partial(_compare, bench, kind), kind=kind)


def _compare(bench: Bench, kind: str) -> None:
    size_px = bench.size_px(registry.preset(kind, "fast").size_px[0])
    fitted = load(bench.pack, "br35h", "train", size_px, 12 if bench.small else 64)
    test = load(bench.pack, "br35h", "test", size_px, 4 if bench.small else 32)
    needed = registry.entry(kind).needs_anomalous
    if needed:
        more = load(bench.pack, "br35h", "test", size_px, 8 if bench.small else 40)
        fitted = _together(fitted, _anomalous(more, beyond=len(test.pixels) // 2))
    detector = create(kind, size_px, short(kind, 1 if bench.small else 2), bench.weights)
    done = fit(detector, bench.device, fitted)
    there = score(detector, bench.device, test)
    detector.cpu()
    here = score(detector, "cpu", test)
    normal = here.scores[~test.anomalous].astype(np.float32)
    threshold = threshold_for_fpr(normal, MAX_FPR).threshold
    off = np.abs(there.scores - here.scores)
    bench.write(
        "agreement",
        kind=kind,
        size_px=size_px,
        images=len(test.pixels),
        fit_s=done.seconds,
        finite=here.finite and there.finite,
        scores=[float(here.scores.min()), float(here.scores.max())],
        absolute=float(off.max()),
        relative=float((off / np.maximum(np.abs(here.scores), 1e-12)).max()),
        beyond=int((~np.isclose(there.scores, here.scores, rtol=TOLERANCE, atol=TOLERANCE)).sum()),
        flags_differ=int((is_flagged(here.scores, threshold) != is_flagged(there.scores, threshold)).sum()),
        heatmap_share=_share(there.heatmaps, here.heatmaps),
    )


def _share(there: NDArray[np.float32], here: NDArray[np.float32]) -> float:
    """The largest difference of heatmaps, as a share of the largest value."""
    return float(np.abs(there - here).max() / max(float(np.abs(here).max()), 1e-12))


def _anomalous(pictures: Pictures, beyond: int) -> Pictures:
    """The anomalous images of `pictures` without the first so many, which are scored."""
    places = np.flatnonzero(pictures.anomalous)[beyond:].tolist()
    return Pictures(
        [pictures.pixels[n] for n in places], pictures.anomalous[places], [pictures.group[n] for n in places]
    )


def _together(first: Pictures, second: Pictures) -> Pictures:
    return Pictures(
        first.pixels + second.pixels, np.concatenate([first.anomalous, second.anomalous]), first.group + second.group
    )
