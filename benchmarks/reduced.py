"""What `decode: reduced` does to scores and flags, and what it saves.

    python -m benchmarks.reduced [--detector linear]... [--set phantoms]...

Every picture is made into twins, one a form: native, JPEG 2000 lossless and lossy, HTJ2K, JPEG.
A detector fitted and calibrated on whole native frames scores each twin decoded whole and decoded reduced.
Normals are cross-fitted: each third of them is judged once, by a detector that another third was the fit of, and
with the threshold of the remaining one.
What is measured lies in benchmarks/results/reduced/, a file for each set and detector, and is not measured again; the
page, benchmarks/results/reduced.md, is written anew from all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ad_jobs.errors import ImageError
from ad_jobs.evaluation.image_metrics import image_auroc
from ad_jobs.fitting.intent import resolve
from ad_jobs.fitting.loop import Batches, train
from ad_jobs.fitting.split import split_by_group
from ad_jobs.images.decode import decode, decode_each
from ad_jobs.images.dicom import open_dicom
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.schema import is_flagged
from ad_jobs.scoring.scorer import Scorer
from ad_jobs.scoring.thresholds import threshold_for_fpr
from ad_jobs.specs import FitSpec
from benchmarks.decode import field
from benchmarks.reduced_page import DETECTORS, RESULTS, TIMES, write_page
from benchmarks.reduced_pictures import FORMS, SETS, Picture, twin
from models.detector import Detector
from models.runtime import Runtime

TIMED_PX = (512, 2048)
INPUTS_PX = (64, 128)
REPEATS = 5
FOLDS = 3
MAX_FPR = 0.01
# [c, height_px, width_px].
Pixels = NDArray[np.uint16]


class Twins(NamedTuple):
    """One form of a set's pictures at one size of the input, decoded whole and reduced: [n, 1, side_px, side_px].

    `factor` is by how much each was reduced, 0 where it is not read at all.
    """

    whole: NDArray[np.uint16]
    reduced: NDArray[np.uint16]
    factor: NDArray[np.int64]


class Decoded(NamedTuple):
    """A set's pictures: what they are, and their twins by form and the input's side."""

    groups: list[str]
    anomalous: NDArray[np.bool_]
    twins: dict[tuple[str, int], Twins]


class Judge(NamedTuple):
    """A fitted detector, and what it gave calibration's normals: their spread and the threshold."""

    detector: Detector
    spread: float
    threshold: float

    def scores(self, images: NDArray[np.uint16]) -> NDArray[np.float32]:
        return np.array([frame.score for frame in Scorer(self.detector).score(images)], np.float32)


def decoded(name: str, work: Path) -> Decoded:
    """All twins of a set, decoded once and kept below `work`."""
    kept = work / f"{name.replace(' ', '-')}.npz"
    if not kept.exists():
        work.mkdir(parents=True, exist_ok=True)
        _decode_set(name, kept)
    with np.load(kept) as held:
        twins = {
            (form, side): Twins(*(held[f"{form}/{side}/{part}"] for part in Twins._fields))
            for form in FORMS
            for side in INPUTS_PX
        }
        return Decoded(held["groups"].tolist(), held["anomalous"], twins)


def _decode_set(name: str, kept: Path) -> None:
    groups, anomalous = [], []
    found: dict[str, list[Any]] = {
        f"{form}/{side}/{p}": [] for form in FORMS for side in INPUTS_PX for p in Twins._fields
    }
    for picture in SETS[name].pictures():
        groups.append(picture.group)
        anomalous.append(picture.anomalous)
        for form in FORMS:
            for side, twins in _decode_twin(twin(picture, form)).items():
                for part, value in twins._asdict().items():
                    found[f"{form}/{side}/{part}"].append(value)
    arrays = {place: np.stack(values) for place, values in found.items()}
    np.savez(kept, groups=np.array(groups), anomalous=np.array(anomalous), **arrays)


def _decode_twin(data: bytes) -> dict[int, Twins]:
    """The single frame of a file for each size of the input."""
    policies = [policy_of(side, how) for side in INPUTS_PX for how in ("full", "reduced")]
    try:
        frames = [one.frames[0].pixels for one in decode_each(data, policies, Limits())]
    except ImageError:
        none = {side: np.zeros((1, side, side), np.uint16) for side in INPUTS_PX}
        return {side: Twins(none[side], none[side], np.int64(0)) for side in INPUTS_PX}
    picture = open_dicom(data, Limits())
    return {
        side: Twins(*frames[2 * n : 2 * n + 2], np.int64(picture.reduction(policies[2 * n + 1])))
        for n, side in enumerate(INPUTS_PX)
    }


def folds(groups: Sequence[str]) -> list[list[int]]:
    """Positions in thirds, whole groups, drawn by seed."""
    names = sorted(set(groups))
    third = {names[n]: place % FOLDS for place, n in enumerate(np.random.default_rng(0).permutation(len(names)))}
    return [[i for i, group in enumerate(groups) if third[group] == part] for part in range(FOLDS)]


class _InMemory:
    """Decoded images by position, as a fit reads them."""

    def __init__(self, images: NDArray[np.uint16]) -> None:
        self._images = images

    def read(self, positions: Sequence[int]) -> Iterator[Pixels]:
        return (self._images[position] for position in positions)


def side_of(kind: str) -> int:
    """The side of a detector's input at its default size."""
    return resolve(FitSpec(detector=kind, normal="pictures", out="nowhere")).policy.height_px


def fitted(kind: str, images: NDArray[np.uint16], groups: list[str], calibration: NDArray[np.uint16]) -> Judge:
    """The detector at its default size, fitted and calibrated in this process."""
    intent = resolve(FitSpec(detector=kind, normal="pictures", out="nowhere"))
    # No picture here is in colour.
    intent = intent.in_grey() if intent.takes_grey else intent
    fit_on, held_out = split_by_group(groups, 0)
    detector, runtime = intent.detector(), Runtime(seed=0)
    batches = Batches(detector, runtime, _InMemory(images), {"train": fit_on, "held_out": held_out})
    train(detector, detector.learner(runtime), batches, save=lambda _: None, say=lambda _: None)
    detector.eval()
    scores = Judge(detector, 0, 0).scores(calibration)
    return Judge(detector, float(scores.std()), threshold_for_fpr(scores, MAX_FPR).threshold)


def measured(name: str, kind: str, found: Decoded) -> dict[str, Any]:
    """What reducing does to one detector's scores of one set, by form."""
    side, normal = side_of(kind), np.flatnonzero(~found.anomalous)
    native = found.twins["native", side].whole
    thirds = folds([found.groups[i] for i in normal])
    parts: dict[str, list[dict[str, NDArray[Any]]]] = {form: [] for form in FORMS}
    for number, third in enumerate(thirds):
        calibrate_on, fit_on = (normal[thirds[(number + ahead) % FOLDS]] for ahead in (1, 2))
        judge = fitted(kind, native[fit_on], [found.groups[i] for i in fit_on], native[calibrate_on])
        # Anomalous ones were in no fit: all thirds' judges look at them.
        judged = np.concatenate([normal[third], np.flatnonzero(found.anomalous)])
        for form in FORMS:
            parts[form].append(_scored(judge, found.twins[form, side], judged, found.anomalous))
    forms = {form: _summary(of_form) for form, of_form in parts.items()}
    sizes = [len(third) for third in thirds]
    return {"set": name, "of": SETS[name].of, "detector": kind, "side_px": side, "folds": sizes, "forms": forms}


def _scored(judge: Judge, twins: Twins, judged: NDArray[np.int64], anomalous: NDArray[np.bool_]) -> dict[str, Any]:
    """One judge's scores of those that are read, and flags; `change` is in spreads of calibration's normals."""
    read = judged[twins.factor[judged] > 0]
    whole = judge.scores(twins.whole[read])
    reduced, smaller = whole.copy(), twins.factor[read] > 1
    if smaller.any():
        reduced[smaller] = judge.scores(twins.reduced[read][smaller])
    labels = anomalous[read]
    return {
        "anomalous": labels,
        "factor": twins.factor[read],
        "change": (reduced - whole) / judge.spread,
        "before": is_flagged(whole, judge.threshold),
        "after": is_flagged(reduced, judge.threshold),
        "areas": np.array([image_auroc(scores, labels.astype(int)) for scores in (whole, reduced)]),
        "refused": np.array([len(judged) - len(read)]),
    }


def _summary(parts: list[dict[str, Any]]) -> dict[str, Any]:
    areas = np.mean([part["areas"] for part in parts], axis=0).tolist()
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "areas"}
    factors, counts = np.unique(joined["factor"], return_counts=True)
    smaller = joined["factor"] > 1
    normal, change = smaller & ~joined["anomalous"], np.abs(joined["change"][smaller])
    off, on = joined["before"] & ~joined["after"], ~joined["before"] & joined["after"]
    return {
        "factors": dict(zip(map(str, factors.tolist()), counts.tolist(), strict=True)),
        "refused": int(joined["refused"].sum()),
        # Of what was reduced.
        "normals": int(normal.sum()),
        "normals_flagged": int((normal & joined["before"]).sum()),
        "off": int((off & normal).sum()),
        "on": int((on & normal).sum()),
        "anomalous": int((smaller & joined["anomalous"]).sum()),
        "anomalous_changed": int(((off | on) & smaller & joined["anomalous"]).sum()),
        "mean": float(joined["change"][smaller].mean()) if smaller.any() else 0.0,
        "median": float(np.median(change)) if smaller.any() else 0.0,
        "p99": float(np.quantile(change, 0.99)) if smaller.any() else 0.0,
        "largest": float(change.max()) if smaller.any() else 0.0,
        "auroc": areas,
    }


def times() -> dict[str, Any]:
    """Milliseconds of CPU from a file's bytes to the input."""
    rows = []
    for size in TIMED_PX:
        for form, data in timed_files(size):
            whole = cpu_ms(data, policy_of(INPUTS_PX[-1], "full"))
            reduced = [cpu_ms(data, policy_of(side, "reduced")) for side in INPUTS_PX]
            rows.append({"form": form, "size_px": size, "whole_ms": whole, "reduced_ms": reduced})
    return {"inputs_px": INPUTS_PX, "repeats": REPEATS, "load": os.getloadavg()[0], "rows": rows}


def timed_files(size_px: int) -> Iterator[tuple[str, bytes]]:
    """A smooth field with grain in every form."""
    grey = field(size_px, 1)[..., 0]
    deep = Picture((grey >> 4).astype(np.uint16), 12, "timed", False, {})
    shallow = Picture((grey >> 8).astype(np.uint8), 8, "timed", False, {})
    for form in FORMS:
        yield form, twin(shallow if form == "JPEG" else deep, form)


def policy_of(side_px: int, how: Any) -> PixelPolicy:
    return PixelPolicy(channels=1, height_px=side_px, width_px=side_px, decode=how)


def cpu_ms(data: bytes, policy: PixelPolicy) -> float:
    """The least CPU time from a file's bytes to the detector's input."""

    def once() -> float:
        start = time.process_time()
        decode(data, policy, Limits())
        return 1e3 * (time.process_time() - start)

    return min(once() for _ in range(REPEATS))


def _store(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Measure what is asked and not yet measured, store it, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", action="append", help=f"repeatable; {', '.join(DETECTORS)} by default")
    parser.add_argument("--set", action="append", choices=SETS, help="repeatable; all by default")
    parser.add_argument("--work", type=Path, default=Path("build/reduced"), help="keeps decoded pictures")
    asked = parser.parse_args()
    if not TIMES.exists():
        _store(TIMES, times())
    for kind in asked.detector or DETECTORS:
        for name in asked.set or SETS:
            cell = RESULTS / f"{name.replace(' ', '-')}--{kind}.json"
            if not cell.exists():
                _store(cell, measured(name, kind, decoded(name, asked.work)))
                print(f"{cell.name} after {time.process_time():.0f} s of CPU", flush=True)
                write_page()
    write_page()


if __name__ == "__main__":
    main()
