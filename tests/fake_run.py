"""A finished run on disk, without a scan: pictures, score table, heatmap shards, run.json, labels and masks.

Every file is written by the code that a scan uses, so it has the real schema.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from runkit import heatmap_parts
from scipy import ndimage

from ad_jobs.images.geometry import Geometry
from ad_jobs.images.policy import PixelPolicy
from ad_jobs.results import run as run_module
from ad_jobs.results.heatmaps import encode_png, member_name, pack
from ad_jobs.schema import SCORES

MODEL = "0123456789ab"
SECOND_MODEL = "ba9876543210"
ROWS, COLUMNS = 90, 120
RUN_ID = "run-20250304-093000"
STARTED = datetime(2025, 3, 4, 9, 30, 0, tzinfo=UTC)


@dataclass
class FakeRun:
    """Where everything lies, and the truth of it by picture name."""

    uri: str
    labels: Path
    pictures: Path
    scores: dict[str, float] = field(default_factory=dict)
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    heatmaps: dict[str, np.ndarray] = field(default_factory=dict)


def make(
    folder: Path,
    *,
    normal: int = 12,
    anomalous: int = 6,
    failed: tuple[str, ...] = (),
    skipped: int = 0,
    keep_heatmaps: bool = True,
    models: tuple[str, ...] = (MODEL,),
    threshold: float = 0.55,
    resize: str = "stretch",
    input_size: tuple[int, int] = (48, 64),
    names: dict[int, str] | None = None,
    uris: str | None = None,
    seed: int = 0,
    finish: bool = True,
) -> FakeRun:
    """Write a run below `folder`: scored pictures, one failed object per given code, and skipped ones."""
    rng = np.random.default_rng(seed)
    policy = PixelPolicy(channels=1, height_px=input_size[0], width_px=input_size[1], resize=resize)
    geometry = Geometry.of(policy, ROWS, COLUMNS)
    fake = FakeRun(str(folder / "run"), folder / "labels.csv", folder / "pictures")
    for sub in ("pictures", "masks", "run/scores", "run/heatmaps"):
        (folder / sub).mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    members: list[tuple[str, bytes]] = []
    labels: list[dict[str, str]] = []
    total = normal + anomalous
    for i in range(total):
        defective = i >= normal
        name = (names or {}).get(i, f"{'defect' if defective else 'good'} {i:03d}.png")
        picture, mask = _picture(rng, defective)
        path = fake.pictures / name
        Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(path, format="PNG")
        fake.masks[name] = mask
        labels.append({"image": f"pictures/{name}", "anomalous": str(int(defective)), "mask": ""})
        if defective:
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{i:03d}.png")
            labels[-1]["mask"] = f"masks/{i:03d}.png"
        for m, model_id in enumerate(models):
            heat = _heatmap(rng, geometry.mask_to_input(mask), geometry)
            score = float(np.float32(rng.normal(0.3, 0.1) + (0.35 - 0.1 * m) * defective))
            member = member_name(i, 0, model_id if len(models) > 1 else None)
            members.append((member, encode_png(heat, geometry)))
            if m == 0:
                fake.scores[name] = score
                fake.heatmaps[name] = np.rint(heat.astype(np.float64) * 65535) / 65535
            rows.append(
                row(
                    i,
                    f"{uris}{i:032x}" if uris else str(path),
                    status="scored",
                    model_id=model_id,
                    score=score,
                    threshold=threshold,
                )
                | {"flagged": score > threshold, "heatmap": member, "rows": ROWS, "columns": COLUMNS}
                | {"content_sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bits": 8}
                | {"photometric": "MONOCHROME2", "transfer_syntax": "png", "bytes": path.stat().st_size}
            )
    for j, code in enumerate([*failed, *["not_an_image"] * skipped]):
        status = "failed" if j < len(failed) else "skipped"
        for model_id in models:
            rows.append(
                row(total + j, str(fake.pictures / f"{status} {j:03d}.dcm"), status=status, model_id=model_id)
                | {"error_code": code, "error_detail": f"what {code} says"}
            )
    shard = pack(members) if members else None
    if keep_heatmaps and shard:
        (Path(fake.uri) / shard.name).write_bytes(shard.data)
    for made in rows:
        made["heatmap"] = shard.reference(made["heatmap"]) if shard and made["heatmap"] and keep_heatmaps else None
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORES), f"{fake.uri}/scores/part-00000.parquet")
    with fake.labels.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["image", "anomalous", "mask"])
        writer.writeheader()
        writer.writerows(labels)
    if finish:
        close(fake.uri, list(models), policy, threshold, total + len(failed) + skipped)
    return fake


def close(uri: str, models: list[str], policy: PixelPolicy, threshold: float, objects: int) -> None:
    """Write run.json over what lies in the run's folder."""
    counted = run_module.count_table(run_module.part_uris(uri), objects=objects, run_id=RUN_ID, model_ids=models)
    assert counted.complaints == []
    run_module.write_record(
        uri,
        run_module.RunRecord(
            run_id=RUN_ID,
            started_at=STARTED,
            ended_at=STARTED.replace(minute=52),
            source="s3://archive/brain <MR> & more/",
            manifest=run_module.ManifestRef(uri="s3://archive/manifest", digest="d1" * 32, objects=objects),
            models=[
                run_module.ModelRef(
                    model_id=model_id,
                    uri=f"s3://models/{model_id}",
                    kind="mkd",
                    threshold=threshold,
                    calibration_sha256="ca" * 32,
                    weights_sha256="fe" * 32,
                    policy=policy.model_dump(),
                    heatmap_low=0.1,
                    heatmap_high=2.5,
                    # As models of format 1 have it, which say nothing of a licence.
                    source={"name": "vgg16", "weights": "auto", "sha256": "ab" * 32},
                )
                for model_id in models
            ],
            config={"source": "s3://archive/brain", "heatmaps": "all", "where": None, "batch_size": 32},
            versions=run_module.versions(),
            machine=run_module.machine(),
            counts=counted.counts,
            parts=run_module.describe_parts(uri),
            heatmap_parts=heatmap_parts(uri),
        ),
    )


def row(object_id: int, uri: str, **known: Any) -> dict[str, Any]:
    """A row of the score table, null but for what every row has and what is given."""
    empty = dict.fromkeys(SCORES.names)
    times = {"fetch_ms": 3.0, "decode_ms": 5.0, "score_ms": 12.0, "scored_at": STARTED}
    return empty | {"object_id": object_id, "uri": uri, "frame": 0, "run_id": RUN_ID} | times | known


def _picture(rng: np.random.Generator, defective: bool) -> tuple[np.ndarray, np.ndarray]:
    """A grey picture [ROWS, COLUMNS] in [0, 1], a textured oval; for a defect a bright blob and its mask."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    radius = np.hypot((y - ROWS / 2) / (ROWS * 0.42), (x - COLUMNS / 2) / (COLUMNS * 0.38))
    texture = ndimage.gaussian_filter(rng.normal(size=(ROWS, COLUMNS)), 2) * 0.5
    picture = 0.05 + np.clip(1.15 - radius, 0, 1) ** 0.4 * (0.45 + texture)
    mask = np.zeros((ROWS, COLUMNS), dtype=bool)
    if defective:
        cy, cx = rng.uniform(30, ROWS - 30), rng.uniform(40, COLUMNS - 40)
        mask = np.hypot((y - cy) / rng.uniform(5, 9), (x - cx) / rng.uniform(6, 12)) < 1
        picture = picture + 0.4 * ndimage.gaussian_filter(mask.astype(float), 1.5)
    return np.clip(picture, 0, 1), mask


def _heatmap(rng: np.random.Generator, soft_mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A heatmap in [0, 1]: cold and blotchy, warm about the defect, nothing in the padding."""
    cold = 0.12 + 0.25 * ndimage.gaussian_filter(rng.normal(size=soft_mask.shape), 4)
    warm = ndimage.gaussian_filter(soft_mask.astype(float), 2) * rng.uniform(0.4, 0.9)
    heat = np.clip(cold + warm, 0, 1)
    inside = np.zeros_like(heat)
    inside[geometry.top : geometry.top + geometry.height, geometry.left : geometry.left + geometry.width] = 1
    return (heat * inside).astype(np.float32)
