"""A run with hashed identifiers is reviewed by who has its manifest; names stay hashed, whatever is asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import fake_run
import pytest
from hiddenkit import hide
from reviewkit import client, images

from ad_jobs.errors import UsageError
from ad_jobs.index import index
from ad_jobs.review import review
from ad_jobs.reviewing.verdicts import read_verdicts


@pytest.fixture
def fake(tmp_path: Path) -> fake_run.FakeRun:
    return fake_run.make(tmp_path, normal=3, anomalous=3)


def test_pictures_are_found_by_the_manifest_and_no_name_is_told(fake, tmp_path, caplog):
    manifest = hide(fake.uri, str(fake.pictures))
    with client(fake.uri) as found:
        rows = images(found)
        assert [row["score"] for row in rows] == sorted(fake.scores.values(), reverse=True)
        assert all(row["uri"].startswith("hmac:") for row in rows)
        at = [f"{row['object_id']}/{row['frame']}" for row in rows]
        assert all(found.get(f"/api/picture/{one}").status_code == 200 for one in at)
        # One is gone, one is no file: the reason is told, and the heatmap is there.
        (fake.pictures / "good 000.png").unlink()
        (fake.pictures / "good 001.png").unlink()
        (fake.pictures / "good 001.png").mkdir()
    with client(fake.uri) as found:
        answers = [found.get(f"/api/{kind}/{one}") for kind in ("picture", "heatmap", "frame") for one in at]
        assert [answer.status_code for answer in answers[:6]].count(404) == 2
        assert {answer.status_code for answer in answers[6:]} == {200}
        told = "".join(answer.text for answer in answers if "json" in answer.headers["content-type"])
        said = found.post("/api/verdicts", json={"object_id": rows[0]["object_id"], "frame": 0, "verdict": "accepted"})
        told += said.text + found.get("/api/run").text + found.get("/api/images").text + found.get("/api/studies").text
    assert read_verdicts(fake.uri)["uri"].tolist() == [rows[0]["uri"]]
    told += caplog.text + "".join(path.read_bytes().decode("latin-1") for path in Path(fake.uri).rglob("*.parquet"))
    assert not [name for name in ("good", "defect", "pictures/") if name in told]
    # Elsewhere it is named.
    moved = shutil.move(manifest, tmp_path / "elsewhere")
    with client(fake.uri, manifest=str(moved)) as found:
        assert found.get(f"/api/picture/{at[0]}").status_code == 200


def test_without_its_manifest_the_page_says_what_to_do_and_shows_heatmaps(fake, tmp_path, caplog):
    manifest = hide(fake.uri, str(fake.pictures))
    shutil.rmtree(manifest)
    with client(fake.uri) as found:
        first = images(found)[0]
        at = f"{first['object_id']}/{first['frame']}"
        answer = found.get(f"/api/picture/{at}")
        assert answer.status_code == 404
        assert answer.json()["error"].endswith("start the review with --manifest MANIFEST to see pictures.")
        heat = found.get(f"/api/heatmap/{at}")
        assert heat.status_code == 200
        # In the shape of the frame, which no picture tells.
        assert f'"rows": {fake_run.ROWS}, "columns": {fake_run.COLUMNS}' in heat.headers["x-samples"]
    assert "as names are hashed no picture is found" in caplog.text
    other = index(source=str(tmp_path / "masks"), out=str(tmp_path / "other")).uri
    with pytest.raises(UsageError, match="the manifest that it was made from"):
        review(run=fake.uri, port=0, manifest=other)
    with pytest.raises(UsageError, match="--manifest"):
        review(run=fake.uri, port=0, manifest=str(tmp_path / "nowhere"))
