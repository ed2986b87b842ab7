"""A scan on a running Ray: every object once, every bad one by its reason, the good ones untouched by them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scankit as kit

from ad_jobs.archive.manifest import read_manifest
from ad_jobs.errors import TooManyFailed, UsageError
from ad_jobs.evaluate import evaluate
from ad_jobs.index import index
from ad_jobs.results.read import open_heatmap, read_run, read_scores
from ad_jobs.results.seal import sealed
from ad_jobs.scan import scan
from ad_jobs.scanning.intent import resolve
from ad_jobs.scanning.run_state import undecodable
from ad_jobs.schema import SCORES
from ad_jobs.score import score
from ad_jobs.scoring.model_store import CALIBRATION
from ad_jobs.specs import ScanSpec
from ad_jobs.verify import verify
from cluster.session import session
from models.record import DETECTOR, model_id

GOOD = kit.good_objects(40)
BAD = kit.bad_objects()
GONE = "good/0002.png"
# Smaller than the multi-frame object has frames, so that its rows could part if anything let them.
BATCH = 4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, an archive with bad objects in it, and the same without them."""
    folder = tmp_path_factory.mktemp("scan")
    kit.make_model(folder / "model")
    kit.write_archive(folder / "mixed", GOOD | {name: data for name, (data, _) in BAD.items()})
    kit.write_archive(folder / "clean", GOOD)
    return folder


@pytest.fixture(scope="module")
def runs(home: Path) -> Iterator[tuple[str, str]]:
    """The finished runs of both; the mixed one by its manifest, one object being gone since."""
    mixed, clean = str(home / "run mixed #1?"), str(home / "run-clean")
    index(str(home / "mixed"), str(home / "manifest"))
    (home / "mixed" / GONE).unlink()
    model = str(home / "model")
    with session(num_cpus=2):
        scan(str(home / "manifest"), [model], mixed, heatmaps="all", batch_size=BATCH)
        scan(str(home / "clean"), [model], clean, batch_size=BATCH)
        yield mixed, clean


@pytest.mark.ray
def test_every_object_of_the_manifest_has_its_rows_and_its_reason(runs: tuple[str, str]) -> None:
    rows = kit.table(runs[0])
    assert rows["object_id"].nunique() == len(GOOD) + len(BAD)
    assert not rows.index.duplicated().any()
    codes = rows["error_code"].groupby("name").first()
    expected = {name: code for name, (_, code) in BAD.items()} | {GONE: "not_found"}
    assert codes.dropna().to_dict() == expected
    assert rows.loc["bad/report.dcm", "status"].tolist() == ["skipped"]
    assert rows[rows["status"] == "scored"]["score"].notna().all()
    assert rows[rows["status"] != "scored"]["score"].isna().all()


@pytest.mark.ray
def test_the_record_balances_and_lists_the_parts(runs: tuple[str, str]) -> None:
    record = read_run(runs[0])
    counts = record.counts
    assert counts.objects == record.manifest.objects == len(GOOD) + len(BAD)
    assert (counts.scored, counts.failed, counts.skipped) == (len(GOOD) - 1, len(BAD), 1)
    assert counts.rows == counts.objects + kit.FRAMES - 1
    assert len(record.parts) > 3
    assert sum(part.rows for part in record.parts) == counts.rows
    assert record.config["batch_size"] == BATCH
    names = {path.name for path in Path(runs[0]).iterdir()}
    assert names == {"run.json", "scores", "heatmaps", "calibrations"}, "what only an unfinished run needs is gone"


@pytest.mark.ray
def test_parts_have_the_schema_even_where_a_column_is_empty(runs: tuple[str, str]) -> None:
    for run in runs:
        for part in kit.parts(Path(run)):
            assert pq.read_schema(part).remove_metadata() == SCORES, part


@pytest.mark.ray
def test_bad_objects_leave_the_scores_of_good_ones_alone(runs: tuple[str, str]) -> None:
    mixed, clean = (kit.table(run) for run in runs)
    clean = clean.drop(index=GONE, level="name")
    mixed = mixed.loc[clean.index]
    np.testing.assert_allclose(mixed["score"], clean["score"], rtol=0, atol=1e-5)
    assert mixed["flagged"].tolist() == clean["flagged"].tolist()
    assert 0 < clean["flagged"].sum() < len(clean), "a threshold that splits the archive"
    assert (clean["flagged"] == (clean["score"] > clean["threshold"])).all()


@pytest.mark.ray
def test_frames_of_an_object_stay_together_in_order(runs: tuple[str, str]) -> None:
    rows = kit.table(runs[1]).loc["good/multi frame #1?.dcm"]
    assert rows.index.tolist() == list(range(kit.FRAMES))
    assert rows["score"].nunique() == kit.FRAMES
    holding = [
        p for p in kit.parts(Path(runs[1])) if rows["object_id"].iloc[0] in pq.read_table(p)["object_id"].to_pylist()
    ]
    assert len(holding) == 1


@pytest.mark.ray
def test_several_models_share_one_decoding_and_keep_their_own_rows(runs: tuple[str, str], home: Path) -> None:
    other = kit.make_model(home / "other", seed=1, size_px=48)
    run = str(home / "run-two")
    record = scan(str(home / "clean"), [str(home / "model"), other], run, heatmaps="all", batch_size=BATCH)
    assert [model.uri for model in record.models] == [str(home / "model"), other]
    rows, alone = read_scores(run), kit.table(runs[1])
    assert len(rows) == 2 * len(alone)
    assert record.counts.scored == record.counts.objects == len(GOOD)
    first, second = (kit.named(rows[rows["model_id"] == model.model_id]) for model in record.models)
    assert first.index.tolist() == second.index.tolist() == alone.index.tolist()
    np.testing.assert_allclose(first["score"], alone["score"], rtol=0, atol=1e-5)
    assert first["flagged"].tolist() == alone["flagged"].tolist()
    names = ["good/0000.png", "good/0003.jpg", "good/0006.dcm"]
    for name, found in zip(names, score(other, [str(home / "clean" / name) for name in names]), strict=True):
        assert second.loc[(name, 0), "score"] == pytest.approx(found["score"], abs=1e-5)
        assert second.loc[(name, 0), "threshold"] == found["threshold"]
    # Each model's heatmap has its own input size, in a shard that both share.
    for table, side in ((first, kit.SIZE_PX), (second, 48)):
        assert open_heatmap(run, table["heatmap"].iloc[0]).values.shape == (side, side)
    assert verify(run, sample=8).ok


@pytest.mark.ray
def test_kept_heatmaps_open_by_their_reference(runs: tuple[str, str], home: Path) -> None:
    mixed, clean = (read_scores(run) for run in runs)
    assert mixed["heatmap"].notna().tolist() == (mixed["status"] == "scored").tolist()
    assert clean[clean["flagged"].astype(bool)]["heatmap"].notna().all()
    for run, rows in zip(runs, (mixed, clean), strict=True):
        for reference in rows["heatmap"].dropna():
            heatmap = open_heatmap(run, reference)
            assert heatmap.values.shape == (kit.SIZE_PX, kit.SIZE_PX)
            assert (heatmap.geometry.rows, heatmap.geometry.columns) == (40, 40)
    del home


@pytest.mark.ray
def test_score_gives_the_scans_numbers(runs: tuple[str, str], home: Path) -> None:
    rows = kit.table(runs[0])
    names = ["good/0000.png", "good/0003.jpg", "good/0006.dcm", "good/multi frame #1?.dcm", "bad/truncated.dcm"]
    found = score(str(home / "model"), [str(home / "mixed" / name) for name in names])
    json.dumps(found, allow_nan=False)
    assert len(found) == len(names) - 1 + kit.FRAMES
    for one in found:
        row = rows.loc[(str(Path(one["image"]).relative_to(home / "mixed")), one["frame"])]
        assert one["status"] == row["status"]
        if one["score"] is None:
            assert one["error_code"] == row["error_code"]
        else:
            assert one["score"] == pytest.approx(row["score"], abs=1e-5)
            assert one["flagged"] == row["flagged"]


@pytest.mark.ray
def test_columns_tell_of_the_object_and_never_of_the_patient(runs: tuple[str, str]) -> None:
    rows = kit.table(runs[0])
    row = rows.loc[("good/0006.dcm", 0)]
    assert (row["modality"], row["rows"], row["bits"], row["study_month"]) == ("MR", 40, 12, "2024-02")
    assert row["bytes"] == len(GOOD["good/0006.dcm"])
    assert len(row["content_sha256"]) == 64
    assert row["study_uid"].startswith("2.25.") or row["study_uid"][0].isdigit()
    assert (rows[["fetch_ms", "decode_ms", "score_ms"]].dropna() >= 0).all(axis=None)
    assert rows["scored_at"].notna().all()
    everything = rows.to_csv() + (Path(runs[0]) / "run.json").read_text()
    assert "Zzyzx" not in everything
    assert "PLANTED" not in everything


@pytest.mark.ray
def test_the_same_command_again_returns_the_record_at_once(runs: tuple[str, str], home: Path) -> None:
    before = kit.digests(Path(runs[0]))
    again = scan(str(home / "manifest"), [str(home / "model")], runs[0], heatmaps="all", batch_size=32)
    assert again == read_run(runs[0])
    assert kit.digests(Path(runs[0])) == before


@pytest.mark.ray
def test_too_many_failures_end_with_their_own_error(runs: tuple[str, str], home: Path) -> None:
    with pytest.raises(TooManyFailed) as refused:
        scan(str(home / "manifest"), [str(home / "model")], runs[0], heatmaps="all", max_failed=0.05)
    assert (refused.value.exit_code, refused.value.failed, refused.value.objects) == (3, len(BAD), len(GOOD) + len(BAD))


@pytest.mark.ray
@pytest.mark.parametrize("other", [{"heatmaps": "none"}, {"where": "object_id < 5"}, {"identifiers": "none"}])
def test_another_command_into_the_same_folder_is_refused(
    runs: tuple[str, str], home: Path, other: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="which holds the finished run"):
        scan(str(home / "manifest"), [str(home / "model")], runs[0], **({"heatmaps": "all"} | other))


@pytest.mark.ray
def test_another_source_into_the_same_folder_is_refused(runs: tuple[str, str], home: Path) -> None:
    with pytest.raises(UsageError, match="which holds a scan of"):
        scan(str(home / "mixed"), [str(home / "model")], runs[1])


@pytest.mark.ray
def test_where_selects_and_identifiers_hide(runs: tuple[str, str], home: Path) -> None:
    # For its session.
    del runs
    out, key = str(home / "run-selected"), home / "key"
    key.write_text("secret\n")
    record = scan(
        str(home / "manifest"),
        [str(home / "model")],
        out,
        where="uri LIKE '%.dcm'",
        heatmaps="none",
        identifiers="hashed",
        identifiers_key=key,
    )
    rows = read_scores(out)
    dicoms = sum(name.endswith(".dcm") for name in [*GOOD, *BAD])
    assert record.counts.objects == record.manifest.objects == rows["object_id"].nunique() == dicoms
    assert rows["heatmap"].isna().all()
    assert rows["uri"].str.fullmatch(r"hmac:[0-9a-f]{32}").all()
    uids = rows.loc[rows["status"] == "scored", ["study_uid", "series_uid", "sop_uid"]]
    assert uids.apply(lambda column: column.str.fullmatch(r"hmac:[0-9a-f]{32}")).all(axis=None)
    assert "secret" not in (Path(out) / "run.json").read_text()


@pytest.mark.ray
def test_a_condition_accounts_for_what_it_leaves_out(
    runs: tuple[str, str], home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Pictures have no header: a condition on one would lose them without a word."""
    # For its session.
    del runs
    out, manifest = str(home / "run-decided"), index(str(home / "clean"), str(home / "with-headers"), headers=True)
    rows = read_manifest(manifest.uri).to_pandas()
    known, even = rows["rows"].notna(), rows["object_id"] % 2 == 0
    # An odd picture is not selected, whatever its header says; an even one nobody can decide.
    selected, undecided = int((known & even).sum()), int((~known & even).sum())
    assert min(selected, undecided) > 0
    record = scan(manifest.uri, [str(home / "model")], out, where="rows > 0 AND object_id % 2 = 0").manifest
    assert (record.listed, record.objects, record.undecided) == (len(rows), selected, undecided)
    assert record.not_selected == (~even).sum()
    assert f"{undecided} of {len(rows)} objects are left out because --where is NULL for them" in caplog.text
    assert verify(out).ok

    # Labels of what was left out are told from labels of what never was there.
    labels = home / "labels-of-all.csv"
    named = [*rows["uri"], str(home / "clean" / "never.png")]
    labels.write_text("image,anomalous\n" + "".join(f"{uri},{n % 2}\n" for n, uri in enumerate(named)))
    found = evaluate(out, str(labels), bootstrap=0)
    left_out = len(rows) - selected
    assert (found["n_missing"], found["labels"]["not_selected"]) == (left_out + 1, left_out)

    # What the record says of it is checked.
    path = Path(out) / "run.json"
    content = json.loads(path.read_text())
    content["manifest"]["undecided"] += 1
    path.write_text(json.dumps(sealed(content, None)))
    assert any(f"objects undecided; run.json has {undecided + 1}" in line for line in verify(out).differences)


def refused(home: Path, **options: Any) -> UsageError:
    """The refusal of a scan, which has written nothing."""
    call = {"source": str(home / "clean"), "model": [str(home / "model")], "out": str(home / "never")} | options
    with pytest.raises(UsageError) as error:
        scan(**call)
    assert not (Path(call["out"]) / "scores").exists()
    assert error.value.exit_code == 2
    return error.value


def test_bad_usage_is_refused_before_any_work(home: Path, tmp_path: Path) -> None:
    assert "missing" in str(refused(home, source=str(home / "missing")))
    assert "Name each --model once" in str(refused(home, model=[str(home / "model")] * 2))
    assert "--model takes one or more" in str(refused(home, model=[]))
    assert "--max-failed" in str(refused(home, max_failed=5))
    assert "needs a key" in str(refused(home, identifiers="hashed"))
    assert "--where" in str(refused(home, where="no_such_column = 1"))
    assert "--where" in str(refused(home, where="object_id < 0"))
    assert "model" in str(refused(home, model=[str(home / "clean")])).lower()
    (tmp_path / "empty").mkdir()
    refused(home, source=str(tmp_path / "empty"))
    (tmp_path / "diary.txt").write_text("not a run")
    assert "diary.txt" in str(refused(home, out=str(tmp_path)))


@pytest.mark.ray
def test_reduced_precision_is_another_run_and_refused_without_a_gpu(
    runs: tuple[str, str], home: Path, tmp_path: Path
) -> None:
    # For its session.
    del runs
    call = (str(home / "manifest"), [str(home / "model")], str(tmp_path / "run"))
    exact, reduced = (resolve(ScanSpec(source=call[0], model=call[1], out=call[2], amp=amp)) for amp in (False, True))
    assert exact.run_id != reduced.run_id
    assert (exact.spec.config()["amp"], reduced.spec.config()["amp"]) == (False, True)
    with pytest.raises(UsageError, match=r"--amp is for GPUs.*2 CPUs and 0 GPUs"):
        scan(*call, amp=True)
    assert not (tmp_path / "run").exists(), "the folder is free for a scan without it"


def test_syntaxes_without_a_decoder_are_told_before_any_actor_starts() -> None:
    explicit, mpeg2 = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.100"
    assert undecodable(pa.chunked_array([[explicit, mpeg2, None, mpeg2]])) == {mpeg2: 2}


def test_the_driver_reads_models_and_sources_without_torch(home: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from ad_jobs.scanning.intent import resolve; from ad_jobs.specs import ScanSpec\n"
        f"source, model = {str(home / 'clean')!r}, {str(home / 'model')!r}\n"
        f"asked = ScanSpec(source=source, model=model, out={str(tmp_path / 'run')!r})\n"
        "found = resolve(asked)\n"
        "print(found.objects, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{len(GOOD)} False"


def test_a_scans_workers_import_what_they_use() -> None:
    """Each of them unpickles a function or class of the pipeline; torch comes with a scoring actor's models."""
    program = "import sys, ad_jobs.scanning.pipeline; print(sorted({'torch', 'timm', 'torchvision', 'pydicom', 'scipy'}"
    done = subprocess.run(
        [sys.executable, "-c", f"{program} & set(sys.modules)))"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.ray
def test_a_model_of_an_unknown_detector_ends_the_scan_with_the_reason(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(home / "model", folder)
    later = json.loads((folder / DETECTOR).read_text()) | {"kind": "later"}
    later["model_id"] = model_id(later)
    (folder / DETECTOR).write_text(json.dumps(later))
    edited = {"model_id": later["model_id"], "held_out_sha256": None}
    calibration = json.loads((folder / CALIBRATION).read_text()) | edited
    (folder / CALIBRATION).write_text(json.dumps(calibration))
    with pytest.raises(UsageError, match=r"a detector that this retroscan has. Got: later in .*fit again"):
        scan(str(home / "clean"), [str(folder)], str(tmp_path / "run"), num_cpus=2)


def test_a_model_without_a_calibration_is_refused(home: Path, tmp_path: Path) -> None:
    for name in ("detector.json", "weights.safetensors"):
        (tmp_path / name).write_bytes((home / "model" / name).read_bytes())
    assert "calibration" in str(refused(home, model=[str(tmp_path)]))


def test_an_unfinished_run_of_another_command_is_refused(home: Path, tmp_path: Path) -> None:
    marker = {"run_id": "0123456789ab", "started_at": "2026-01-01T00:00:00Z", "config": {}}
    (tmp_path / "run.pending.json").write_text(json.dumps(marker))
    assert "the unfinished run 0123456789ab" in str(refused(home, out=str(tmp_path)))
