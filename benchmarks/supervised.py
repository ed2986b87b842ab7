"""What a few anomalous images are worth to a classifier: a mark to hold Cycle-GAN AD's figures against.

    python -m benchmarks.supervised [--anomalous 5] [--anomalous 100] ... [--seeds 5]

A detector that learns from anomalous images can be beaten by a classifier that learns from the same.
Two of them are taught on the images that quality.yaml fits Cycle-GAN AD on and judged on those that it judges (br35h,
by group, at 64 px): Cycle-GAN AD's own discriminator, which tells normal images from anomalous ones as in a fit (least
squares, the same augmentation), and a logistic regression on what EfficientNet-Lite0 sees.
Both see all the anomalous images, of which a fit of Cycle-GAN AD holds some out for its threshold.
Their options were chosen on the groups of br35h_development.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ad_jobs.evaluation import ranking
from ad_jobs.images.decode import decode
from ad_jobs.images.model_input import to_input
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.run import machine, versions
from benchmarks import datasets
from models.backbones import LITE0, Backbone
from models.cyclegan import CycleGANConfig
from models.parts.adversarial import Discriminator, decay, is_fake, is_real
from models.parts.augmentation import augmented

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "supervised"
SIZE = 64
STEPS, BATCH, RATE = 800, 16, 5e-4
# Of an anomalous image, for the regression.
VIEWS = 24


class Sets(NamedTuple):
    """Images float32 [N, 1, SIZE, SIZE] in [0, 1]."""

    normal: Tensor
    anomalous: Tensor
    judged: Tensor
    labels: NDArray[np.int64]


def sets(anomalous: int, seed: int) -> Sets:
    """What a cell of quality.yaml is fitted on and judged on, decoded."""
    data = yaml.safe_load((HERE / "quality.yaml").read_text())["data"][f"br35h, {anomalous} anomalous"]
    lists = datasets.lists(data, BUILD / f"{anomalous}-{seed}", seed)
    assert lists.anomalous is not None
    judged = list(datasets.read_rows(lists.archive))
    labels = np.array([int(row["anomalous"]) for row in judged])
    return Sets(
        *(_images(datasets.read_rows(path)) for path in (lists.normal, lists.anomalous)), _images(judged), labels
    )


def _images(rows: Iterable[dict[str, str]]) -> Tensor:
    policy, limits = PixelPolicy(channels=1, height_px=SIZE, width_px=SIZE), Limits()
    decoded = (decode(Path(row["image"]).read_bytes(), policy, limits).frames[0] for row in rows)
    return torch.from_numpy(np.stack([to_input(frame.pixels, 1) for frame in decoded]))


def by_discriminator(data: Sets, seed: int) -> NDArray[np.float64]:
    """Scores of a discriminator that was shown normal images as fakes and anomalous ones as real."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    config = CycleGANConfig()
    judge = Discriminator(1, config.ndf)
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
        return torch.cat([judge(2 * part - 1).mean((1, 2, 3)) for part in data.judged.split(64)]).double().numpy()


def by_regression(data: Sets, seed: int) -> NDArray[np.float64]:
    """Log-odds by what EfficientNet-Lite0 sees at 128 px: means and maxima of four of its maps."""
    backbone = Backbone(LITE0, (2, 3, 4, 5), "package")
    draw = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def features(images: Tensor) -> NDArray[np.float32]:
        found = []
        for part in images.split(64):
            larger = F.interpolate(part, scale_factor=2, mode="bilinear").expand(-1, 3, -1, -1)
            found.append(torch.cat([torch.cat([tap.mean((2, 3)), tap.amax((2, 3))], 1) for tap in backbone(larger)], 1))
        return torch.cat(found).numpy()

    normal = [features(data.normal), features(augmented(data.normal, draw))]
    anomalous = [features(data.anomalous), *(features(augmented(data.anomalous, draw)) for _ in range(VIEWS))]
    x, y = (np.concatenate(normal + anomalous), np.repeat([0, 1], [sum(map(len, normal)), sum(map(len, anomalous))]))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, class_weight="balanced", max_iter=1000))
    scores: NDArray[np.float64] = model.fit(x, y).decision_function(features(data.judged))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--anomalous", type=int, action="append", help="images to learn from, 30 unless told: as quality.yaml has them"
    )
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    lines = []
    for anomalous in args.anomalous or [30]:
        found: dict[str, list[tuple[float | None, float | None]]] = {"discriminator": [], "EfficientNet-Lite0": []}
        for seed in range(args.seeds):
            data = sets(anomalous, seed)
            for name, learner in (("discriminator", by_discriminator), ("EfficientNet-Lite0", by_regression)):
                judged = ranking.histograms(learner(data, seed), data.labels)
                found[name].append((ranking.auroc(judged), ranking.accuracy_max(judged)))
                print(anomalous, name, seed, found[name][-1], flush=True)
        for name, pairs in found.items():
            values = np.array(pairs, dtype=float)
            spread = [f"{m:.3f} ± {s:.3f}" for m, s in zip(values.mean(0), values.std(0, ddof=1), strict=True)]
            lines.append(f"| {name} | {len(data.anomalous)} | {args.seeds} | {' | '.join(spread)} |")
    text = [
        "# Classifiers that learn from a few anomalous images",
        "",
        f"br35h at {SIZE} px, {len(data.normal)} normal images to learn from; judged on the images that quality.yaml "
        "judges: "
        f"{np.bincount(data.labels)[0]} normal, {np.bincount(data.labels)[1]} anomalous. "
        f"Accuracy-max is an oracle. {machine()['cpu']}, {torch.get_num_threads()} thread(s), torch "
        f"{versions()['torch']}.",
        "",
        "| classifier | anomalous images | seeds | image AUROC | accuracy-max |",
        "|---|---|---|---|---|",
        *lines,
    ]
    (HERE / "results" / "supervised.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
