"""Labels of objects with several frames: by the object, or frame by frame."""

import csv
from pathlib import Path

import fake_run
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ad_jobs.errors import UsageError
from ad_jobs.evaluate import evaluate
from ad_jobs.images.geometry import Geometry
from ad_jobs.images.policy import PixelPolicy
from ad_jobs.results.heatmaps import encode_png, pack
from ad_jobs.schema import SCORES


def write_labels(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def run(tmp_path) -> fake_run.FakeRun:
    """Two objects of three frames: frame 1 of the first is abnormal, frame 2 of the second has failed."""
    policy = PixelPolicy(channels=1, height_px=10, width_px=12)
    geometry = Geometry.of(policy, 10, 12)
    rows, members = [], []
    scores = {(0, 0): 0.1, (0, 1): 0.9, (0, 2): 0.2, (1, 0): 0.3, (1, 1): 0.4, (1, 2): None}
    for (object_id, frame), score in scores.items():
        heat = np.full((10, 12), 0.1, np.float32)
        heat[2:4, 3:6] = 0.8 if score == 0.9 else 0.1
        members.append((f"{object_id}-{frame}.png", encode_png(heat, geometry)))
        row = fake_run.row(object_id, str(tmp_path / f"{object_id}.dcm"), model_id=fake_run.MODEL, frame=frame)
        row |= {"status": "scored", "score": score, "threshold": 0.55, "flagged": score is not None and score > 0.55}
        if score is None:
            row |= {"status": "failed", "error_code": "non_finite_score", "flagged": None}
        rows.append(row)
    shard = pack(members)
    for row, (member, _) in zip(rows, members, strict=True):
        row["heatmap"] = shard.reference(member) if row["status"] == "scored" else None
    uri = tmp_path / "run"
    (uri / "scores").mkdir(parents=True)
    (uri / "heatmaps").mkdir()
    (uri / shard.name).write_bytes(shard.data)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORES), uri / "scores/part-00000.parquet")
    fake_run.close(str(uri), [fake_run.MODEL], policy, 0.55, objects=2)
    mask = np.zeros((10, 12), np.uint8)
    mask[2:4, 3:6] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return fake_run.FakeRun(str(uri), tmp_path / "labels.csv", tmp_path)


def test_without_frames_an_object_has_its_highest_score(run):
    write_labels(run.labels, [{"image": "0.dcm", "anomalous": "1"}, {"image": "1.dcm", "anomalous": "0"}])
    evaluation = evaluate(run.uri, str(run.labels), bootstrap=0)
    assert (evaluation["n_normal"], evaluation["n_anomalous"]) == (1, 1)
    assert evaluation["image_auroc"]["value"] == 1.0
    assert evaluation["at_threshold"]["true_positive"] == 1
    assert evaluation["curves"]["scores"]["edges"][-1] == pytest.approx(0.9)


def test_with_frames_each_has_its_own(run):
    labels = [
        {"image": "0.dcm", "frame": "0", "anomalous": "0", "mask": ""},
        {"image": "0.dcm", "frame": "1", "anomalous": "1", "mask": "mask.png"},
        {"image": "1.dcm", "frame": "2", "anomalous": "0", "mask": ""},
        {"image": "1.dcm", "frame": "7", "anomalous": "0", "mask": ""},
    ]
    write_labels(run.labels, labels)
    evaluation = evaluate(run.uri, str(run.labels), bootstrap=0)
    counted = [evaluation[f"n_{name}"] for name in ("normal", "anomalous", "failed", "missing")]
    assert counted == [1, 1, 1, 1]
    assert evaluation["pixel_auroc"]["value"] == 1.0


def test_a_mask_needs_its_frame(run):
    write_labels(run.labels, [{"image": "0.dcm", "anomalous": "1", "mask": "mask.png"}])
    with pytest.raises(UsageError, match="one frame"):
        evaluate(run.uri, str(run.labels))
