"""Faults of the object store: answers that fail, a server that dies, keys that end, and no room left."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import scankit as kit
from s3server import S3Server

from ad_jobs.errors import JobError, TooManyFailed, UsageError
from ad_jobs.index import index
from ad_jobs.results.read import read_scores
from ad_jobs.scan import scan
from ad_jobs.scoring.model_store import SCORE_CPU_MS
from cluster import storage
from cluster.session import session
from models.record import DETECTOR
from tests.faults.conftest import CHAPTER, OBJECTS, PREFIX, asked_for, finish, statement, wait_for
from tests.faults.proxy import Fault, FaultProxy, Request

pytestmark = [pytest.mark.ray, pytest.mark.s3]
ARCHIVE = f"archive/{PREFIX}/"
KINDS = [Fault("error"), Fault("error", 503, "SlowDown"), Fault("slow"), Fault("reset"), Fault("cut")]


def of_objects(request: Request) -> bool:
    """Whether the request is the GET of an object of the archive."""
    return request.method == "GET" and request.key.startswith(ARCHIVE) and not request.query


@pytest.fixture(scope="module", autouse=True)
def one_ray(through: FaultProxy) -> Iterator[None]:
    """One Ray for all tests here, also for a scan that goes on after one that failed; it asks the proxy."""
    del through
    with session(num_cpus=2):
        yield


def test_an_object_is_asked_for_once(undisturbed: pd.DataFrame) -> None:
    # The fixture has counted its requests.
    assert len(undisturbed) >= len(OBJECTS)


def test_an_actor_loads_a_model_once_however_many_chapters(
    s3: S3Server,
    proxy: FaultProxy,
    source: str,
    model: str,
    undisturbed: pd.DataFrame,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dear = s3.put_folder(Path(model), "faults/model")
    record = json.loads((Path(model) / DETECTOR).read_text())
    # A second of CPU for an object: worth an actor for each CPU.
    s3.put(f"faults/model/{DETECTOR}", json.dumps(record | {SCORE_CPU_MS: 1000.0}).encode())
    since = len(proxy.requests)
    out = s3.uri("faults/chapters")
    with caplog.at_level("INFO", "retroscan.scan"):
        scan(source, [dear], out, batch_size=4, num_cpus=2, chapter_objects=len(OBJECTS) // 5)
    assert f"Scoring {len(OBJECTS)} objects: 2 actors" in caplog.text
    assert "; 1000 ms of CPU to score an object." in caplog.text
    loads = [request for request in proxy.requests[since:] if request.key.endswith("model/weights.safetensors")]
    # And the driver, which reads the model before.
    assert len(loads) == 1 + 2
    assert len({name.split("-")[1] for name in storage.list_names(storage.join(out, "scores"))}) == 6
    kit.assert_as_undisturbed(out, undisturbed)


def test_answers_that_fail(s3: S3Server, proxy: FaultProxy, source: str, model: str, undisturbed: pd.DataFrame) -> None:
    # In this test: the proxy's own count goes on from those before.
    asked: Counter[tuple[str, str]] = Counter()
    parts: list[str] = []

    def rule(request: Request) -> Fault | None:
        asked[request.method, request.key] += 1
        number = asked[request.method, request.key]
        # An eighth of the objects, twice each, every kind of fault.
        if of_objects(request) and number <= 2:
            place = zlib.crc32(request.key.encode())
            return KINDS[(place // 8 + number) % len(KINDS)] if place % 8 == 0 else None
        if request.method == "PUT" and "/scores/" in request.key and number == 1:
            parts.append(request.key)
            return KINDS[len(parts) % 2]
        return None

    proxy.rule = rule
    proxy.faults.clear()
    out = s3.uri("faults/answers")
    scan(source, [model], out, batch_size=4, num_cpus=2, chapter_objects=CHAPTER)
    assert {"500", "503", "slow", "reset", "cut"} == set(proxy.faults)
    kit.assert_as_undisturbed(out, undisturbed)


def test_a_server_that_is_killed_and_comes_back(
    s3: S3Server, proxy: FaultProxy, source: str, model: str, undisturbed: pd.DataFrame
) -> None:
    since = len(proxy.requests)
    away = threading.Event()

    def kill() -> None:
        while len(asked_for(proxy, since)) < len(OBJECTS) // 3:
            time.sleep(0.02)
        s3.kill()
        away.set()
        time.sleep(3.0)
        s3.start()

    killer = threading.Thread(target=kill)
    killer.start()
    out = s3.uri("faults/killed")
    scan(source, [model], out, batch_size=4, num_cpus=2, chapter_objects=CHAPTER)
    killer.join()
    assert away.is_set()
    kit.assert_as_undisturbed(out, undisturbed)


@pytest.mark.usefixtures("proxy")
def test_an_archive_that_changes_between_index_and_scan(
    s3: S3Server, source: str, model: str, undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    manifest, out = str(tmp_path / "manifest"), str(tmp_path / "run")
    index(source, manifest)
    names = sorted(name for name in OBJECTS if name.endswith(".png") and name.startswith("good/"))
    changed, gone = names[3], names[7]
    try:
        s3.put(f"{PREFIX}/{changed}", kit.png(4001))
        s3.client.delete_object(Bucket=s3.bucket, Key=f"{PREFIX}/{gone}")
        scan(manifest, [model], out, batch_size=4, num_cpus=2, chapter_objects=CHAPTER)
    finally:
        for name in (changed, gone):
            s3.put(f"{PREFIX}/{name}", OBJECTS[name])
    table = kit.table(out)
    row = table.loc[(changed, 0)]
    assert (row["status"], row["error_detail"]) == ("scored", "etag_changed")
    lost = table.xs(gone, level="name").iloc[0]
    assert (lost["status"], lost["error_code"]) == ("failed", "not_found")
    others = [name not in (changed, gone) for name, _ in table.index]
    same = undisturbed.loc[[name not in (changed, gone) for name, _ in undisturbed.index]]
    assert table.loc[others].index.tolist() == same.index.tolist()
    pd.testing.assert_series_equal(table.loc[others]["score"], same["score"], rtol=0, atol=1e-5)


def test_keys_that_end_in_the_middle(
    proxy: FaultProxy, source: str, model: str, undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    since, out = len(proxy.requests), str(tmp_path / "run")

    def rule(request: Request) -> Fault | None:
        if of_objects(request) and len(asked_for(proxy, since)) > 95:
            return Fault("error", 403, "InvalidAccessKeyId")
        return None

    proxy.rule = rule
    with pytest.raises(JobError, match="refuses these credentials") as caught:
        scan(source, [model], out, batch_size=4, num_cpus=2, chapter_objects=CHAPTER)
    assert "run the same command again" in str(caught.value)
    half = read_scores(out, allow_unfinished=True)
    done = set(half["uri"].str.removeprefix(f"{source}/"))
    assert 0 < len(done) < len(OBJECTS)
    assert not (half["error_code"] == "access_denied").any()

    proxy.rule = lambda _: None
    again = len(proxy.requests)
    scan(source, [model], out, batch_size=4, num_cpus=2, chapter_objects=CHAPTER)
    kit.assert_as_undisturbed(out, undisturbed)
    asked = asked_for(proxy, again)
    # What was done is not fetched again.
    assert not set(asked) & done
    assert len(asked) == len(OBJECTS) - len(done)
    assert proxy.listings(PREFIX, again) == 0


def test_a_store_without_room(
    s3: S3Server, proxy: FaultProxy, source: str, model: str, undisturbed: pd.DataFrame
) -> None:
    parts: list[str] = []

    def rule(request: Request) -> Fault | None:
        if request.method == "PUT" and "/scores/" in request.key:
            parts.append(request.key)
            if len(parts) > 4:
                return Fault("error", 507, "InsufficientStorage")
        return None

    proxy.rule = rule
    out = s3.uri("faults/full")
    with pytest.raises(JobError, match="No room is left"):
        scan(source, [model], out, batch_size=4, num_cpus=2, chapter_objects=CHAPTER)
    with pytest.raises(UsageError, match="Run the same scan command again"):
        read_scores(out)
    proxy.rule = lambda _: None
    scan(source, [model], out, batch_size=4, num_cpus=2, chapter_objects=CHAPTER)
    kit.assert_as_undisturbed(out, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this user may not mount a small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.full
@pytest.mark.usefixtures("proxy")
def test_a_disk_without_room(small_disk: Path, source: str, model: str, undisturbed: pd.DataFrame) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 200 * 1024)
    out = str(small_disk / "run")
    with pytest.raises(JobError, match="No room is left"):
        scan(source, [model], out, batch_size=4, num_cpus=2, chapter_objects=CHAPTER)
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    scan(source, [model], out, batch_size=4, num_cpus=2, chapter_objects=CHAPTER)
    kit.assert_as_undisturbed(out, undisturbed)


def test_two_scans_into_one_folder(
    proxy: FaultProxy, source: str, model: str, undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    out = str(tmp_path / "run")
    # So that the first is still there.
    proxy.rule = lambda request: Fault("slow") if of_objects(request) else None
    first = kit.in_a_process(statement(source, model, out), stderr=subprocess.PIPE)
    wait_for((tmp_path / "run" / "run.lock").exists, first, within_s=120)
    with pytest.raises(UsageError, match="One scan at a time writes to a folder") as caught:
        scan(source, [model], out, batch_size=4, num_cpus=2, chapter_objects=CHAPTER)
    assert str(first.pid) in str(caught.value)
    proxy.rule = lambda _: None
    finish(first, within_s=240)
    kit.assert_as_undisturbed(out, undisturbed)


def test_too_many_failures_end_the_run_and_keep_what_is_done(tmp_path: Path, model: str) -> None:
    bad = {f"bad/{number:03d}.png": b"no picture\n" * 9 for number in range(60)}
    archive = kit.write_archive(tmp_path / "archive", bad | kit.good_objects(60))
    out = str(tmp_path / "run")
    with pytest.raises(TooManyFailed) as caught:
        scan(archive, [model], out, batch_size=4, num_cpus=2, max_failed=0.05, chapter_objects=CHAPTER)
    assert caught.value.exit_code == 3
    with pytest.raises(UsageError, match="Run the same scan command again"):
        read_scores(out)
    half = read_scores(out, allow_unfinished=True)
    # It ended there: more than 6 of 120 had failed, and not all were tried.
    assert 6 < (half["status"] == "failed").sum() <= half["object_id"].nunique() < 120
    record = scan(archive, [model], out, batch_size=4, num_cpus=2, max_failed=0.6, chapter_objects=CHAPTER)
    assert (record.counts.failed, record.counts.scored) == (60, 60)
    kept = read_scores(out).set_index("object_id")["scored_at"]
    assert (kept[half["object_id"]].to_numpy() == half["scored_at"].to_numpy()).all()
