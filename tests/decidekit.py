"""A finished run whose model kept the scores of held-out images, for the tests of decisions."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import runkit as kit

from ad_jobs.results.run import held_out_copy, write_record
from ad_jobs.scoring.held_out import Scored, to_parquet
from cluster import storage

NORMALS = np.random.default_rng(0).normal(size=99).astype(np.float32)
ABNORMAL = np.array([1.5, 2.5, 3.5, 4.5], np.float32)
# 180 normals, 20 abnormal, in no order.
SCORES = (
    np.random.default_rng(1)
    .permutation(
        np.concatenate([np.random.default_rng(2).normal(size=180), np.random.default_rng(3).normal(4, size=20)])
    )
    .astype(np.float32)
)


def held_out(normals: np.ndarray = NORMALS, abnormal: np.ndarray = ABNORMAL) -> bytes:
    rows = [Scored(f"{i:064x}", 0, f"study {i // 3}", False, float(score)) for i, score in enumerate(normals)]
    return to_parquet(rows + [Scored("ff" * 32, 0, "", True, float(score)) for score in abnormal])


def make_run(folder: Path, uri: str | None = None, scores: bytes | None = None) -> str:
    """A run of 203 objects, three of which failed; one has the content of a held-out one."""
    rows = [
        kit.scored(i, score=float(score), uri=f"/a/{i // 10}/{i}.png", content_sha256=f"{i + 98:064x}")
        for i, score in enumerate(SCORES)
    ]
    rows[0]["study_uid"] = "1.2.3"
    kit.write_part(folder, rows + [kit.unscored(200 + i, "truncated") for i in range(3)])
    record = kit.record(folder, 203)
    body = held_out() if scores is None else scores
    model = record.models[0].model_copy(
        update={"calibration_id": "c" * 12, "held_out_sha256": hashlib.sha256(body).hexdigest()}
    )
    place = uri or str(folder)
    if uri is not None:
        for path in folder.rglob("*.parquet"):
            storage.write_bytes(f"{uri}/{path.relative_to(folder)}", path.read_bytes())
    storage.write_bytes(held_out_copy(place, kit.MODEL), body)
    write_record(place, record.model_copy(update={"models": [model]}))
    return place
