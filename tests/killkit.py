"""A scan whose driver is killed in the middle, and what the same command makes of it: wherever the run lies."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable

import numpy as np
import pytest
import scankit as kit

from ad_jobs.errors import UsageError
from ad_jobs.results.read import read_run, read_scores
from cluster import storage

WAIT_S = 240.0
# Big enough to take some 50 ms each: a kill shall find work left to do.
OBJECTS = {f"good/{n:04d}.png": kit.png(4 * (n % 3), size=1400) for n in range(48)} | kit.good_objects(8)


def command(source: str, model: str, out: str) -> str:
    """The scan, as a statement."""
    return f"scan({source!r}, [{model!r}], {out!r}, batch_size=4, num_cpus=2)"


def killed_after_first_parts(statement: str, parts: Callable[[], int]) -> None:
    """Run the statement in a process that is killed as soon as two parts are written."""
    process = kit.in_a_process(statement, stderr=subprocess.PIPE)
    deadline = time.monotonic() + WAIT_S
    while parts() < 2:
        assert process.poll() is None, process.stderr.read().decode()[-2000:] if process.stderr else ""
        assert time.monotonic() < deadline, "no part was written"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def to_the_end(statement: str) -> None:
    """Run the statement in a process of its own."""
    process = kit.in_a_process(statement, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, errors.decode()[-2000:]


def parts_in(out: str) -> int:
    """Parts that an unfinished run has so far."""
    try:
        return sum(name.endswith(".parquet") for name in storage.list_names(storage.join(out, "scores")))
    except storage.NotFound:
        return 0


def kill_and_compare(source: str, model: str, out: str, undisturbed: str) -> None:
    """Kill the scan into `out`, repeat it, and compare with `undisturbed`."""
    killed_after_first_parts(command(source, model, out), lambda: parts_in(out))
    with pytest.raises(UsageError, match="Run the same scan command again"):
        read_run(out)
    half = read_scores(out, allow_unfinished=True)
    assert 0 < half["object_id"].nunique() < len(OBJECTS)

    to_the_end(command(source, model, out))
    to_the_end(command(source, model, undisturbed))
    resumed, whole = kit.table(out), kit.table(undisturbed)
    assert resumed.index.tolist() == whole.index.tolist()
    assert not resumed.index.duplicated().any()
    assert resumed["object_id"].tolist() == whole["object_id"].tolist()
    np.testing.assert_allclose(resumed["score"], whole["score"], rtol=0, atol=1e-5)
    assert resumed["flagged"].tolist() == whole["flagged"].tolist()
    assert resumed["heatmap"].notna().tolist() == whole["heatmap"].notna().tolist()
    assert read_run(out).run_id == read_run(undisturbed).run_id
    # What was done before the kill was not done again: it still has its time.
    kept = resumed.set_index(["object_id"], append=True)["scored_at"].reset_index("name", drop=True)
    before = half.set_index(["frame", "object_id"])["scored_at"]
    assert (kept.loc[before.index] == before).mean() > 0.5
    left = [
        name
        for name in storage.list_names(out)
        if name.partition("/")[0] not in ("heatmaps", "manifest", "scores")
    ]
    assert left == ["run.json"]
