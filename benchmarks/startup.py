"""Where the start and the end of `retroscan scan` go, and how much of both a script of Ray Data has that does nothing.

    PYTHONPATH=tests python -m benchmarks.startup [--work FOLDER]

`scan` scores a few images with the light model of benchmarks.scan.
`nothing` sends as many rows through a map task and an actor that return what they are given: neither torch
nor retroscan is imported.
Both say when they reached what; of three runs each, the one of the median length is shown.
Writes benchmarks/results/startup.md.
On a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

RESULT = Path(__file__).parent / "results" / "startup.md"
IMAGES = 32
RUNS = 3
# Until the last tasks are known to Ray's timeline.
TOLD_S = 2
STEPS = {
    "asked": "the command is imported, models and source are read; `ray.init` is called",
    "started": "`ray.init` returns",
    "actor": "the actor's process runs, its constructor begins",
    "fetching": "the first task that fetches begins",
    "fetched": "the first task that fetches ends",
    "ready": "the actor's constructor ends",
    "scored": "the actor's last call ends",
    "closing": "all is written; `ray.shutdown` is called",
    "closed": "`ray.shutdown` returns",
    "ended": "the process ends",
}


def scan_few(source: str, model: str, out: Path) -> None:
    """A scan as a user makes it, that notes when Ray starts and ends."""
    from ad_jobs.cli.app import main as command

    given = ["scan", source, "--model", model, "--out", str(out / "run"), "--heatmaps", "none"]
    _noting(lambda: command(given), out)


def nothing(source: str, model: str, out: Path) -> None:
    """Ray Data, and nothing else."""
    del source, model
    _noting(_pass_rows, out)


class _Same:
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


def _same(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def _pass_rows() -> None:
    import ray
    import ray.data

    ray.init(log_to_driver=False, include_dashboard=False)
    rows = ray.data.range(IMAGES).map_batches(_same, num_cpus=0.5)
    done = rows.map_batches(_Same, num_cpus=1, compute=ray.data.ActorPoolStrategy(size=1)).count()
    assert done == IMAGES
    ray.shutdown()


def _noting(run: Callable[[], Any], out: Path) -> None:
    """Run it, and write into `out` when Ray was asked to start, had started, and had ended, and what it did between."""
    import ray

    at: dict[str, float] = {}
    tasks: list[dict[str, Any]] = []
    init, shutdown = ray.init, ray.shutdown

    def noted_init(*given: Any, **more: Any) -> Any:
        at.setdefault("asked", time.time())
        try:
            return init(*given, **more)
        finally:
            at["started"] = time.time()

    def noted_shutdown(*given: Any, **more: Any) -> None:
        if not ray.is_initialized():
            return shutdown(*given, **more)
        at["closing"] = time.time()
        time.sleep(TOLD_S)
        tasks.extend(ray.timeline())
        at["told"] = time.time()
        shutdown(*given, **more)
        at["closed"] = time.time()

    with (
        # The command's own end.
        suppress(SystemExit),
        patch.object(ray, "init", noted_init),
        patch.object(ray, "shutdown", noted_shutdown),
    ):
        run()
    (out / "noted.json").write_text(json.dumps({"at": at, "tasks": tasks}))


def measure(way: str, source: str, model: str, work: Path) -> dict[str, float]:
    """Seconds from the command until each of STEPS."""
    with tempfile.TemporaryDirectory(dir=work) as out:
        command = [sys.executable, "-m", "benchmarks.startup", "--way", way, source, model, out]
        began = time.time()
        subprocess.run(command, check=True, capture_output=True)
        ended = time.time()
        noted = json.loads((Path(out) / "noted.json").read_text())
    at = noted["at"] | {"ended": ended} | _reached(noted["tasks"])
    # For the timeline, by this script alone.
    waited = at["told"] - at["closing"]
    late = ("closed", "ended")
    return {step: at[step] - began - (waited if step in late else 0) for step in STEPS}


def _reached(tasks: list[dict[str, Any]]) -> dict[str, float]:
    """When actor and fetching tasks began and ended, by Ray's timeline (microseconds)."""

    def spans(*words: str) -> list[tuple[float, float]]:
        found = (one for one in tasks if all(word in one["cat"] for word in ("task::", *words)))
        return sorted((one["ts"] / 1e6, (one["ts"] + one["dur"]) / 1e6) for one in found)

    actor, calls = (spans("MapWorker(MapBatches", method) for method in (".__init__", ".submit"))
    fetch = spans("(_fetch)") or spans("(_same)")
    return {
        "actor": actor[0][0],
        "ready": actor[0][1],
        "fetching": fetch[0][0],
        "fetched": fetch[0][1],
        "scored": calls[-1][1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/scan"))
    parser.add_argument("--way", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        way, source, model, out = given.way
        {"scan": scan_few, "nothing": nothing}[way](source, model, Path(out))
        return
    # Not above: `nothing` is to import none of it.
    from ad_jobs.results.run import machine, versions
    from benchmarks.scan import make_model, write_archive

    work = given.work.resolve()
    folder = work / "archives" / f"png-{IMAGES}"
    write_archive(folder, "png", IMAGES)
    model = make_model(work / "models" / "light", "light")
    found = {}
    for way in ("scan", "nothing"):
        runs = [measure(way, str(folder), model, work) for _ in range(RUNS)]
        found[way] = sorted(runs, key=lambda one: one["ended"])[RUNS // 2]
        print(way, *(f"{one['ended']:.1f} s" for one in runs), flush=True)
    here, using = machine(), versions()
    lines = [
        "# Where the start and the end of a scan go",
        "",
        f"`python -m benchmarks.startup` on {here['cpu']}, {here['cores']} cores, ray {using['ray']}, torch "
        f"{using['torch']}: "
        f"seconds from the command until a step is reached. `scan` scores {IMAGES} PNGs with the light model of "
        "[scan.md](scan.md); `Ray Data alone` sends as many rows through a task and an actor that return what they "
        "are given, "
        f"and imports neither torch nor retroscan. The run of median length of {RUNS} each.",
        "",
        "| step | scan | Ray Data alone |",
        "| --- | ---: | ---: |",
        *(f"| {text} | {found['scan'][step]:.1f} | {found['nothing'][step]:.1f} |" for step, text in STEPS.items()),
    ]
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
