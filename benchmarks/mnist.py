"""MNIST by MKD's protocol: one digit is normal, the whole test set is scored, mean AUROC over the ten digits.

    python -m benchmarks.mnist --data
    ../shared/data/mnist/mnist.npz --weights
    ../shared/weights/vgg16_features_oxford.safetensors

A finished digit is not run again: each writes one JSON into benchmarks/results/mnist/, and the table is made from them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from ad_jobs.results.run import machine, versions
from models import registry
from models.detector import Batch, InputSpec
from models.mkd import MKD, disagreement
from models.runtime import Runtime

RESULTS = Path(__file__).parent / "results"
SIZE_PX = 32
MAX_TRAIN = 2000


def prepare(images: np.ndarray) -> torch.Tensor:
    """Digits [N, 28, 28] uint8 as float32 [N, 3, 32, 32] in [0, 1], resized bilinearly."""
    x = torch.from_numpy(images).float().div(255).unsqueeze(1)
    return F.interpolate(x, (SIZE_PX, SIZE_PX), mode="bilinear", antialias=True).clamp(0, 1).expand(-1, 3, -1, -1)


def fit(detector: MKD, images: torch.Tensor, seed: int) -> list[float]:
    """Fit in place; the mean loss of every epoch of distillation."""
    learner = detector.learner(Runtime(seed=seed))
    curve = []
    for number, phase in enumerate(learner.phases):
        learner.start(phase.name)
        for epoch in range(phase.epochs):
            order = np.random.default_rng((seed, number, epoch)).permutation(len(images))
            losses = []
            for rows in torch.from_numpy(order).split(detector.config.batch_size):
                losses += [float(v) for k, v in learner.step(Batch(images[rows], rows)).items() if k == "loss"]
            learner.end_epoch()
            if losses:
                curve.append(float(np.mean(losses)))
        learner.finish(phase.name)
    return curve


@torch.no_grad()
def flat_scores(detector: MKD, source: list[torch.Tensor], images: torch.Tensor) -> np.ndarray:
    """The flat score from source maps that are computed once for all ten detectors (equal to `score().image`)."""
    detector.eval()
    chosen = [i for i, layer in enumerate(detector.config.layers) if layer in detector.config.layers_score]
    scores = []
    for rows in torch.arange(len(images)).split(256):
        maps = [source[i][rows].float() / detector.source_scale[i] for i in chosen]
        clone = detector.cloner(images[rows])
        direction, value = disagreement(maps, [clone[i] for i in chosen])
        scores.append((direction + detector.config.lambda_val * value).sum(1))
    return torch.cat(scores).numpy()


def run(arguments: argparse.Namespace) -> None:
    data = np.load(arguments.data)
    folder = RESULTS / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    config = registry.configure(
        "mkd",
        {
            "backbone": "vgg16",
            "weights": str(arguments.weights),
            "source_rescale": "rms",
            "score": "flat",
            "epochs": arguments.epochs,
            "batch_size": 64,
        },
    )
    test = prepare(data["test_images"])
    source: list[torch.Tensor] = []
    for digit in arguments.digits:
        path = folder / f"digit-{digit}-seed-{arguments.seed}.json"
        if path.exists():
            continue
        start = time.perf_counter()
        torch.manual_seed(arguments.seed)
        detector = registry.create("mkd", config, InputSpec(channels=3, height_px=SIZE_PX, width_px=SIZE_PX))
        assert isinstance(detector, MKD)
        normal = np.flatnonzero(data["train_labels"] == digit)
        normal = np.random.default_rng(arguments.seed).permutation(normal)[:MAX_TRAIN]
        curve = fit(detector, prepare(data["train_images"][np.sort(normal)]), arguments.seed)
        fit_s = time.perf_counter() - start
        if not source:
            with torch.no_grad():
                maps = [detector.source(rows) for rows in test.split(256)]
            source = [torch.cat([m[i] for m in maps]) for i in range(len(config.layers))]  # type: ignore[attr-defined]
        first = detector.score(test[:64].contiguous()).image.numpy()
        scores = flat_scores(detector, source, test)
        np.testing.assert_allclose(scores[:64], first, rtol=1e-4)
        auroc = roc_auc_score(data["test_labels"] != digit, scores)
        result: dict[str, Any] = {
            "digit": digit,
            "seed": arguments.seed,
            "image_auroc": auroc,
            "n_train": len(normal),
            "n_test": len(test),
            "fit_s": round(fit_s, 1),
            "loss_first": curve[0],
            "loss_last": curve[-1],
            "config": config.model_dump(mode="json") | {"weights": Path(arguments.weights).name},
            "machine": machine(),
            "versions": versions(),
            "threads": torch.get_num_threads(),
        }
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"digit {digit}: AUROC {auroc:.4f}, fit {fit_s:.0f} s", flush=True)
    write_table(folder)


def write_table(folder: Path) -> None:
    """Markdown from the finished digits."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("digit-*.json"))]
    if not cells:
        return
    mean = float(np.mean([c["image_auroc"] for c in cells]))
    first = cells[0]
    lines = [
        "# MNIST, one digit normal",
        "",
        f"MKD with VGG-16 (Oxford weights, `source_rescale=rms`), 32 px, {first['config']['epochs']} epochs, at most "
        f"{MAX_TRAIN} "
        f"training images a digit, flat score of the last three taps, whole test set ({first['n_test']} images).",
        f"{first['machine']['cpu']}, {first['threads']} thread(s); torch {first['versions']['torch']}.",
        "",
        "| digit | seed | image AUROC | training images | fit s |",
        "|---|---|---|---|---|",
        *(
            f"| {c['digit']} | {c['seed']} | {c['image_auroc']:.4f} | {c['n_train']} | {c['fit_s']:.0f} |"
            for c in cells
        ),
        f"| mean of {len(cells)} | | **{mean:.4f}** | | |",
    ]
    (RESULTS / "mnist.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist/mnist.npz"))
    parser.add_argument("--weights", type=Path, default=Path("../shared/weights/vgg16_features_oxford.safetensors"))
    parser.add_argument("--digits", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
