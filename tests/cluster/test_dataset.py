"""The source of a scan's slices, and its last stage."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest
import ray.data
from ray.cluster_utils import Cluster

from cluster.dataset import SliceSource, follow
from cluster.session import data_context, session


def test_slices_cover_the_table_once_and_carry_only_themselves() -> None:
    rows = 10_000
    source = SliceSource(pa.table({"id": np.arange(rows), "text": ["x" * 100] * rows}), 256)
    tasks = source.get_read_tasks(parallelism=1)
    assert len(tasks) == source.tasks == 40
    found = [table for task in tasks for table in task()]
    assert pa.concat_tables(found)["id"].to_pylist() == list(range(rows))
    assert len(cloudpickle.dumps(tasks[0])) < 60_000, "a task that pickles the whole table takes a megabyte"


def counting(folder: Path, seconds: float) -> Callable[[pa.Table], pa.Table]:
    """A task that takes so long, and adds how many such tasks were at work at its end."""

    def work(rows: pa.Table) -> pa.Table:
        busy = folder / f"busy-{rows['id'][0]}"
        busy.touch()
        time.sleep(seconds)
        at_once = len(list(folder.glob("busy-*")))
        busy.unlink()
        return rows.append_column("at_once", pa.array([at_once] * rows.num_rows))

    return work


class Score:
    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows


def rows_of_two_nodes(folder: Path) -> list[dict[str, Any]]:
    """What a scan's pipeline gives on two nodes of one CPU."""
    cluster = Cluster()
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=1 << 28)
        # An actor, a fetching and a writing task fit on each of them; 0.05 CPUs are left.
        with session(cluster.address) as has, data_context(has):
            source = SliceSource(pa.table({"id": np.arange(60)}), 1)
            read = ray.data.read_datasource(source, override_num_blocks=source.tasks, num_cpus=0.4)
            fetched = read.map_batches(counting(folder, 0.4), batch_size=None, batch_format="pyarrow", num_cpus=0.4)
            pool = ray.data.ActorPoolStrategy(size=2)
            scored = fetched.map_batches(Score, batch_size=1, batch_format="pyarrow", compute=pool, num_cpus=0.5)
            return list(follow(scored, lambda rows: rows, rows=1, tasks=2, num_cpus=0.05))
    finally:
        cluster.shutdown()


@pytest.mark.ray
@pytest.mark.full
def test_what_tasks_leave_of_each_node_is_used_too(tmp_path: Path) -> None:
    # In a process of its own: where there was an embedded Ray before, actors of another cluster do not start.
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        rows = process.submit(rows_of_two_nodes, tmp_path).result()
    assert sorted(row["id"] for row in rows) == list(range(60))
    # At first Ray gives all that there is; what counts is what it does once its autoscaler has asked.
    assert max(row["at_once"] for row in rows[30:]) == 2


@pytest.mark.ray
def test_no_more_tasks_finish_rows_at_once_than_are_allowed(tmp_path: Path) -> None:
    most = {}
    with session(num_cpus=2) as has, data_context(has):
        for tasks in (1, 3):
            source = SliceSource(pa.table({"id": np.arange(24)}), 2)
            read = ray.data.read_datasource(source, override_num_blocks=source.tasks, num_cpus=0.5)
            rows = list(follow(read, counting(tmp_path, 0.2), rows=2, tasks=tasks, num_cpus=0.1))
            assert sorted(row["id"] for row in rows) == list(range(24))
            most[tasks] = max(row["at_once"] for row in rows)
    assert most[1] == 1
    assert 1 < most[3] <= 3
