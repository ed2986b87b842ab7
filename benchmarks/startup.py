"""Where the start and the end of `retroscan scan` go, and how much of both a script of Ray Data has that does nothing.

    PYTHONPATH=tests python -m benchmarks.startup [--before CHECKOUT] [--work FOLDER]

`scan` scores a few images with the light model of benchmarks.scan.
`small` scores some hundreds with a model that takes most of the time.
`chapters` scores those few, again and again, in chapters, and says what passes between two of them.
`nothing` sends as many rows through a map task and an actor that return what they are given: neither torch
nor retroscan is imported.
All say when they reached what, and the CPU time and number of their processes; of several runs, the one of the median
length is shown.
With a checkout of an earlier version, that is measured in turn with this one.
Writes benchmarks/results/startup.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "startup.md"
IMAGES, SMALL, CHAPTERS = 32, 600, 4
RUNS = 3
# Until the last tasks are known to Ray's timeline.
TOLD_S = 5
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
SPENT = {
    "actors": "actors that score",
    "processes": "processes at the end",
    "cpu_s": "CPU seconds of all of them",
    "load": "load of the machine before the run (1 min)",
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
        at.update(_spent())
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


def _spent() -> dict[str, float]:
    """CPU seconds of this process and all below it, and how many of them live."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    cpu_s, count = 0.0, 0
    for one in family:
        with suppress(psutil.Error):
            times = one.cpu_times()
            # And of those that have ended below it.
            cpu_s += sum(times[:4])
            count += 1
    return {"cpu_s": cpu_s, "processes": count}


def measure(way: str, source: str, model: str, work: Path, root: Path) -> dict[str, float]:
    """Seconds from the command until each of STEPS, by the code in `root`; what it spent, and the load before."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=work) as out:
        command = [sys.executable, __file__, "--way", way, source, model, out]
        began = time.time()
        subprocess.run(command, check=True, capture_output=True, cwd=out, env={**os.environ, "PYTHONPATH": str(root)})
        ended = time.time()
        noted = json.loads((Path(out) / "noted.json").read_text())
    at = noted["at"] | {"ended": ended} | _reached(noted["tasks"])
    # For the timeline, by this script alone.
    waited = at["told"] - at["closing"]
    late = ("closed", "ended")
    steps = {step: at[step] - began - (waited if step in late else 0) for step in STEPS}
    return steps | {name: at[name] for name in ("cpu_s", "processes", "actors")} | {"load": load}


def pause(source: str, model: str, work: Path, root: Path) -> float:
    """Seconds from the last part of a chapter to the first of the next, the median over a scan's chapters."""
    with tempfile.TemporaryDirectory(dir=work) as out:
        asked = f"scan({source!r}, [{model!r}], {out + '/run'!r}, chapter_objects={IMAGES // CHAPTERS}, batch_size=2)"
        command = [sys.executable, "-c", f"from ad_jobs.scan import scan; {asked}"]
        subprocess.run(command, check=True, capture_output=True, cwd=out, env={**os.environ, "PYTHONPATH": str(root)})
        written: dict[str, list[float]] = {}
        for part in (Path(out) / "run" / "scores").iterdir():
            written.setdefault(part.name.split("-")[1], []).append(part.stat().st_mtime)
    chapters = [written[number] for number in sorted(written)]
    return statistics.median(min(after) - max(before) for before, after in itertools.pairwise(chapters))


def opening(model: str, root: Path) -> str:
    """What a fresh process takes to import the pipeline of a scan, and to open a model."""
    code = (
        "import sys, time\n"
        "import ad_jobs.scanning.pipeline, ad_jobs.scoring.scorer\n"
        "from ad_jobs.scoring.model_store import open_model\n"
        f"before = time.process_time(); open_model({model!r})\n"
        "print(f'{len(sys.modules)} modules, {time.process_time():.1f} s of CPU, '\n"
        "      f'{time.process_time() - before:.1f} of them to open it')"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    return done.stdout.splitlines()[-1]


def _reached(tasks: list[dict[str, Any]]) -> dict[str, float]:
    """When actor and fetching tasks began and ended, by Ray's timeline (microseconds)."""

    def spans(*words: str) -> list[tuple[float, float]]:
        found = (one for one in tasks if all(word in one["cat"] for word in ("task::", *words)))
        return sorted((one["ts"] / 1e6, (one["ts"] + one["dur"]) / 1e6) for one in found)

    actor, calls = (spans("MapWorker(MapBatches", method) for method in (".__init__", ".submit"))
    fetch = spans("(_fetch)") or spans("(_same)")
    return {
        "actors": len(actor),
        "actor": actor[0][0],
        "ready": actor[0][1],
        "fetching": fetch[0][0],
        "fetched": fetch[0][1],
        "scored": calls[-1][1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/scan"))
    parser.add_argument("--before", type=Path)
    parser.add_argument("--way", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        way, source, model, out = given.way
        {"scan": scan_few, "small": scan_few, "nothing": nothing}[way](source, model, Path(out))
        return
    # Not above: `nothing` is to import none of it.
    from benchmarks.scan import make_model, write_archive

    work = given.work.resolve()
    asked = {}
    for way, count, name in (("scan", IMAGES, "light"), ("small", SMALL, "padim-256")):
        folder = work / "archives" / f"png-{count}"
        write_archive(folder, "png", count)
        asked[way] = str(folder), make_model(work / "models" / name, name)
    trees = {"now": ROOT} | ({"before": given.before.resolve()} if given.before else {})
    columns = {f"{way}, {tree}": (way, *asked[way], work, root) for way in asked for tree, root in trees.items()}
    columns["Ray Data alone"] = ("nothing", "", "", work, ROOT)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in columns}
    for _ in range(RUNS):
        for name, column in columns.items():
            runs[name].append(measure(*column))
            print(name, {key: round(value, 1) for key, value in runs[name][-1].items()}, flush=True)
    found = {name: sorted(of, key=lambda one: one["ended"])[len(of) // 2] for name, of in runs.items()}
    lines = [
        "# Where the start and the end of a scan go",
        "",
        _about(),
        "",
        f"| step | {' | '.join(found)} |",
        f"| --- |{' ---: |' * len(found)}",
        *(_line(text, [one[step] for one in found.values()]) for step, text in STEPS.items()),
        *(_line(text, [one[name] for one in found.values()]) for name, text in SPENT.items()),
        *_more(asked, work, trees),
    ]
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _more(asked: dict[str, tuple[str, str]], work: Path, trees: dict[str, Path]) -> list[str]:
    pauses = [f"{tree} {pause(*asked['scan'], work, root):.1f} s" for tree, root in trees.items()]
    opened = [f"{tree} {opening(asked['small'][1], root)}" for tree, root in trees.items()]
    return [
        "",
        f"From the last part of a chapter to the first of the next, {IMAGES} images in {CHAPTERS} chapters: "
        f"{', '.join(pauses)}.",
        "",
        f"What a process imports and spends that opens the model of `small`, as an actor does: {'; '.join(opened)}.",
    ]


def _line(text: str, values: list[float]) -> str:
    return f"| {text} | {' | '.join(f'{value:.1f}' for value in values)} |"


def _about() -> str:
    from ad_jobs.results.run import machine, versions

    here, using = machine(), versions()
    return (
        f"`python -m benchmarks.startup` on {here['cpu']}, {here['cores']} cores, ray {using['ray']}, torch "
        f"{using['torch']}: seconds from the command until a step is reached. `scan` scores {IMAGES} PNGs with the "
        f"light model of [scan.md](scan.md), `small` {SMALL} of them with PaDiM at 256 px; `Ray Data alone` sends "
        f"{IMAGES} rows through a task and an actor that return what they are given, and imports neither torch nor "
        f"retroscan. Of {RUNS} runs each, the one of median length. Where the load is more than the number of cores, "
        "seconds count what others did, too: the CPU time, of all processes until all is written, then says more."
    )


if __name__ == "__main__":
    main()
