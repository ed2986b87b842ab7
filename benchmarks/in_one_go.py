"""Many small objects through every verb in one go: what each verb takes of time and memory.

    PYTHONPATH=tests python -m benchmarks.in_one_go [--objects 1000000] [--work FOLDER]

The archive is that of `benchmarks.bulk`: DICOM, PNG and JPEG of 96 px, some of them broken, their contents repeated by
hard links. The detector is `linear` at 32 px, fitted on two hundred objects of the same kind.
A verb that has ended is not run again, but for `fit`, `index` and `scan`, which go on by themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from ad_jobs.results.run import machine, versions
from benchmarks.bulk import small_files
from benchmarks.measuring import cost_of

RESULTS = Path(__file__).parent / "results"
FITTED = 200
# How the objects are told apart in the run's table, for `evaluate`: every hundredth is said to be anomalous.
ANOMALOUS_EVERY = 100


def verbs(archive: Path, normal: Path, work: Path) -> dict[str, list[str]]:
    """Every verb's arguments, in the order in which they are run."""
    manifest, model, run = (str(work / name) for name in ("manifest", "model", "run"))
    return {
        "index": ["index", str(archive), "--out", manifest],
        "index --headers": ["index", str(archive), "--out", f"{manifest}-headers", "--headers"],
        "fit": ["fit", "--detector", "linear", "--size", "32", "--normal", str(normal), "--out", model],
        "plan": ["plan", manifest, "--model", model],
        "scan": ["scan", manifest, "--model", model, "--out", run, "--max-failed", "1"],
        "verify": ["verify", run],
        "decide --fdr 0.1": ["decide", run, "--fdr", "0.1"],
        "evaluate": ["evaluate", run, "--labels", str(work / "labels.csv"), "--bootstrap", "20"],
        "report": ["report", run],
        "export --format csv": ["export", run, "--format", "csv", "--out", str(work / "flagged.csv")],
        "scan --since": ["scan", manifest, "--model", model, "--out", f"{run}-since", "--since", run],
        "compare": ["compare", run, run],
    }


def write_labels(archive: Path, path: Path) -> None:
    """A label for every object of the archive."""
    with path.open("w") as file:
        file.write("image,anomalous\n")
        place = 0
        for folder, _, names in os.walk(archive):
            for name in names:
                file.write(f"{folder}/{name},{int(place % ANOMALOUS_EVERY == 0)}\n")
                place += 1


def write_table(found: dict[str, Any]) -> None:
    """Markdown of what was found."""
    about = found["machine"]
    counts = found["counts"]
    lines = [
        "# Many objects in one go",
        "",
        f"`python -m benchmarks.in_one_go` on {about['cpu']}, {about['cores']} cores: {counts['objects']:,} objects of "
        f"96 px, of which {counts['scored']:,} were scored and {counts['failed']:,} failed, by `linear` at 32 px. "
        "Memory is what processes hold for themselves; the load is the machine's over the minute before a verb began, "
        "where 2 is all of it.",
        "",
        "| verb | seconds | CPU-seconds | its process MiB | largest other MiB | all MiB | load before |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in found["verbs"].items():
        peaks = one["peaks_mib"]
        lines.append(
            f"| {name} | {one['seconds']:.0f} | {one['cpu_s']:.0f} | {peaks['driver']} | {peaks['largest']} | "
            f"{peaks['total']} | {one['load_before']:.1f} |"
        )
    (RESULTS / "in_one_go.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, default=Path("build/in_one_go"))
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    small_files(work / "objects", given.objects, broken=True)
    small_files(work / "normal", FITTED)
    archive = work / "objects" / "archive"
    if not (work / "labels.csv").exists():
        write_labels(archive, work / "labels.csv")
    log = work / "found.json"
    found = json.loads(log.read_text()) if log.exists() else {"verbs": {}}
    found |= {"machine": machine(), "versions": versions()}
    for name, arguments in verbs(archive, work / "normal" / "archive", work).items():
        if name in found["verbs"]:
            continue
        load = os.getloadavg()[0]
        spent = cost_of([sys.executable, "-m", "ad_jobs", *arguments, "--json"])
        if name == "scan":
            found["counts"] = json.loads(spent.output)["counts"]
        found["verbs"][name] = {
            "seconds": spent.seconds,
            "cpu_s": spent.cpu_s,
            "peaks_mib": spent.peaks._asdict(),
            "load_before": load,
        }
        log.write_text(json.dumps(found, indent=1) + "\n")
        print(name, f"{spent.seconds:.0f} s", spent.peaks, flush=True)
    write_table(found)


if __name__ == "__main__":
    main()
