"""What the application tells of a run, page by page, and what it does not tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_run
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scankit
from PIL import Image
from reviewkit import client, images
from runkit import unscored
from runskit import image, made

from ad_jobs.deciding.record import table_of
from ad_jobs.deciding.stacks import STACK_DECISIONS
from ad_jobs.errors import UsageError
from ad_jobs.index import index
from ad_jobs.results.heatmaps import EARLIER_ANCHOR
from ad_jobs.results.run import ManifestRef, read_record, write_record
from ad_jobs.review import review
from ad_jobs.reviewing import ledger
from ad_jobs.reviewing.app import WEB
from ad_jobs.reviewing.verdicts import FOLDER, files, read_verdicts
from cluster import storage

HOSTILE = '<img src=x onerror="alert(1)"> & \u202e.png'


@pytest.fixture
def fake(tmp_path: Path) -> fake_run.FakeRun:
    models = (fake_run.MODEL, fake_run.SECOND_MODEL)
    return fake_run.make(tmp_path, normal=6, anomalous=5, failed=("corrupt",), models=models, names={8: HOSTILE})


def _table_run(folder: Path) -> str:
    """Rows of many kinds, without files behind them."""
    rows = [
        image(
            "b/1", score=0.9, flagged=True, modality="MR", study_uid="1.2", content_sha256="aa", study_month="2024-01"
        ),
        image(
            "b/2", score=0.8, flagged=True, modality="MR", study_uid="1.2", content_sha256="bb", study_month="2024-02"
        ),
        image("c/copy", score=0.8, flagged=True, modality="CT", study_uid="1.3", content_sha256="bb"),
        image("c/2", score=0.4, modality="CT", study_uid="1.3", content_sha256="cc", manufacturer="Acme"),
        image("d/1", score=0.3, content_sha256="dd"),
        image("d/1", frame=1, score=0.95, flagged=True, content_sha256="dd"),
        unscored(0, "corrupt") | {"uri": "/a/e"},
    ]
    return _reviewed(folder, rows)


def _reviewed(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> str:
    """A run of these rows, whose models have a policy."""
    run = made(folder, 1, rows, **changes)
    record = read_record(run)
    policy = {"channels": 1, "height_px": 32, "width_px": 32}
    models = [model.model_copy(update={"policy": policy}) for model in record.models]
    write_record(run, record.model_copy(update={"models": models}))
    return run


def test_pages_give_every_image_once_and_by_rank(fake):
    with client(fake.uri) as found:
        rows = images(found)
        assert found.get("/api/images").json()["total"] == 12
    assert [row["rank"] for row in rows] == [*range(1, 12), None]
    assert [row["score"] for row in rows[:-1]] == sorted(fake.scores.values(), reverse=True)
    assert rows[-1]["reason"] == "corrupt"
    assert HOSTILE in [row["uri"].rpartition("/")[2] for row in rows]


def test_every_model_ranks_by_its_own_scores(fake):
    with client(fake.uri) as found:
        first, second = (images(found, model=model) for model in (fake_run.MODEL, fake_run.SECOND_MODEL))
    assert [row["object_id"] for row in first] != [row["object_id"] for row in second]
    assert [row["score"] for row in second[:-1]] == sorted((row["score"] for row in second[:-1]), reverse=True)


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({}, ["/a/d/1", "/a/b/1", "/a/b/2", "/a/c/2", "/a/d/1", "/a/e"]),
        ({"flagged": "yes"}, ["/a/d/1", "/a/b/1", "/a/b/2"]),
        ({"flagged": "no", "reason": "scored"}, ["/a/c/2", "/a/d/1"]),
        ({"score_min": "0.4", "score_max": "0.9"}, ["/a/b/1", "/a/b/2", "/a/c/2"]),
        ({"modality": "MR", "month": "2024-02"}, ["/a/b/2"]),
        ({"manufacturer": "Acme"}, ["/a/c/2"]),
        ({"modality": ""}, ["/a/d/1", "/a/d/1", "/a/e"]),
        ({"reason": "corrupt"}, ["/a/e"]),
        ({"modality": "' OR true --"}, []),
    ],
)
def test_filters(tmp_path, asked, names):
    with client(_table_run(tmp_path / "run")) as found:
        assert [row["uri"] for row in images(found, **asked)] == names
        assert found.get("/api/images", params=asked).json()["total"] == len(names)


def test_objects_of_one_content_stand_once_with_their_number(tmp_path):
    with client(_table_run(tmp_path / "run")) as found:
        copied = next(row for row in images(found) if row["uri"] == "/a/b/2")
        assert copied["copies"] == 2
        told = found.get(f"/api/frame/{copied['object_id']}/0").json()
    assert told["copies"] == ["/a/c/copy"]
    # Of a study no slice is left out for being a copy of another's.
    assert len(told["stack"]) == 2


def test_studies_stand_by_their_most_suspicious_frame(tmp_path):
    with client(_table_run(tmp_path / "run")) as found:
        rows = found.get("/api/studies").json()["rows"]
        # What failed is no frame that could have been flagged.
        counts = ("group", "frames", "flagged_frames", "failed_frames")
        assert [tuple(row[name] for name in counts) for row in rows] == [
            *(("/a/d", 2, 1, 0), ("1.2", 2, 2, 0), ("1.3", 2, 1, 0), ("/a", 0, 0, 1))
        ]
        assert (rows[0]["object_id"], rows[0]["frame"]) == (rows[0]["object_id"], 1)
        some = found.get("/api/studies", params={"modality": "CT", "score_max": "0.5"}).json()
    assert (some["total"], some["rows"][0]["group"]) == (1, "1.3")


def test_a_decision_of_studies_says_what_is_flagged_and_ranks(tmp_path, monkeypatch):
    run = _table_run(tmp_path / "run")
    decided = [
        {"group": "1.3", "score": 0.8, "p": 0.01, "flagged": True, "rank": 1},
        {"group": "1.2", "score": 0.9, "p": 0.02, "flagged": False, "rank": 2},
        {"group": "/a/d", "score": 0.95, "p": 0.5, "flagged": False, "rank": 3},
    ]
    table = pa.Table.from_pylist([{"model_id": "0123456789ab", **row} for row in decided], STACK_DECISIONS)
    storage.write_bytes(table_of(run, "d00d00d00d00"), b"")
    pq.write_table(table, table_of(run, "d00d00d00d00"))
    record = {"decision_id": "d00d00d00d00", "rule": {"fdr": 0.1}, "level": "study"}
    monkeypatch.setattr("ad_jobs.review.read_decision", lambda *_: record)
    with client(run, decision="d00d00d00d00") as found:
        rows = images(found)
        some = images(found, p_max="0.015")
    assert [(row["group"], row["rank"], row["p"], row["flagged"]) for row in rows[:3]] == [
        *(("1.3", 1, 0.01, True), ("1.2", 2, 0.02, False), ("1.2", 2, 0.02, False))
    ]
    assert [row["group"] for row in some] == ["1.3"]


def test_a_picture_comes_with_all_its_levels_and_its_heatmap_without_padding(tmp_path):
    fake = fake_run.make(tmp_path, normal=1, anomalous=1, resize="pad", input_size=(64, 64))
    with client(fake.uri) as found:
        row = images(found)[0]
        picture = found.get(f"/api/picture/{row['object_id']}/0")
        told = json.loads(picture.headers["x-samples"])
        heat = found.get(f"/api/heatmap/{row['object_id']}/0")
    values = np.frombuffer(picture.content, "<u2").reshape(told["height"], told["width"])
    assert np.array_equal(values, np.asarray(Image.open(row["uri"])).astype(np.uint16) * 257)
    assert (told["rows"], told["columns"], told["colour"], told["changed"]) == (90, 120, False, False)
    # 90 x 120 within 64 x 64: 48 x 64, between two margins of 8.
    size = json.loads(heat.headers["x-samples"])
    # As it is drawn: half of the colours is the anchor.
    wanted = np.minimum(fake.heatmaps[Path(row["uri"]).name][8:56] * 0.5 / EARLIER_ANCHOR, 1)
    assert (size["height"], size["width"]) == (48, 64)
    # Rounded in the file, and stretched.
    np.testing.assert_allclose(np.frombuffer(heat.content, "<u2").reshape(48, 64), wanted * 65535, rtol=0, atol=1.5)


def test_a_picture_that_has_changed_says_so_and_takes_no_verdict(fake):
    with client(fake.uri) as found:
        row = images(found)[0]
        Image.fromarray(np.zeros((5, 7), np.uint8)).save(row["uri"], format="PNG")
        picture = found.get(f"/api/picture/{row['object_id']}/0")
        assert json.loads(picture.headers["x-samples"])["changed"] is True
        said = found.post("/api/verdicts", json={"object_id": row["object_id"], "frame": 0, "verdict": "accepted"})
        assert (said.status_code, "changed since" in said.json()["error"]) == (400, True)
        Path(images(found)[1]["uri"]).unlink()
        gone = found.get(f"/api/picture/{images(found)[1]['object_id']}/0")
    assert (gone.status_code, gone.json()["error"]) == (404, "The original is gone from the archive.")
    assert read_verdicts(fake.uri).empty


def test_verdicts_are_noted_taken_back_and_filtered_by(fake):
    with client(fake.uri) as ada, client(fake.uri, reviewer="Bob") as bob:
        first, second = images(ada)[:2]
        for reader, row, word in ((ada, first, "accepted"), (bob, first, "rejected"), (ada, second, "supplemented")):
            said = {"object_id": row["object_id"], "frame": 0, "verdict": word}
            assert reader.post("/api/verdicts", json=said).status_code == 200
        assert [row["object_id"] for row in images(ada, verdict="mine")] == [first["object_id"], second["object_id"]]
        assert len(images(ada, verdict="open")) == 10
        assert ada.post("/api/undo", json={}).json()["withdrawn"]["object_id"] == second["object_id"]
        assert len(images(ada, verdict="open")) == 11
    # Whoever opens the run anew sees all of it.
    with client(fake.uri, reviewer="Cy") as cy:
        assert [row["object_id"] for row in images(cy, verdict="disputed")] == [first["object_id"]]
        assert [row["object_id"] for row in images(cy, verdict="accepted")] == [first["object_id"]]
        assert cy.get("/api/agreement").json()["abnormal"]["agree"] == 0.0
        assert cy.post("/api/undo", json={}).json() == {"withdrawn": None}
    assert sorted(read_verdicts(fake.uri)["verdict"]) == ["accepted", "rejected"]


def test_a_blinded_reader_is_told_nothing_before_his_own_verdict(fake):
    with client(fake.uri, reviewer="Bob") as bob:
        first = images(bob)[0]
        said = {"object_id": first["object_id"], "frame": 0, "verdict": "rejected"}
        bob.post("/api/verdicts", json=said)
    with client(fake.uri, blind=True, seed=1) as ada:
        rows = images(ada)
        assert [row["object_id"] for row in rows] != sorted(row["object_id"] for row in rows)
        revealing = {"rank", "score", "p", "flagged", "threshold", "heatmap"}
        for answer in (rows, ada.get(f"/api/frame/{first['object_id']}/0").json()["rows"]):
            assert all(row[name] is None for row in answer for name in revealing & row.keys())
            assert all(row["verdicts"] == [] for row in answer)
        assert all(row["score"] is None for row in ada.get("/api/studies").json()["rows"])
        assert ada.get(f"/api/heatmap/{first['object_id']}/0").status_code == 404
        for asked in ({"flagged": "yes"}, {"score_min": "0.5"}, {"p_max": "0.1"}):
            assert ada.get("/api/images", params=asked).status_code == 400
        assert images(ada, verdict="rejected") == []
        assert [row["object_id"] for row in images(ada, verdict="others")] == [first["object_id"]]
        (row, *_) = ada.post("/api/verdicts", json={**said, "verdict": "accepted"}).json()["rows"]
        assert row["score"] == first["score"]
        assert [one["reviewer"] for one in row["verdicts"]] == ["Ada", "Bob"]
        assert ada.get(f"/api/heatmap/{first['object_id']}/0").status_code == 200
    with client(fake.uri, blind=True, seed=1, reviewer="Cy") as again, client(fake.uri, blind=True, seed=2) as other:
        assert [row["object_id"] for row in images(again)] == [row["object_id"] for row in rows]
        assert [row["object_id"] for row in images(other)] != [row["object_id"] for row in rows]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *(("/api/picture/999999/0", 404), ("/api/picture/0/7", 404), ("/api/picture/-1/0", 400)),
        *(("/api/heatmap/999999/0", 404), ("/web/..%2f..%2freview.py", 404), ("/web/nothing.js", 404)),
        *(("/api/picture/..%2f..%2fetc%2fpasswd/0", 404), ("/api/images?model=other", 400)),
        *((f"/api/frame/{'9' * 60}/0", 400), (f"/api/frame/{'9' * 5000}/0", 400), ("/api/frame/0/1e3", 400)),
        *(("/api/images?after=x", 400), ("/api/images?score_min=nan", 400), ("/api/images?verdict=maybe", 400)),
    ],
)
def test_what_is_not_of_the_run_is_not_told(fake, path, status):
    with client(fake.uri) as found:
        answer = found.get(path)
    assert answer.status_code == status
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    "said",
    [{}, {"object_id": 0}, {"object_id": 0, "frame": 0, "verdict": "withdrawn"}, [], {"object_id": True, "frame": 0}],
)
def test_a_verdict_that_is_none_is_refused(fake, said):
    with client(fake.uri) as found:
        assert found.post("/api/verdicts", json=said).status_code == 400
        assert found.post("/api/verdicts", content=json.dumps(said)).status_code == 400
        assert found.post("/api/verdicts", json={"verdict": "x" * 5000}).status_code == 400
        sent = {"content-type": "application/json"}
        assert found.post("/api/verdicts", content="[" * 4000, headers=sent).status_code == 400
    assert read_verdicts(fake.uri).empty


def test_a_verdict_that_cannot_be_told_is_not_noted(fake, monkeypatch):
    for name in ("REFRESH_S", "REFRESH_SHARE"):
        monkeypatch.setattr(ledger, name, 0.0)
    with client(fake.uri) as found:
        row = images(found)[0]
        (Path(fake.uri) / FOLDER).mkdir(exist_ok=True)
        (Path(fake.uri) / FOLDER / "damaged.parquet").write_bytes(b"half")
        said = {"object_id": row["object_id"], "frame": row["frame"], "verdict": "accepted"}
        assert found.post("/api/verdicts", json=said).status_code == 500
    assert files(fake.uri) == ["damaged.parquet"]


def test_the_page_has_nothing_inline_and_names_nobody_else(fake):
    with client(fake.uri) as found:
        page = found.get("/").text
        assert found.get("/web/app.js").headers["content-type"].startswith("text/javascript")
    assert "style=" not in page
    assert "<script>" not in page
    assert " onclick" not in page
    for file in WEB.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text, file
        assert "https:" not in text, file
        assert "innerHTML" not in text, file


def test_a_manifest_tells_scanners_and_the_order_of_slices(tmp_path):
    archive = tmp_path / "archive"
    archive.mkdir()
    # The order of the files is not that of the slices.
    for number, place in enumerate((3, 1, 2)):
        headers = {"InstanceNumber": place, "ManufacturerModelName": f"Scanner {number % 2}"}
        headers |= {"InstitutionName": f"Clinic {number // 2}"}
        (archive / f"{number}.dcm").write_bytes(scankit.dicom_of(number, **headers))
    info = index(source=str(archive), out=str(tmp_path / "manifest"), headers=True)
    rows = [image(f"{n}", score=0.1 * n, series_uid="1.9", study_uid="1.8", modality="MR") for n in range(3)]
    placed = [row | {"uri": f"{archive}/{n}.dcm"} for n, row in enumerate(rows)]
    run = _reviewed(tmp_path / "run", placed, manifest=ManifestRef(uri=info.uri, digest=info.digest, objects=3))
    with client(run) as found:
        assert [row["object_id"] for row in images(found, scanner="Scanner 0")] == [2, 0]
        assert [row["object_id"] for row in images(found, site="Clinic 0")] == [1, 0]
        stack = found.get("/api/frame/2/0").json()["stack"]
        assert [object_id for object_id, *_ in stack] == [1, 2, 0]
        own, whole = (found.get("/api/picture/0/0", params={"range": name}).content for name in ("own", "whole"))
    # Twelve bits of sixteen, without a window: the whole range of the frame is less than that of its bits.
    assert np.frombuffer(own, "<u2").max() < np.frombuffer(whole, "<u2").max() == 65535


def test_a_run_that_hides_identifiers_shows_no_site_of_its_manifest(tmp_path):
    (tmp_path / "archive").mkdir()
    headers = {"ManufacturerModelName": "Scanner 1", "InstitutionName": "North Hospital"}
    (tmp_path / "archive" / "a.dcm").write_bytes(scankit.dicom_of(1, **headers))
    info = index(source=str(tmp_path / "archive"), out=str(tmp_path / "run.manifest"), headers=True)
    manifest = ManifestRef(uri="hmac:0123", digest=info.digest, objects=1)
    rows = [image("1", score=0.1) | {"uri": "hmac:4567"}]
    run = _reviewed(tmp_path / "run", rows, manifest=manifest, config={"identifiers": "hashed"})
    with client(run) as found:
        (row,) = images(found)
        assert (row["scanner"], row["site"]) == ("Scanner 1", None)


def _options(**values: Any) -> dict[str, Any]:
    return {"reviewer": "Ada", **values}


def test_what_cannot_be_reviewed_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="A run must be a folder"):
        review(run=str(tmp_path), **_options())
    run = made(tmp_path / "run", 1, [image("1")])
    with pytest.raises(UsageError, match="A decision is one that the run has"):
        review(run=run, **_options(decision="d00d00d00d00"))
    opened = review(run=run, **_options())
    with opened._socket:
        opened._socket.listen()
        with pytest.raises(UsageError, match="--port is a free one"):
            review(run=run, **_options(port=opened.port))
    monkeypatch.setattr("ad_jobs.review.find_spec", lambda name: None if name == "uvicorn" else name)
    with pytest.raises(UsageError, match=r"no uvicorn. pip install 'retroscan\[review\]'"):
        review(run=run, **_options())
