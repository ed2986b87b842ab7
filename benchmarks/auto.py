"""How well `fit --detector auto` chooses: candidates judged by synthetic defects, beside what they find of real ones.

    python -m benchmarks.auto [--only NAME ...] [--kinds linear padim ...] [--seed 1] [--work FOLDER]

Each is fitted in this process as `fit` does, kept in FOLDER, and judged as auto judges it, once.
What it finds of real anomalies is that of benchmarks/quality.py with the same seed, or of the digits measured here.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from ad_jobs.evaluation.image_metrics import image_auroc
from ad_jobs.evaluation.labels import read_labels
from ad_jobs.fitting.choosing import RULE, Option, chosen, fusion_of
from ad_jobs.fitting.cost import score_cpu_ms
from ad_jobs.fitting.loop import Batches, train
from ad_jobs.fitting.synthetic import Judged, judge
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.run import machine
from ad_jobs.scoring.scorer import Scorer
from benchmarks.datasets import Lists, lists
from benchmarks.held_out import Decoded, decoded, split
from benchmarks.quality import slug
from benchmarks.quality_page import RESULTS
from models import artifact, registry
from models.detector import InputSpec
from models.runtime import Runtime

# As quality.py names them.
KINDS = {
    "linear": "Linear",
    "padim": "PaDiM",
    "knn": "Patch memory",
    "pmad": "PMAD",
    "fyd": "FYD",
    "mkd": "MKD, EfficientNet-Lite0",
    "ssm": "SSM",
}
# The judge's sizes and strengths of defects were chosen on these; the others are a test of that.
CHOSEN_ON = ("br35h", "elpv")
SETS = (*CHOSEN_ON, "phantom", "deeppcb", "br35h, turned", "phantom, turned")
DIGITS = (1, 5, 8)
NORMAL, TESTED = 500, 200
# The largest of the candidates' inputs.
SIDE = 128
FOLDER = RESULTS / "auto"


class Stack:
    """Decoded images in memory, as a fit reads them."""

    def __init__(self, images: Sequence[Decoded]) -> None:
        self._pixels = [image.pixels for image in images]

    def read(self, positions: Sequence[int]) -> Iterator[NDArray[np.uint16]]:
        return (self._pixels[position] for position in positions)


def sets(mnist: str) -> dict[str, dict[str, Any]]:
    """The data sets by name."""
    plan = yaml.safe_load((Path(__file__).parent / "quality.yaml").read_text())["data"]
    digits = {"kind": "digits", "root": mnist, "normal": NORMAL, "tested": TESTED}
    return {name: plan[name] for name in SETS} | {f"digit {digit}": {**digits, "digit": digit} for digit in DIGITS}


def fitted(kind: str, given: Lists, seed: int, folder: Path) -> float | None:
    """A candidate in `folder`, fitted unless it is there; its seconds, if it was fitted now."""
    if (folder / "detector.json").exists():
        return None
    entry, preset = registry.entry(kind), registry.preset(kind, "fast")
    height, width = preset.size_px
    images = decoded(given.normal, PixelPolicy(channels=3, height_px=height, width_px=width), Limits())
    grey = entry.takes_grey and all(len(image.pixels) == 1 for image in images)
    policy = PixelPolicy(channels=1 if grey else 3, height_px=height, width_px=width)
    torch.manual_seed(seed)
    spec = InputSpec(channels=policy.channels, height_px=height, width_px=width)
    detector = registry.create(kind, registry.configure(kind, dict(preset.options)), spec)
    fit_on, held_out = split(images, seed)
    positions = {"train": list(range(len(fit_on))), "held_out": list(range(len(fit_on), len(images)))}
    start = time.perf_counter()
    runtime = Runtime(seed=seed)
    batches = Batches(detector, runtime, Stack(fit_on + held_out), positions)
    train(detector, detector.learner(runtime), batches, save=lambda _: None, say=lambda _: None)
    artifact.save(folder, kind, detector.eval(), policy.model_dump(mode="json"), {})
    return round(time.perf_counter() - start, 1)


def found_of_real(kind: str, name: str, seed: int, given: Lists, folder: Path) -> float:
    """Image AUROC on the set's labelled images: stored by quality.py, or measured of the digits."""
    stored = RESULTS / "quality" / f"{slug(KINDS[kind])}--{slug(name)}--seed-{seed}.json"
    if stored.exists():
        return float(json.loads(stored.read_text())["image_auroc"])
    found = artifact.load(folder)
    archive = decoded(given.archive, PixelPolicy.model_validate(found.record["policy"]), Limits())
    labels = read_labels(str(given.labels)).table.set_index("uri")["anomalous"]
    scores = [one.score for one in Scorer(found.detector).score(image.pixels for image in archive)]
    auroc = image_auroc(np.array(scores), labels.loc[[image.uri for image in archive]].to_numpy(bool))
    assert auroc is not None
    return auroc


def cell(kind: str, name: str, seed: int, given: Lists, folder: Path) -> dict[str, Any]:
    """A candidate fitted and judged: what its file keeps."""
    seconds = fitted(kind, given, seed, folder)
    detector = artifact.load(folder).detector
    normal = decoded(given.normal, PixelPolicy(channels=3, height_px=SIDE, width_px=SIDE), Limits())
    _, held_out = split(normal, seed)
    judged = judge([detector], [image.pixels for image in held_out], seed=seed)
    return {
        "detector": kind,
        "data": name,
        "seed": seed,
        "real": found_of_real(kind, name, seed, given, folder),
        "seconds": seconds,
        "score_cpu_ms": score_cpu_ms(detector),
        "kinds": judged.kinds,
        "normal": rounded(judged.normal[:, 0]),
        "defective": rounded(judged.defective[:, :, 0]),
        "machine": machine(),
    }


def rounded(scores: NDArray[np.float64]) -> Any:
    """The scores to six digits, as lists."""
    return np.vectorize(lambda score: float(f"{score:.6g}"))(scores).tolist()


def option(found: dict[str, Any]) -> Option:
    """A stored candidate as auto chooses among them."""
    normal, defective = (np.array(found[name])[..., None] for name in ("normal", "defective"))
    return Option(found["detector"], Judged(tuple(found["kinds"]), normal, defective), found["score_cpu_ms"])


def rank_agreement(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's tau-b of two orders."""
    from scipy.stats import kendalltau

    return float(kendalltau(one, other).statistic)


def write_page() -> None:
    """benchmarks/results/auto.md from the stored candidates."""
    cells = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    by_set: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for one in cells:
        by_set.setdefault((one["data"], one["seed"]), []).append(one)
    order = [*SETS, *(f"digit {digit}" for digit in DIGITS)]
    rows, details = [], []
    for (name, seed), found in sorted(by_set.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
        # Alone it is no choice.
        if len(found) < 2:
            continue
        real = {one["detector"]: one["real"] for one in found}
        options = {one["detector"]: option(one) for one in found}
        kept = chosen(list(options.values()))
        best = max(real, key=real.__getitem__)
        tau = rank_agreement([real[kind] for kind in real], [options[kind].found for kind in real])
        fusion = fusion_of(list(options.values()))
        more = "–" if fusion is None else f"{fusion.name.removeprefix('fused-')} {fusion.found:.3f}"
        rows.append(
            f"| {name}{' (chosen on)' if name in CHOSEN_ON else ''} | {seed} | {len(found)} | {kept.name} | "
            f"{real[kept.name]:.3f} | {best} | {real[best]:.3f} | {real[best] - real[kept.name]:.3f} | {tau:.2f} | "
            f"{more} |"
        )
        for kind in sorted(real, key=lambda kind: -real[kind]):
            of_kinds = options[kind].judged.auroc()[:, 0]
            details.append(
                f"| {name} | {seed} | {kind} | {real[kind]:.3f} | {options[kind].found:.3f} | "
                + " | ".join(f"{value:.3f}" for value in of_kinds)
                + f" | {options[kind].score_cpu_ms:.1f} |"
            )
    kinds = cells[0]["kinds"]
    text = [
        "# How well auto chooses",
        "",
        f"What is kept is, {RULE}.",
        "Sizes and strengths of the defects were chosen on the sets that are marked; the others are a test of them.",
        "Real: image AUROC on the labelled images (quality.md, the same seed; digits of MNIST: "
        f"{NORMAL} normal images, {TESTED} of the digit and {TESTED} others judged).",
        "Loss: what the best candidate's is above that of the one that is kept. Tau: Kendall's rank agreement of all.",
        "The last column is the fusion that finds most synthetic defects, and how much.",
        f"{cells[0]['machine']['cpu']}, one thread.",
        "",
        "| data | seed | candidates | kept | real | best | real | loss | tau | fusion |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "## Candidates",
        "",
        "AUROC by real anomalies, by synthetic defects, and by each kind of these.",
        "",
        f"| data | seed | detector | real | found | {' | '.join(kinds)} | score ms |",
        "|" + "---|" * (6 + len(kinds)),
        *details,
    ]
    (RESULTS / "auto.md").write_text("\n".join(text) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="data sets by name; by default all")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mnist", default="../shared/data/mnist/mnist.npz")
    parser.add_argument("--work", type=Path, default=Path("build/auto"), help="folder for lists and models")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    work, seed = arguments.work.resolve(), arguments.seed
    for name, data in sets(arguments.mnist).items():
        if arguments.only and name not in arguments.only:
            continue
        given = lists(data, work / "lists" / slug(name), seed)
        for kind in arguments.kinds:
            path = FOLDER / f"{kind}--{slug(name)}--seed-{seed}.json"
            if not path.exists():
                found = cell(kind, name, seed, given, work / slug(name) / f"seed-{seed}" / kind)
                path.write_text(json.dumps(found) + "\n")
                print(path.name, round(found["real"], 3), round(option(found).found, 3), flush=True)
    write_page()


if __name__ == "__main__":
    main()
