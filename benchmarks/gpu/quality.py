"""Fits on the card and what they find: PaDiM as on the CPU, and the papers' scales cut to the time there is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.fits import SEED, create, fit, judged, score
from benchmarks.gpu.pictures import Pictures, load
from benchmarks.gpu.stages import Bench, Clock
from models import registry
from models.backbones import LITE0
from models.detector import Detector, Phase
from models.runtime import Runtime

PAPER_KINDS = ("ssm", "mkd", "fyd", "pmad")
# Passes of each phase from which the length of all is told: the first one fills caches and plans.
PROBE = 3
# Of the time left for a fit, as it may take longer than was told.
USED = 0.85
PROBE_IMAGES = 64


def run_padim(bench: Bench, clock: Clock) -> None:
    """One result a data set: seconds and metrics of PaDiM at its defaults."""
    for name in ("br35h", "elpv"):
        if clock.left() <= 0:
            bench.write("padim", data=name, skipped="no time left")
            continue
        bench.guard("padim", partial(_padim, bench, name), data=name)


def _padim(bench: Bench, name: str) -> None:
    size_px = bench.size_px(registry.preset("padim", "fast").size_px[0])
    train, test = _data(bench, name, size_px)
    detector = create("padim", size_px, {}, bench.weights)
    done = fit(detector, bench.device, train)
    found = judged(detector, bench.device, train, done.held_out, test)
    bench.write("padim", data=name, size_px=size_px, fitted_on=done.fitted_on, fit_s=done.seconds, **found)


def run_paper(bench: Bench, clock: Clock) -> None:
    """One result a detector: its paper's preset, the epochs cut so that the fit ends in its share of the time."""
    kinds = bench.chosen(PAPER_KINDS)
    for number, kind in enumerate(kinds):
        share = clock.share(len(kinds) - number)
        if share.left() < (1 if bench.small else 15):
            bench.write("paper", kind=kind, skipped="no time left")
            continue
        bench.guard("paper", partial(_paper, bench, share, kind), kind=kind)


def _paper(bench: Bench, share: Clock, kind: str) -> None:
    preset = registry.preset(kind, "paper")
    size_px = bench.size_px(preset.size_px[0])
    options, changed = with_lite0(preset.options)
    if bench.small and "width" in options:
        options["width"] = 8
    train, test = _data(bench, "br35h", size_px)
    probe = create(kind, size_px, options | cut(options, 0.0, 1 if bench.small else PROBE), bench.weights)
    probed = fit(probe, bench.device, train)
    scoring_s = _scoring_s(bench, probe, test)
    whole = create(kind, size_px, options, bench.weights)
    learner = whole.learner(Runtime(device=torch.device(bench.device), seed=SEED))
    whole_s = needed_s(learner.phases, probed.epoch_s)
    del probe, whole, learner
    part = 0.0 if bench.small else (USED * share.left() - scoring_s) / whole_s
    epochs = cut(options, part, 1)
    detector = create(kind, size_px, options | epochs, bench.weights)
    done = fit(detector, bench.device, train)
    found = judged(detector, bench.device, train, done.held_out, test)
    bench.write(
        "paper",
        kind=kind,
        size_px=size_px,
        data="br35h",
        fitted_on=done.fitted_on,
        epochs=epochs,
        paper_epochs={name: options[name] for name in epochs},
        changed=changed,
        whole_fit_s=whole_s,
        fit_s=done.seconds,
        **found,
    )


def _scoring_s(bench: Bench, detector: Detector, test: Pictures) -> float:
    """How long the scoring of all of `test` will take."""
    some = Pictures(test.pixels[:PROBE_IMAGES], test.anomalous[:PROBE_IMAGES], test.group[:PROBE_IMAGES])
    start = time.perf_counter()
    score(detector, bench.device, some)
    return (time.perf_counter() - start) * len(test.pixels) / len(some.pixels)


def with_lite0(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A preset's options with the one backbone whose weights are there, and what was left out or changed for it.

    As many channels as a wide network has are not to be had of EfficientNet-Lite0, so `dims` falls back too.
    """
    if "backbone" not in options:
        return dict(options), {}
    changed = {name: options[name] for name in ("backbone", "dims") if name in options}
    kept = {name: value for name, value in options.items() if name not in changed}
    return kept | {"backbone": LITE0}, changed


def cut(options: Mapping[str, Any], part: float, least: int) -> dict[str, int]:
    """Of every number of epochs in `options` this part, and at least so many, but never more than there are."""
    counts = {name: least for name in ("epochs", "align_epochs") if name in options}
    # Epochs among these, not besides them.
    counts |= {"warmup": 1} if "warmup" in options else {}
    return {name: min(options[name], max(count, int(part * options[name]))) for name, count in counts.items()}


def needed_s(phases: tuple[Phase, ...], epoch_s: Mapping[str, list[float]]) -> float:
    """Seconds of all phases, if every epoch takes as long as the last that was measured of its phase."""
    return sum(phase.epochs * epoch_s[phase.name][-1] for phase in phases)


def _data(bench: Bench, name: str, size_px: int) -> tuple[Pictures, Pictures]:
    """Training and test images."""
    at_most = 8 if bench.small else None
    return load(bench.pack, name, "train", size_px, at_most), load(bench.pack, name, "test", size_px, at_most)
