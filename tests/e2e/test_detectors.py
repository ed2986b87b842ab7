"""Every detector from DICOM objects on S3 to a report: fitted, scanned together, judged, verified, repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from cases import CASES
from s3server import S3Server

from ad_jobs.errors import UsageError
from ad_jobs.evaluate import evaluate
from ad_jobs.fit import fit
from ad_jobs.phantom import PhantomArchive, generate
from ad_jobs.report import report
from ad_jobs.results.read import read_run, read_scores
from ad_jobs.scan import scan
from ad_jobs.scoring.model_store import open_model
from ad_jobs.specs import FitSpec
from ad_jobs.verify import verify
from cluster import storage
from cluster.session import session
from models.registry import DETECTORS

pytestmark = [pytest.mark.ray, pytest.mark.s3]

NONE = dict.fromkeys(("train", "calibration", "normals", "anomalous", "multiframe", "broken", "non_images"), 0)


def is_trained(kind: str) -> bool:
    """Whether a detector makes passes over its images."""
    return "epochs" in DETECTORS[kind].config_class().model_fields


class Home(NamedTuple):
    """Where things lie in the bucket, and what was put there."""

    root: str
    phantoms: PhantomArchive

    @property
    def run(self) -> str:
        """The finished run of all models, on S3 too."""
        return f"{self.root}/run"

    def spec(self, kind: str) -> FitSpec:
        needs = DETECTORS[kind].needs_anomalous
        short = {"epochs": 2} if is_trained(kind) else {}
        return FitSpec(
            detector=kind,
            normal=f"{self.root}/train",
            anomalous=f"{self.root}/lesions" if needs else None,
            out=f"{self.root}/models/{kind}",
            size=(64, 48),
            options=CASES[kind].options() | short,
            seed=3,
        )


@pytest.fixture(scope="module")
def home(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A small archive of phantoms in the bucket, a model of every kind fitted on it, and runs of all models at once.

    All on one Ray: the archive as it is, and the same objects one by one under names in another order.
    """
    folder = tmp_path_factory.mktemp("detectors")
    counts: dict[str, Any] = {"train": 30, "normals": 22, "anomalous": 6, "multiframe": 2, "broken": 3, "non_images": 1}
    phantoms = generate(folder / "phantoms", size_px=96, **(NONE | counts))
    lesions = generate(folder / "lesions", size_px=96, seed=1, **(NONE | {"anomalous": 12}))
    root = f"s3://{s3.bucket}/e2e-detectors"
    for name, path in (("train", phantoms.train), ("archive", phantoms.archive), ("lesions", lesions.archive)):
        s3.put_folder(path, f"e2e-detectors/{name}")
    rng = np.random.default_rng(0)
    paths = [path for path in sorted(phantoms.archive.rglob("*")) if path.is_file()]
    for number, place in enumerate(rng.permutation(len(paths))):
        storage.write_bytes(f"{root}/shuffled/{number:03d}{paths[place].suffix}", paths[place].read_bytes())
    made = Home(root, phantoms)
    with session(num_cpus=2):
        for kind in DETECTORS:
            fit(made.spec(kind))
        scan(f"{root}/archive", models(made), made.run, heatmaps="all")
        # So small batches are worth a second actor.
        scan(f"{root}/shuffled", models(made), f"{root}/run-shuffled", heatmaps="none", batch_size=1)
    return made


def models(home: Home) -> list[str]:
    return [f"{home.root}/models/{kind}" for kind in DETECTORS]


def by_content(out: str) -> pd.DataFrame:
    rows = read_scores(out)
    return rows[rows["status"] == "scored"].set_index(["model_id", "content_sha256", "frame"]).sort_index()


def test_fits_held_out_normals_and_say_what_they_were_fitted_on(home: Home) -> None:
    for kind, uri in zip(DETECTORS, models(home), strict=True):
        model = open_model(uri)
        assert model.kind == kind
        # As all phantoms are.
        grey = DETECTORS[kind].takes_grey
        assert model.detector.spec.channels == model.policy.channels == (1 if grey else 3)
        assert (model.record["data"]["n_fitted"], model.record["data"]["n_held_out"]) == (25, 5)
        assert model.score_cpu_ms is not None
        assert model.score_cpu_ms > 0
        curve = json.loads(storage.read_bytes(storage.join(uri, "fit", "curve.json")))
        # Of those that make passes; PaDiM's curve names its phases alone.
        assert any("loss" in point for point in curve) == is_trained(kind)
        calibration = model.calibration
        if DETECTORS[kind].needs_anomalous:
            assert (model.record["data"]["n_anomalous"], model.record["data"]["n_anomalous_held_out"]) == (7, 5)
            assert (calibration.rule, calibration.target, calibration.n_anomalous) == ("max_fnr", 0.0, 5)
            # None of five missed still allows many: the interval says so.
            assert (calibration.rate, round(calibration.rate_high, 2)) == (0.0, 0.52)
        else:
            assert (calibration.rule, calibration.target, calibration.n_normal) == ("max_fpr", 0.01, 5)


def test_every_object_has_its_rows_under_every_model(home: Home) -> None:
    counts = read_run(home.run).counts
    assert counts.objects == home.phantoms.objects
    assert counts.scored + counts.failed + counts.skipped == counts.objects
    rows = read_scores(home.run)
    scored = rows[rows["status"] == "scored"].groupby("model_id").size()
    assert scored.tolist() == [home.phantoms.frames] * len(DETECTORS)
    assert rows.loc[rows["status"] == "scored", "heatmap"].notna().all()
    assert rows.groupby("model_id")["score"].nunique().min() > 10, "a detector that tells images apart"


def test_it_is_judged_verified_and_reported(home: Home) -> None:
    with home.phantoms.labels.open() as file:
        labels = pd.read_csv(file)
    labels["image"] = [f"{home.root}/{name}" for name in labels["image"]]
    labels["mask"] = [
        str(home.phantoms.labels.parent / mask) if isinstance(mask, str) else "" for mask in labels["mask"]
    ]
    path = home.phantoms.root / "labels-s3.csv"
    labels.to_csv(path, index=False)
    evaluation = evaluate(home.run, str(path), bootstrap=20)
    assert len(evaluation["models"]) == len(DETECTORS) - 1
    for judged in (evaluation, *evaluation["models"].values()):
        assert judged["n_anomalous"] == home.phantoms.anomalous
        assert all(judged[name]["value"] is not None for name in ("image_auroc", "pixel_auroc", "aupro"))
    assert verify(home.run, sample=8).differences == []
    page = storage.read_bytes(report(home.run, top=2)).decode()
    assert "Side by side" in page
    assert all(f"{kind} <code>" in page for kind in DETECTORS)


def test_scores_hang_on_neither_batches_order_nor_actors(home: Home) -> None:
    """Batches of 32 and 1, one and two actors, objects under names in another order: the same scores and flags."""
    expected, found = by_content(home.run), by_content(f"{home.root}/run-shuffled")
    assert found.index.equals(expected.index)
    assert found["flagged"].tolist() == expected["flagged"].tolist()
    for model_id, rows in expected.groupby(level="model_id"):
        largest = rows["score"].abs().max()
        worst = (found.loc[model_id, "score"] - rows["score"].droplevel("model_id")).abs().max() / largest
        assert worst <= 1e-5, f"{model_id}: {worst:.1e}"


def test_a_record_of_another_kind_is_refused(home: Home, tmp_path: Path) -> None:
    """A model cannot be opened as what it is not: its record names the kind, and its weights must fit it."""
    for name in ("detector.json", "weights.safetensors", "calibration.json"):
        (tmp_path / name).write_bytes(storage.read_bytes(f"{home.root}/models/pmad/{name}"))
    text = (tmp_path / "detector.json").read_text()
    (tmp_path / "detector.json").write_text(text.replace('"kind": "pmad"', '"kind": "ssm"'))
    with pytest.raises(UsageError, match="A model must be complete and unchanged"):
        open_model(str(tmp_path))
