"""The command line, where its embedded Ray's folder and metrics are kept.

python watched_ray.py FOLDER VERB ARGUMENTS...
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import ray

from ad_jobs.cli.app import run
from cluster import session


def watch(folder: Path) -> None:
    """Make every session of this process leave what Ray wrote in `folder`, and its metrics in metrics.txt."""

    @contextmanager
    def kept() -> Iterator[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder

    shutdown = ray.shutdown

    def last_look(*arguments: Any, **options: Any) -> None:
        if ray.is_initialized():
            [node] = ray.nodes()
            address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            # A worker's numbers reach the node's page some time after they were told.
            for _ in range(60):
                with urlopen(address, timeout=30) as answer:
                    page = answer.read()
                if b"retroscan_objects_total" in page:
                    break
                time.sleep(0.5)
            (folder / "metrics.txt").write_bytes(page)
        shutdown(*arguments, **options)

    session.scratch_folder = kept  # type: ignore[assignment]
    ray.shutdown = last_look


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
    del sys.argv[1]
    run()
