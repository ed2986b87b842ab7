"""What PMAD's memories are worth, and whether they refuse what is not normal.

    python -m benchmarks.memory

Fits and judges PMAD on br35h and elpv, three seeds, without Ray, with its memories and without them (the same
auto-encoder, of the same latent vector, or of a shorter one), and with half as many.
How far what a memory answers lies from its query (1 - cosine, mean over the parts) is told of held-out normals, of the
same with synthetic defects, and of noise; also before training, where items and queries are random.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from ad_jobs.evaluation.image_metrics import image_auroc
from ad_jobs.evaluation.labels import read_labels
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.results.run import machine, versions
from benchmarks.datasets import lists
from benchmarks.held_out import decoded, split
from benchmarks.linear import stacked
from benchmarks.quality import slug
from benchmarks.quality_page import RESULTS, spread
from models.detector import Batch, InputSpec
from models.parts.defects import KINDS, with_defects
from models.pmad import ALL_WAYS, PMAD, PMADConfig
from models.runtime import Runtime

SIZE = 64
SPEC = InputSpec(channels=1, height_px=SIZE, width_px=SIZE)
POLICY = PixelPolicy(channels=1, height_px=SIZE, width_px=SIZE)
SEEDS = (0, 1, 2)
PLAN = Path(__file__).parent / "quality.yaml"
MODELS: dict[str, dict[str, Any]] = {
    "memories": {},
    "no memory": {"memory": False},
    "no memory, latent of 16": {"memory": False, "latent": 16},
    "half as many memories": {"partitions": 4, "latent": 128},
}
KINDS_OF_IMAGES = ("normal", *KINDS, "noise")


def fitted(config: PMADConfig, train: Tensor, held_out: Tensor, seed: int, *, phases: int | None = None) -> PMAD:
    """PMAD after so many phases of its fit, or all."""
    torch.manual_seed(seed)
    detector = PMAD(config, SPEC)
    learner = detector.learner(Runtime(seed=seed))
    for number, phase in enumerate(learner.phases[:phases]):
        images = held_out if phase.images == "held_out" else train
        learner.start(phase.name)
        for epoch in range(phase.epochs):
            order = torch.from_numpy(np.random.default_rng((seed, number, epoch)).permutation(len(images)))
            for rows in order.split(config.batch_size):
                learner.step(Batch(images[rows], rows))
            learner.end_epoch()
        learner.finish(phase.name)
    return detector.eval()


@torch.no_grad()
def distances(detector: PMAD, held_out: Tensor) -> list[float]:
    """The mean distance of queries and answers, of every kind of images."""
    defects = torch.stack([with_defects(image, number) for number, image in enumerate(held_out)], 1)
    noise = torch.rand(held_out.shape, generator=torch.Generator().manual_seed(0))
    kinds = [held_out, *defects, noise]
    return [float(detector.network(detector.on_grid(images)).distance.mean()) for images in kinds]


def main() -> None:
    plan = yaml.safe_load(PLAN.read_text())["data"]
    found, refused = [], []
    for name in ("br35h", "elpv"):
        given = lists(plan[name], Path("build/quality").resolve() / "lists" / slug(name) / "all", 0)
        normal, judged = (decoded(source, POLICY, Limits()) for source in (given.normal, given.archive))
        labels = read_labels(str(given.labels)).table["anomalous"].to_numpy(bool)
        seen = stacked(judged)
        for model, options in MODELS.items():
            config = PMADConfig(**options)
            values, ways, spent, far = [], [], [], []
            for seed in SEEDS:
                train, held_out = (stacked(images) for images in split(normal, seed))
                start = time.perf_counter()
                detector = fitted(config, train, held_out, seed)
                spent.append(time.perf_counter() - start)
                with torch.no_grad():
                    scores = torch.cat([detector.error_score.every_way(detector.errors(x)) for x in seen.split(64)])
                way = int(detector.error_score.way)
                values.append([image_auroc(column.numpy(), labels) for column in [scores[:, way], *scores.T]])
                ways.append(list(ALL_WAYS)[way])
                if config.memory:
                    untrained = fitted(config, train, held_out, seed, phases=1)
                    far.append([distances(untrained, held_out), distances(detector, held_out)])
            shown = [spread(each) for each in np.array(values, float).T]
            chosen = ", ".join(dict.fromkeys(ways))
            found.append(f"| {name} | {model} | {' | '.join(shown)} | {chosen} | {np.mean(spent):.0f} |")
            print(found[-1], flush=True)
            for when, rows in zip(("untrained", "fitted"), np.array(far).swapaxes(0, 1) if far else (), strict=False):
                refused.append(f"| {name} | {model}, {when} | {' | '.join([spread(each) for each in rows.T])} |")
                print(refused[-1], flush=True)
    columns = [way.replace("_", ", ") for way in ("chosen", *ALL_WAYS)]
    text = [
        "# Memories of PMAD",
        "",
        "Image AUROC on the test images of br35h and elpv by the score that the fit chose, and by every other, mean "
        f"and standard deviation over {len(SEEDS)} seeds, 64 px input; the wall clock's seconds of a fit. "
        f"{machine()['cpu']}, {torch.get_num_threads()} thread(s), torch {versions()['torch']}.",
        "",
        f"| data | model | {' | '.join(columns)} | which was chosen | fit s |",
        "|" + "---|" * (4 + len(columns)),
        *found,
        "",
        "How far what the memories answer lies from what they are asked (1 - cosine), for held-out normals, the same "
        "with synthetic defects, and noise.",
        "",
        f"| data | when | {' | '.join(KINDS_OF_IMAGES)} |",
        "|" + "---|" * (2 + len(KINDS_OF_IMAGES)),
        *refused,
    ]
    (RESULTS / "memory.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
