"""The source of a scan's slices."""

import cloudpickle
import numpy as np
import pyarrow as pa

from cluster.dataset import SliceSource


def test_slices_cover_the_table_once_and_carry_only_themselves() -> None:
    rows = 10_000
    source = SliceSource(pa.table({"id": np.arange(rows), "text": ["x" * 100] * rows}), 256)
    tasks = source.get_read_tasks(parallelism=1)
    assert len(tasks) == source.tasks == 40
    found = [table for task in tasks for table in task()]
    assert pa.concat_tables(found)["id"].to_pylist() == list(range(rows))
    assert len(cloudpickle.dumps(tasks[0])) < 60_000, "a task that pickles the whole table takes a megabyte"
