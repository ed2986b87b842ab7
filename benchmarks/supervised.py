"""What a few anomalous images are worth to a classifier: a mark to hold Cycle-GAN AD's figures against.

    python -m benchmarks.supervised [--anomalous 20] [--anomalous 100] ...

A detector that learns from anomalous images can be beaten by a classifier that learns from the same. Two of them, on brains
(br35h) at 64 px, split by group: Cycle-GAN AD's own discriminator, taught to tell normal images from anomalous ones as it is in
a fit (least squares, the same augmentation), and a logistic regression on what EfficientNet-Lite0 sees. Only the groups of
br35h_development.csv and the normal images of the training split are used, never what quality.yaml judges. Accuracy-max
counts the classes in the proportion of quality.yaml's test images.
"""

from __future__ import annotations

import argparse
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ad_jobs import ranking
from ad_jobs.images.decode import decode, to_input
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.run import machine, versions
from benchmarks.datasets import read_rows
from models.backbones import LITE0, Backbone
from models.cyclegan import CycleGANConfig, Discriminator, decay, is_fake, is_real, turned, varied, ways

HERE = Path(__file__).parent
ROOT = HERE.parent.parent / "shared" / "data"
SIZE = 64
JUDGED_NORMALS = 160  # at least, whole groups
TEST = (767, 1063)  # normal and anomalous test images of quality.yaml
STEPS, BATCH, RATE = 800, 16, 5e-4
VIEWS = 24  # of an anomalous image, for the regression


class Sets(NamedTuple):
    """Images float32 [N, 1, SIZE, SIZE] in [0, 1]."""

    normal: Tensor
    anomalous: Tensor
    judged: Tensor
    labels: NDArray[np.int64]


def sets(anomalous: int, seed: int) -> Sets:
    """So many anomalous images to learn from and all others to judge, whole groups, drawn by `seed`."""
    groups = {row["image"]: row["group"] for row in read_rows(ROOT / "br35h" / "labels.csv")}
    chosen = {row["group"] for row in read_rows(HERE / "br35h_development.csv")}
    rows = list(read_rows(ROOT / "splits" / "br35h.csv"))
    normals = [row["image"] for row in rows if row["split"] == "train"]
    tumours = [row["image"] for row in rows if row["anomalous"] == "1" and groups[row["image"]] in chosen]
    draw = np.random.default_rng(seed)
    judged, learned = _divide(normals, groups, draw, JUDGED_NORMALS, or_more=True)
    shown, others = _divide(tumours, groups, draw, anomalous, or_more=False)
    labels = np.array([0] * len(judged) + [1] * len(others))
    return Sets(_images(learned), _images(shown), _images(judged + others), labels)


def _divide(
    names: list[str], groups: dict[str, str], draw: np.random.Generator, count: int, *, or_more: bool
) -> tuple[list[str], list[str]]:
    """Whole groups of about `count` images, and the others."""
    by_group = [
        list(found) for _, found in groupby(sorted(names, key=groups.__getitem__), groups.__getitem__)
    ]
    first: list[str] = []
    rest: list[str] = []
    for number in draw.permutation(len(by_group)):
        fits = len(first) < count and (or_more or len(first) + len(by_group[number]) <= count)
        (first if fits else rest).extend(by_group[number])
    return first, rest


def _images(names: list[str]) -> Tensor:
    policy, limits = PixelPolicy(channels=1, height_px=SIZE, width_px=SIZE), Limits()
    decoded = (decode((ROOT / "br35h" / name).read_bytes(), policy, limits).frames[0] for name in names)
    return torch.from_numpy(np.stack([to_input(frame.pixels, 1) for frame in decoded]))


def augmented(images: Tensor, draw: torch.Generator) -> Tensor:
    """As a fit of Cycle-GAN AD augments by default."""
    config = CycleGANConfig()
    drawn_B5 = 2 * torch.rand(len(images), 5, generator=draw) - 1
    oriented = turned(images, ways(len(images), config.augment, draw))
    return varied(oriented, drawn_B5, zoom=config.zoom, shift=config.shift, contrast=config.contrast)


def by_discriminator(data: Sets, seed: int) -> NDArray[np.float64]:
    """Scores of a discriminator that was shown normal images as fakes and anomalous ones as real."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    judge = Discriminator(1, CycleGANConfig().ndf)
    optimizer = torch.optim.Adam(judge.parameters(), lr=RATE, betas=(0.5, 0.999))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * decay(step, STEPS, 0.5)
        normal, anomalous = (
            2 * augmented(images[torch.randint(len(images), (BATCH,), generator=draw)], draw) - 1
            for images in (data.normal, data.anomalous)
        )
        loss = is_fake(judge(normal)).mean() + is_real(judge(anomalous)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return (
            torch.cat([judge(2 * part - 1).mean((1, 2, 3)) for part in data.judged.split(64)])
            .double()
            .numpy()
        )


def by_regression(data: Sets, seed: int) -> NDArray[np.float64]:
    """Log-odds by what EfficientNet-Lite0 sees at 128 px: means and maxima of four of its maps."""
    backbone = Backbone(LITE0, (2, 3, 4, 5), "package")
    draw = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def features(images: Tensor) -> NDArray[np.float32]:
        found = []
        for part in images.split(64):
            larger = F.interpolate(part, scale_factor=2, mode="bilinear").expand(-1, 3, -1, -1)
            found.append(
                torch.cat([torch.cat([tap.mean((2, 3)), tap.amax((2, 3))], 1) for tap in backbone(larger)], 1)
            )
        return torch.cat(found).numpy()

    normal = [features(data.normal), features(augmented(data.normal, draw))]
    anomalous = [
        features(data.anomalous),
        *(features(augmented(data.anomalous, draw)) for _ in range(VIEWS)),
    ]
    x, y = (
        np.concatenate(normal + anomalous),
        np.repeat([0, 1], [sum(map(len, normal)), sum(map(len, anomalous))]),
    )
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=1e-2, class_weight="balanced", max_iter=1000)
    )
    scores: NDArray[np.float64] = model.fit(x, y).decision_function(features(data.judged))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--anomalous", type=int, action="append", help="images to learn from")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    lines = []
    for anomalous in args.anomalous or [10, 20, 100]:
        for name, learner in (("discriminator", by_discriminator), ("EfficientNet-Lite0", by_regression)):
            found = []
            for seed in range(args.seeds):
                data = sets(anomalous, seed)
                each = np.divide(TEST, np.bincount(data.labels))[data.labels]
                judged = ranking.histograms(learner(data, seed), data.labels, each)
                found.append((ranking.auroc(judged), ranking.accuracy_max(judged)))
                print(anomalous, name, seed, found[-1], flush=True)
            values = np.array(found, dtype=float)
            spread = [
                f"{m:.3f} ± {s:.3f}" for m, s in zip(values.mean(0), values.std(0, ddof=1), strict=True)
            ]
            lines.append(f"| {name} | {len(data.anomalous)} | {args.seeds} | {' | '.join(spread)} |")
    text = [
        "# Classifiers that learn from a few anomalous images",
        "",
        f"br35h at {SIZE} px, {len(data.normal)} normal images to learn from; judged on {np.bincount(data.labels)[0]} normal and "
        f"(last row) {np.bincount(data.labels)[1]} anomalous images of other groups, none of which quality.yaml judges. "
        f"Accuracy-max is an oracle. {machine()['cpu']}, {torch.get_num_threads()} thread(s), torch {versions()['torch']}.",
        "",
        "| classifier | anomalous images | seeds | image AUROC | accuracy-max |",
        "|---|---|---|---|---|",
        *lines,
    ]
    (HERE / "results" / "supervised.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
