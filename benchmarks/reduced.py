"""What `decode: reduced` does to scores and flags, and what it saves.

    python -m benchmarks.reduced [--detector linear]... [--set phantoms]... [--work FOLDER]

Every picture is made into twins, one a form: native, JPEG 2000 lossless and lossy, HTJ2K, JPEG.
A detector fitted and calibrated on whole native frames scores each twin decoded whole and decoded reduced.
Prints the page and writes it to benchmarks/results/reduced.md; what is done already is kept.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from ad_jobs.errors import ImageError
from ad_jobs.evaluation.image_metrics import image_auroc
from ad_jobs.fitting.intent import resolve
from ad_jobs.fitting.loop import Batches, train
from ad_jobs.fitting.split import split_by_group
from ad_jobs.images.decode import decode
from ad_jobs.images.dicom import open_dicom
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.run import versions
from ad_jobs.schema import is_flagged
from ad_jobs.scoring.scorer import Scorer
from ad_jobs.scoring.thresholds import threshold_for_fpr
from ad_jobs.specs import FitSpec
from benchmarks.decode import field, machine
from benchmarks.reduced_pictures import FORMS, MOST, PHANTOM_PX, SETS, Picture, twin
from models.detector import Detector
from models.runtime import Runtime

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "reduced.md"
TIMED_PX = (512, 2048)
INPUTS_PX = (64, 128)
REPEATS = 5
Scores = NDArray[np.float32]
# [c, height_px, width_px].
Pixels = NDArray[np.uint16]


class Comparison(NamedTuple):
    """Scores of pictures decoded whole and reduced, against the spread of calibration's normals."""

    whole: Scores
    reduced: Scores
    spread: float
    threshold: float

    def row(self, anomalous: NDArray[np.bool_]) -> list[str]:
        """Cells: mean, median and largest change by the spread, flags that change, and both areas under the curve."""
        change = (self.reduced - self.whole) / self.spread
        before, after = (is_flagged(scores, self.threshold) for scores in (self.whole, self.reduced))
        areas = [f"{image_auroc(scores, anomalous.astype(int)):.4f}" for scores in (self.whole, self.reduced)]
        return [
            f"{change.mean():+.3f}",
            f"{np.median(np.abs(change)):.3f}",
            f"{np.abs(change).max():.3f}",
            f"{int((before & ~after).sum())} off, {int((~before & after).sum())} on, of {len(change)}",
            " → ".join(areas),
        ]


class Judge(NamedTuple):
    """A fitted detector, how its images are decoded, and what it gave calibration's normals: spread and threshold."""

    kind: str
    detector: Detector
    policy: PixelPolicy
    spread: float
    threshold: float


class _InMemory:
    """Decoded images by position, as a fit reads them."""

    def __init__(self, images: list[Pixels]) -> None:
        self._images = images

    def read(self, positions: Sequence[int]) -> Iterator[Pixels]:
        return (self._images[position] for position in positions)


def fitted(kind: str, normals: list[Picture], calibration: list[Picture]) -> Judge:
    """The detector at its default size, fitted and calibrated on whole native frames, in this process."""
    intent = resolve(FitSpec(detector=kind, normal="pictures", out="nowhere"))
    # No picture here is in colour.
    intent = intent.in_grey() if intent.takes_grey else intent
    images = list(pixels([twin(picture, "native") for picture in normals], intent.policy))
    fit_on, held_out = split_by_group([picture.group for picture in normals], 0)
    detector, runtime = intent.detector(), Runtime(seed=0)
    batches = Batches(detector, runtime, _InMemory(images), {"train": fit_on, "held_out": held_out})
    train(detector, detector.learner(runtime), batches, save=lambda _: None, say=lambda _: None)
    detector.eval()
    others = pixels([twin(picture, "native") for picture in calibration], intent.policy)
    scores = np.array([frame.score for frame in Scorer(detector).score(others)])
    threshold = threshold_for_fpr(scores.astype(np.float32), 0.01).threshold
    return Judge(kind, detector, intent.policy, float(scores.std()), threshold)


def judged(judge: Judge, twins: list[bytes]) -> tuple[Comparison, str]:
    """How a detector's scores of one form change, and by how much its frames were reduced."""
    scorer = Scorer(judge.detector)
    ways = [judge.policy, judge.policy.model_copy(update={"decode": "reduced"})]
    whole, reduced = (
        np.array([frame.score for frame in scorer.score(pixels(twins, policy))], np.float32) for policy in ways
    )
    factors = Counter(open_dicom(data, Limits()).reduction(ways[1]) for data in twins)
    told = ", ".join(f"{factor} ({100 * count / len(twins):.0f} %)" for factor, count in sorted(factors.items()))
    return Comparison(whole, reduced, judge.spread, judge.threshold), told


def is_read(data: bytes) -> bool:
    """Whether the file is decoded at all, whole."""
    try:
        decode(data, policy_of(INPUTS_PX[0], "full"), Limits())
    except ImageError:
        return False
    return True


def pixels(twins: list[bytes], policy: PixelPolicy) -> Iterator[Pixels]:
    """The single frame of each file, as a detector gets it."""
    for data in twins:
        (frame,) = decode(data, policy, Limits()).frames
        yield frame.pixels


def score_lines(sets: list[str], detectors: list[str], work: Path) -> list[str]:
    """The table of scores."""
    lines = [
        "| pictures | detector | form | reduced by | mean change | median | largest | flags | AUROC whole → reduced |",
        "|---|---|---|---|---:|---:|---:|---|---|",
    ]
    for name in sets:
        folder = work / name.replace(" ", "-")
        left = [detector for detector in detectors if not (folder / f"{detector}.md").exists()]
        if left:
            folder.mkdir(parents=True, exist_ok=True)
            normals, calibration, tested = SETS[name]()
            anomalous = np.array([picture.anomalous for picture in tested])
            forms = {form: [twin(picture, form) for picture in tested] for form in FORMS}
            for detector in left:
                judge = fitted(detector, normals, calibration)
                rows = [form_line(name, judge, form, twins, anomalous) for form, twins in forms.items()]
                (folder / f"{detector}.md").write_text("\n".join(rows))
        for detector in detectors:
            lines += (folder / f"{detector}.md").read_text().splitlines()
    return lines


def form_line(name: str, judge: Judge, form: str, twins: list[bytes], anomalous: NDArray[np.bool_]) -> str:
    """The table's row of one form."""
    read = np.array([is_read(data) for data in twins])
    comparison, factors = judged(judge, [data for data, whole in zip(twins, read, strict=True) if whole])
    line = f"| {' | '.join([name, judge.kind, form, factors, *comparison.row(anomalous[read])])} |"
    print(line, flush=True)
    return line


def time_lines(work: Path) -> list[str]:
    """The table of milliseconds."""
    done = work / "times.md"
    if done.exists():
        return done.read_text().splitlines()
    lines = [
        f"| frame | whole ms | {' | '.join(f'for {side} px ms' for side in INPUTS_PX)} |",
        f"|---|---:|{'---:|' * len(INPUTS_PX)}",
    ]
    for size in TIMED_PX:
        for form, data in timed_files(size):
            whole = cpu_ms(data, policy_of(INPUTS_PX[-1], "full"))
            times = [cpu_ms(data, policy_of(side, "reduced")) for side in INPUTS_PX]
            lines.append(f"| {form}, {size} x {size} | {' | '.join(f'{ms:.1f}' for ms in (whole, *times))} |")
    work.mkdir(parents=True, exist_ok=True)
    done.write_text("\n".join(lines))
    return lines


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


TOP = """\
# Decoding at the size that the detector sees

{machine}; Python {versions[python]}, imagecodecs {imagecodecs}; load average {load:.1f} when this was written, by
`python -m benchmarks.reduced`.

## Milliseconds

From a file's bytes to the input, CPU time of one thread, least of {repeats}; a smooth field with grain, 12 bits, of
JPEG 8.

"""
SCORES = """
## Scores and flags

Each detector at its default size and preset, fitted on whole native frames (seed 0), scores every twin whole and
reduced: the change is that of the same twin, by the standard deviation of what other normals of the training split
score, which the threshold, 1 % false positives, is set by as well.
`off` were flagged and no longer are, `on` the other way round. Native frames cannot be reduced: nothing changes.
J2K lossy and JPEG have 45 dB and quality 90; of phantoms, JPEG has the upper 8 of 12 bits.
Sets are cut: at most {fit} normals to fit on, {calibration} for spread and threshold, which that makes rough, and
{normal} normal and {anomalous} anomalous ones to judge; areas under the curve of so few tell nothing by themselves.
A form of which fewer are judged than of the others has some that are refused whole, too, and left out.
`doubled`: enlarged by bicubic interpolation, which gives them less detail than pictures acquired at that size have, so
that reducing loses less; phantoms are made at {phantom} px, with the grain of their scanners.

"""


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", action="append", help="repeatable; linear and padim by default")
    parser.add_argument("--set", action="append", choices=SETS, help="repeatable; all by default")
    parser.add_argument("--work", type=Path, default=Path("build/reduced"), help="keeps what is done")
    asked = parser.parse_args()
    work = asked.work.resolve()
    scores = score_lines(asked.set or list(SETS), asked.detector or ["linear", "padim"], work)
    times = time_lines(work)
    top = TOP.format(
        machine=machine(),
        versions=versions(),
        imagecodecs=imagecodecs.__version__,
        load=os.getloadavg()[0],
        repeats=REPEATS,
    )
    cut = SCORES.format(**MOST._asdict(), phantom=PHANTOM_PX)
    missing = [name for name in SETS if not any(line.startswith(f"| {name} |") for line in scores)]
    left_out = f"\nNot run: {', '.join(missing)}.\n" if missing else ""
    text = top + "\n".join(times) + "\n" + cut + "\n".join(scores) + "\n" + left_out
    print(text)
    RESULT.write_text(text)


if __name__ == "__main__":
    main()
