"""What a dry run tells: the numbers that the real one begins with, and it leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pyarrow.parquet as pq
import pytest
import scankit as kit
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ad_jobs.cli import dry_run
from ad_jobs.cli.app import app
from ad_jobs.fitting.intent import resolve
from ad_jobs.fitting.split import split_anomalous, split_by_group
from ad_jobs.images.decode import decode
from ad_jobs.images.policy import Limits, PixelPolicy, Tiles
from ad_jobs.results.read import read_run
from ad_jobs.scan import scan
from ad_jobs.specs import FitSpec
from cluster.session import session

OBJECTS = kit.good_objects(24)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model, an archive and its finished run, in a session of two CPUs."""
    folder = tmp_path_factory.mktemp("dry")
    kit.make_model(folder / "model")
    kit.write_archive(folder / "archive", OBJECTS)
    with session(num_cpus=2):
        scan(str(folder / "archive"), [str(folder / "model")], str(folder / "run"), batch_size=4)
        yield folder


def told(home: Path, out: str, *words: str) -> dict[str, Any]:
    """The JSON of a dry run of the scan into a folder; the folder is as it was."""
    folder = home / out
    before = kit.digests(folder) if folder.exists() else None
    given = ["scan", home / "archive", "--model", home / "model", "--out", folder, "--batch-size", 4, *words]
    result = CliRunner().invoke(app, [*map(str, given), "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    assert (kit.digests(folder) if folder.exists() else None) == before, "a dry run writes nothing"
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.ray
def test_a_new_scan(home: Path) -> None:
    found = told(home, "never")
    assert (found["objects"], found["objects_left"]) == (len(OBJECTS), len(OBJECTS))
    assert (found["chapters"], found["chapters_left"]) == (1, 1)
    # Few objects are worth one.
    assert (found["actors"], found["actor_cpus"], found["fetch_tasks"]) == (1, 0.5, 1)
    assert (found["cluster"]["nodes"], found["cluster"]["cpus"]) == (1, 2)
    assert found["batch_size"] == 4
    assert found["block_rows"] == 3, "an eighth of the objects"
    assert found["part_rows"] == 4
    assert found["run_id"] == read_run(str(home / "run")).run_id, "the run that the command would make"


@pytest.mark.ray
def test_a_cluster_that_grows_is_told_of_and_not_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETROSCAN_CLUSTER_CPUS", "64")
    found = told(home, "never")
    assert (found["cluster"]["cpus"], found["cluster"]["grows_to"]) == (2, {"cpus": 64, "gpus": 0})
    assert "without --dry-run, 64 CPUs and 0 GPUs are waited for" in dry_run.scan_text(found)


@pytest.mark.ray
def test_a_scan_of_selected_objects(home: Path) -> None:
    found = told(home, "never", "--where", "uri LIKE '%.dcm'")
    selected = sum(name.endswith(".dcm") for name in OBJECTS)
    assert found["objects_left"] == selected
    assert f"{len(OBJECTS)} = {selected} selected + {len(OBJECTS) - selected} not selected + 0 undecided" in (
        dry_run.scan_text(found)
    )


@pytest.mark.ray
def test_a_finished_scan_has_nothing_left(home: Path) -> None:
    found = told(home, "run")
    assert (found["objects"], found["objects_left"], found["chapters_left"]) == (len(OBJECTS), 0, 0)


@pytest.mark.ray
def test_a_continued_scan_has_left_what_is_in_no_part(home: Path) -> None:
    record = read_run(str(home / "run"))
    shutil.copytree(home / "run", home / "continued")
    (home / "continued/run.json").unlink()
    (home / "continued/run.pending.json").write_text(json.dumps({"run_id": record.run_id}))
    lost, kept = list(kit.parts(home / "continued"))[:2]
    missing = len(set(pq.read_table(lost)["object_id"].to_pylist()))
    lost.unlink()
    # The same objects twice: left alone, and not counted.
    shutil.copy(kept, kept.with_name(lost.name))
    assert told(home, "continued")["objects_left"] == missing


@pytest.mark.ray
def test_another_runs_folder_is_refused(home: Path) -> None:
    result = CliRunner().invoke(
        app,
        [
            "scan",
            str(home / "archive"),
            "--model",
            str(home / "model"),
            "--out",
            str(home / "run"),
            "--heatmaps",
            "none",
            "--dry-run",
        ],
    )
    assert result.exit_code == 2, result.output
    assert "the finished run" in result.output


@pytest.mark.ray
def test_a_fit(home: Path) -> None:
    out = home / "never-fitted"
    given = [
        "fit",
        "--detector",
        "mkd",
        "--normal",
        home / "archive",
        "--out",
        out,
        "--size",
        "64x32",
        "--set",
        "batch_size=5",
        "--workers",
        2,
        "--dry-run",
    ]
    result = CliRunner().invoke(app, [*map(str, given), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["workers"], found["worker_cpus"], found["worker_gpus"]) == (2, 1.0, 0.0)
    assert found["steps_an_epoch"] == 5, "22 of 24 images are fitted on, 5 a step, 2 in the last"
    assert found["decoded_bytes"] == {"grey": 24 * 64 * 32 * 2, "colour": 24 * 64 * 32 * 2 * 3}
    result = CliRunner().invoke(app, [*map(str, given)])
    assert "2 of 1 CPU and 0 GPUs" in result.output
    assert 0 < found["room_bytes"] < found["cluster"]["object_store_bytes"]
    assert "decoded again" not in result.output
    assert not out.exists()


def test_tiles_are_counted_where_images_are_resized_before() -> None:
    known = resolved(tile=64, size=160, overlap=8)
    assert known == (160 * 160, 9)
    assert dry_run.steps_an_epoch(20, 0, 10, known.tiles) == 17, "18 images of 9 tiles"
    assert resolved(tile=64) is None
    assert resolved(size=32) == (32 * 32, 1)
    cluster = {"cpus": 2, "gpus": 0, "nodes": 1, "memory_bytes": 1, "object_store_bytes": 1}
    workers = {"workers": 1, "worker_cpus": 1, "worker_gpus": 0, "worker_threads": 1}
    counts = {"normal": 20, "anomalous": 0, "batch_size": 16, "room_bytes": 1 << 20}
    grown = {"grows_to": {"cpus": 0, "gpus": 0}}
    told = dry_run.fit_text(
        {"cluster": cluster | grown, **workers, **counts, "steps_an_epoch": None, "decoded_bytes": None}
    )
    assert "as many as images have tiles an epoch, of 16 images" in told
    assert "images of their own sizes, decoded; 1.0 MiB of it may stay so" in told


def resolved(**options: Any) -> Any:
    policy = resolve(FitSpec(detector="linear", normal="a", out="m", **options)).policy
    return dry_run.known_frame(policy)


@pytest.mark.ray
def test_as_text(home: Path) -> None:
    result = CliRunner().invoke(
        app, ["scan", str(home / "archive"), "--model", str(home / "model"), "--out", str(home / "run"), "--dry-run"]
    )
    assert "1 node: 2 CPUs" in result.output
    assert f"{len(OBJECTS)}: {len(OBJECTS)} done, 0 left" in result.output


@settings(deadline=None)
@given(st.integers(2, 200), st.sampled_from([0, 2, 11, 60, 250]), st.integers(1, 40))
def test_steps_are_those_of_the_batches_that_a_fit_makes(normal: int, anomalous: int, batch_size: int) -> None:
    images = len(split_by_group([str(n) for n in range(normal)], 0)[0])
    if anomalous:
        images = max(images, len(split_anomalous([str(n) for n in range(anomalous)], 0)[0]))
    assert dry_run.steps_an_epoch(normal, anomalous, batch_size) == len(range(0, images, batch_size))


def test_no_decoding_takes_more_memory_than_is_said() -> None:
    side = 700
    rng = np.random.default_rng(0)
    file = imagecodecs.png_encode(rng.integers(0, 65536, (side, side, 4)).astype(np.uint16))
    policy, limits = PixelPolicy(channels=1, height_px=64, width_px=64), Limits()
    # What is imported on the way does not count.
    decode(file, policy, limits)
    tracemalloc.start()
    decode(file, policy, limits)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.9 < peak / side**2 / dry_run.DECODE_BYTES_A_PIXEL < 1.02


def test_limits_bound_a_fetch_task() -> None:
    policy = PixelPolicy(channels=3, height_px=128, width_px=128)
    small = Limits(max_bytes=1 << 20, max_pixels=1_000_000, max_frames=1)
    base = dry_run.fetch_task_bytes(small, [policy])
    assert base < 256 << 20
    large = small.model_copy(update={"max_pixels": 100_000_000})
    assert dry_run.fetch_task_bytes(large, [policy]) > base + (3 << 30)
    bounded = large.model_copy(update={"max_memory_bytes": 1 << 30})
    assert dry_run.fetch_task_bytes(bounded, [policy]) < base + (1 << 30)
    assert dry_run.fetch_task_bytes(small, [policy, policy]) > base
    # What is cut is as large as it is stored, up to the limit of all frames together.
    tiled = policy.model_copy(update={"tiles": Tiles(overlap_px=8)})
    frames = dry_run.COPIES_OF_FRAMES * dry_run.BYTES_A_VALUE * 3
    assert dry_run.fetch_task_bytes(small, [tiled]) == base + frames * (1_000_000 - 128**2)
    cine = small.model_copy(update={"max_frames": 10_000})
    assert dry_run.fetch_task_bytes(cine, [tiled]) == base + frames * (cine.max_input_pixels - 128**2)
