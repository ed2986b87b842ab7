"""Small score tables and run records for the tests of results."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ad_jobs.errors import SKIP_CODES
from ad_jobs.images.geometry import Geometry
from ad_jobs.images.policy import PixelPolicy
from ad_jobs.results import run as run_module
from ad_jobs.results.parts import heatmap_part_uris
from ad_jobs.schema import SCORES
from ad_jobs.scoring.calibration import Calibration

MODEL, SECOND = "0123456789ab", "ba9876543210"
RUN_ID = "d00d00d00d00"
MOMENT = datetime(2025, 3, 4, 9, 30, tzinfo=UTC)
# Not square, and padded on two sides, so that a swap of height and width cannot pass.
GEOMETRY = Geometry.of(PixelPolicy(channels=1, height_px=20, width_px=33, resize="pad"), 47, 31)


def scored(object_id: int, frame: int = 0, model_id: str = MODEL, **values: Any) -> dict[str, Any]:
    """A row of a scored frame."""
    base = {"status": "scored", "score": 0.25, "threshold": 0.5, "flagged": False, "uri": f"/a/{object_id}"}
    return {"object_id": object_id, "frame": frame, "model_id": model_id, "run_id": RUN_ID, **base, **values}


def unscored(object_id: int, code: str, model_id: str = MODEL) -> dict[str, Any]:
    """A row of an object that failed or was skipped whole."""
    status = "skipped" if code in SKIP_CODES else "failed"
    return {
        "object_id": object_id,
        "frame": 0,
        "run_id": RUN_ID,
        "model_id": model_id,
        "status": status,
        "error_code": code,
        "uri": f"/a/{object_id}",
    }


def write_part(run: Path, rows: list[dict[str, Any]], name: str = "part-0") -> None:
    """One Parquet part of the score table, with the real schema."""
    (run / "scores").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, SCORES), run / "scores" / f"{name}.parquet")


def heatmap_parts(run: str) -> list[run_module.HeatmapPart]:
    """The shards of the run as they lie there."""
    found = [run_module.describe_heatmap_part(run, uri.removeprefix(f"{run}/")) for uri in heatmap_part_uris(run)]
    return [part for part in found if part is not None]


def record(run: Path, objects: int) -> run_module.RunRecord:
    """The record of the run as it lies there."""
    table = run_module.count_table(run_module.part_uris(str(run)), objects=objects, run_id=RUN_ID, model_ids=[MODEL])
    return run_module.RunRecord(
        run_id=RUN_ID,
        started_at=MOMENT,
        ended_at=MOMENT,
        source="/a",
        manifest=run_module.ManifestRef(uri="/m", digest="00", objects=objects),
        models=[
            run_module.ModelRef(
                model_id=MODEL,
                uri="/model",
                kind="mkd",
                threshold=0.5,
                calibration_sha256="00",
                weights_sha256="00",
                policy={},
                heatmap_low=0.0,
                heatmap_high=1.0,
            )
        ],
        config={},
        versions=run_module.versions(),
        machine=run_module.machine(),
        counts=table.counts,
        parts=run_module.describe_parts(str(run)),
        heatmap_parts=heatmap_parts(str(run)),
    )


def calibration(**values: Any) -> Calibration:
    """A calibration that kept no scores."""
    base = {
        "model_id": "0" * 12,
        "threshold": 0.5,
        "rule": "max_fpr",
        "target": 0.01,
        "method": "quantile",
        "n_normal": 100,
        "n_anomalous": 0,
        "rate": 0.01,
        "rate_low": 0.0,
        "rate_high": 0.1,
        "heatmap_low": 0.0,
        "heatmap_high": 1.0,
        "source": "normals",
        "set_at": "2026-01-01T00:00:00+00:00",
    }
    return Calibration.model_validate(base | values)
