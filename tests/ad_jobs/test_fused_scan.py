"""A fused model in a scan beside one of its members, and through every verb that works on a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scankit as kit
from fusekit import RANDOM, few_defects, fitted, normals

from ad_jobs.calibrate import calibrate
from ad_jobs.decide import decide
from ad_jobs.fitting import fusion
from ad_jobs.fuse import fuse
from ad_jobs.images.domain import Domain
from ad_jobs.report import report
from ad_jobs.results.read import read_run, read_scores
from ad_jobs.scan import scan
from ad_jobs.score import score
from ad_jobs.scoring.model_store import open_model
from ad_jobs.verify import verify
from cluster.session import session

pytestmark = pytest.mark.ray

ARCHIVE = {
    **{f"{number}.png": kit.png(number) for number in range(30, 36)},
    "slice.dcm": kit.dicom(40),
    "cut.png": kit.png(41)[:200],
}


def test_it_is_scanned_verified_reported_decided_and_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever small models find.
    monkeypatch.setattr(fusion, "chosen", lambda judged: [1 / judged.normal.shape[1]] * judged.normal.shape[1])
    normal = normals(str(tmp_path / "normal"))
    pictures = Domain(kind=("picture",))
    members = [
        fitted(str(tmp_path / "linear"), normal, domain=pictures),
        fitted(str(tmp_path / "padim"), normal, "padim", 64, options=RANDOM),
    ]
    with few_defects():
        fuse(model=members, out=str(tmp_path / "fused"))
    model = open_model(str(tmp_path / "fused"))
    assert model.domain.accepts == pictures
    archive, run = kit.write_archive(tmp_path / "archive", ARCHIVE), str(tmp_path / "run")
    with session(num_cpus=2):
        scan(archive, [model.uri, members[1]], run, heatmaps="all")
        before = read_run(run)
        # Finished: nothing is done again.
        assert scan(archive, [model.uri, members[1]], run, heatmaps="all") == before
        assert verify(run, sample=8).differences == []
    rows = read_scores(run)
    own = rows[rows["model_id"] == model.model_id].assign(name=lambda table: table["uri"].str.rpartition("/")[2])
    assert own["status"].value_counts().to_dict() == {"scored": 6, "skipped": 1, "failed": 1}
    # What one member refuses is skipped, though the other scores it.
    (skipped,) = own[own["status"] == "skipped"].itertuples()
    assert (skipped.name, skipped.error_code) == ("slice.dcm", "out_of_domain")
    seen = own[own["status"] == "scored"].set_index("name")["score"]
    again = score(model=model.uri, images=[f"{archive}/{name}" for name in seen.index])
    np.testing.assert_allclose([row["score"] for row in again], seen, rtol=1e-4)
    (recorded, _) = read_run(run).models
    assert [one["model_id"] for one in recorded.members] == [one.model_id for one in model.detector.config.members]
    page = Path(report(run)).read_text()
    for one in recorded.members:
        assert f"member {one['kind']} <code>{one['model_id']}</code>, weight " in page
    assert decide(run=run, top=2)["models"][0]["flagged"] == 2
    assert calibrate(model=model.uri, normal=normal, max_fpr=0.2).n_normal == 24
