"""MKD's two maps on the phantoms, from the same weights: the paper's gradient map against the cosine map.

    python -m benchmarks.maps DEMO_FOLDER      (as `retroscan demo --out DEMO_FOLDER` left it)

Each variant becomes a model of its own beside the demo's, is calibrated on the same held-out normals, scans the same
archive with every heatmap kept, and is evaluated.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from ad_jobs.calibrate import calibrate
from ad_jobs.evaluate import evaluate
from ad_jobs.results.run import machine, versions
from ad_jobs.scan import scan
from ad_jobs.scoring.model_store import open_model
from ad_jobs.scoring.scorer import Scorer
from cluster.session import session
from models import artifact, registry

RESULTS = Path(__file__).parent / "results"
VARIANTS = {
    "cosine map, score = its maximum": {"map": "cosine", "score": "max"},
    "cosine map, flat score": {"map": "cosine", "score": "flat"},
    "gradient map, score = its maximum": {"map": "gradient", "score": "max"},
    "gradient map, flat score (paper)": {"map": "gradient", "score": "flat"},
}
METRICS = ("image_auroc", "pixel_auroc", "aupro", "pixel_ap", "pixel_auroc_paper_protocol")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    demo = parser.parse_args().demo.resolve()
    fitted = open_model(str(demo / "model"))
    lines = []
    with session():
        for number, (name, options) in enumerate(VARIANTS.items()):
            model, run = demo / f"variant-{number}", demo / f"variant-{number}-run"
            config = registry.configure(fitted.kind, fitted.record["config"] | options)
            detector = registry.create(fitted.kind, config, fitted.detector.spec, pretrained=False)
            detector.load_state_dict(fitted.detector.state_dict())
            artifact.save(model, fitted.kind, detector, fitted.record["policy"], {"variant_of": fitted.model_id})
            calibrate(str(model), normal=str(demo / "phantoms/calibration"), max_fpr=0.05)
            scan(str(demo / "manifest"), [str(model)], str(run), heatmaps="all")
            found = evaluate(str(run), str(demo / "phantoms/labels.csv"), bootstrap=0)
            values = " | ".join(f"{found[metric]['value']:.4f}" for metric in METRICS)
            lines.append(f"| {name} | {values} | {milliseconds(Scorer(detector)):.1f} |")
    text = [
        "# MKD's maps on the phantoms",
        "",
        f"One fit ({fitted.record['data']['n_fitted']} normal slices, {fitted.record['config']['epochs']} epochs, 128 "
        "px, "
        f"{fitted.record['config']['backbone']}), scored five ways. {machine()['cpu']}, {torch.get_num_threads()} "
        "thread(s), "
        f"torch {versions()['torch']}; score ms is the least of five batches of 32.",
        "",
        "| variant | image AUROC | pixel AUROC | AUPRO | pixel AP | pixel AUROC, paper's protocol | score ms an image "
        "|",
        "|---|---|---|---|---|---|---|",
        *lines,
    ]
    (RESULTS / "maps.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


def milliseconds(scorer: Scorer) -> float:
    """Milliseconds an image in batches of 32, the least of five."""
    pixels = [np.full((1, 128, 128), 1000 * number, np.uint16) for number in range(32)]
    spent = []
    for _ in range(5):
        start = time.perf_counter()
        list(scorer.score(pixels))
        spent.append(1e3 * (time.perf_counter() - start) / len(pixels))
    return min(spent)


if __name__ == "__main__":
    main()
