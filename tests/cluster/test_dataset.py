"""The source of a scan's slices, and its last stage."""

import time
from pathlib import Path

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest
import ray.data

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


@pytest.mark.ray
def test_no_more_tasks_finish_rows_at_once_than_are_allowed(tmp_path: Path) -> None:
    def finish(rows: pa.Table) -> pa.Table:
        busy = tmp_path / f"busy-{rows['id'][0]}"
        busy.touch()
        time.sleep(0.2)
        at_once = len(list(tmp_path.glob("busy-*")))
        busy.unlink()
        return rows.append_column("at_once", pa.array([at_once] * rows.num_rows))

    most = {}
    with session(num_cpus=2), data_context():
        for tasks in (1, 3):
            source = SliceSource(pa.table({"id": np.arange(24)}), 2)
            read = ray.data.read_datasource(source, override_num_blocks=source.tasks, num_cpus=0.5)
            rows = list(follow(read, finish, rows=2, tasks=tasks, num_cpus=0.1))
            assert sorted(row["id"] for row in rows) == list(range(24))
            most[tasks] = max(row["at_once"] for row in rows)
    assert most[1] == 1
    assert 1 < most[3] <= 3
