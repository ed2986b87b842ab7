"""Many, large and long objects, and several models: what a scan takes of memory and time.

    PYTHONPATH=tests python -m benchmarks.bulk [--only TEXT] [--work FOLDER]

`small` and `hundred` index and scan 2,000 and 100,000 small objects of three formats, some of them broken: memory must
not grow with an archive.
`large` has sides up to 4096 px, `long` an object of 1,000 frames.
`alone` and `together` scan JPEG 2000 slices with each of three models and with all at once.
A finished cell is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ad_jobs.images.policy import Limits
from ad_jobs.results.run import machine, versions
from benchmarks.measuring import Cost, cost_of
from benchmarks.scan import FORMATS, encoded, make_model, scan_command, write_archive

RESULTS = Path(__file__).parent / "results"
SMALL_PX = 96
# Small objects; their files repeat.
DIFFERENT = 64
BROKEN = {"empty.png": b"", "text.dcm": b"no picture\n" * 40}
BROKEN_EVERY = 500
# JPEG 2000, for several models.
SLICES = 1500
# Models of benchmarks.scan.
THREE = ("light", "padim", "pmad")


def small_files(folder: Path, count: int, *, broken: bool = False) -> None:
    """`count` small objects in `folder`, a thousand a subfolder; repeated contents are hard links."""
    if (folder / "complete").exists():
        return
    contents = [
        (suffix, encoded(number, form, SMALL_PX))
        for form, suffix in zip(FORMATS, ("dcm", "png", "jpg"), strict=True)
        for number in range(DIFFERENT)
    ]
    source = folder.with_name(f"{folder.name}-contents")
    source.mkdir(parents=True, exist_ok=True)
    for number, (suffix, data) in enumerate(contents):
        (source / f"{number:03d}.{suffix}").write_bytes(data)
    originals = sorted(source.iterdir())
    for number in range(count):
        below = folder / "archive" / f"{number // 1000:03d}"
        if number % 1000 == 0:
            below.mkdir(parents=True, exist_ok=True)
        if broken and number % BROKEN_EVERY == 0:
            name, data = list(BROKEN.items())[number // BROKEN_EVERY % len(BROKEN)]
            (below / f"{number:06d}-{name}").write_bytes(data)
            continue
        original = originals[number % len(originals)]
        (below / f"{number:06d}{original.suffix}").hardlink_to(original)
    (folder / "complete").touch()


def large_files(folder: Path) -> None:
    """Sixty pictures and slices with sides from 256 to 4096 px."""
    archive = folder / "archive"
    archive.mkdir(parents=True, exist_ok=True)
    for side in (256, 512, 1024, 2048, 4096):
        for form, suffix in (("png", "png"), ("jpeg", "jpg"), ("dicom", "dcm")):
            data = encoded(side, form, side)
            for number in range(4):
                (archive / f"{side}-{number}.{suffix}").write_bytes(data)


def long_file(folder: Path) -> None:
    """An object of 1,000 frames of 256 x 256 px beside 200 small pictures."""
    import scankit as kit
    from pydicom.uid import MultiFrameGrayscaleWordSecondaryCaptureImageStorage

    small_files(folder, 200)
    frames = np.random.default_rng(0).integers(0, 4096, (1000, 256, 256), np.uint16)
    data = kit.dataset(1, MultiFrameGrayscaleWordSecondaryCaptureImageStorage)
    kit.describe_grey(data, 256, 256)
    data.NumberOfFrames = len(frames)
    data.PixelData = frames.tobytes()
    (folder / "archive" / "long.dcm").write_bytes(kit.written(data))


def scanned(source: str, models: list[str], work: Path) -> tuple[Cost, dict[str, Any]]:
    """What a scan cost, and its record's counts."""
    with tempfile.TemporaryDirectory(dir=work) as out:
        run = Path(out) / "run"
        spent = cost_of([*scan_command(source, models, run), "--json"])
        counts = json.loads(spent.output)["counts"]
    return spent, counts


def archive_cell(prepare: Callable[[Path], None]) -> Callable[[Path, str], dict[str, Any]]:
    """A cell that scans one archive with the light model; an index of its own first."""

    def cell(work: Path, name: str) -> dict[str, Any]:
        folder = work / "bulk" / name
        prepare(folder)
        model = make_model(work / "models" / "light", "light")
        manifest = folder / "manifest"
        if manifest.exists():
            # Of a cell that was cut off.
            shutil.rmtree(manifest)
        index = [sys.executable, "-m", "ad_jobs", "index", str(folder / "archive"), "--out", str(manifest)]
        indexed = cost_of(index).seconds
        spent, counts = scanned(str(manifest), [model], work)
        return {"counts": counts, "index_s": indexed, **_figures(spent)}

    return cell


def alone(work: Path, name: str) -> dict[str, Any]:
    """Each of three models by itself over the slices."""
    del name
    return {
        model: _figures(scanned(_slices(work), [make_model(work / "models" / model, model)], work)[0])
        for model in THREE
    }


def together(work: Path, name: str) -> dict[str, Any]:
    """All of them in one scan."""
    del name
    models = [make_model(work / "models" / model, model) for model in THREE]
    return _figures(scanned(_slices(work), models, work)[0])


def _slices(work: Path) -> str:
    folder = work / "archives" / f"dicom-{SLICES}"
    write_archive(folder, "dicom", SLICES)
    return str(folder)


def _figures(spent: Cost) -> dict[str, Any]:
    return {"seconds": spent.seconds, "cpu_s": spent.cpu_s, "peaks_mib": spent.peaks._asdict()}


CELLS: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    "small": archive_cell(lambda folder: small_files(folder, 2000, broken=True)),
    "large": archive_cell(large_files),
    "long": archive_cell(long_file),
    "hundred": archive_cell(lambda folder: small_files(folder, 100_000, broken=True)),
    "alone": alone,
    "together": together,
}


def write_table(folder: Path) -> None:
    """Markdown from the finished cells."""
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    about = sorted({f"{one['machine']['cpu']}, {one['machine']['cores']} cores" for one in found.values()})
    lines = ["# Bulk", "", f"`python -m benchmarks.bulk` on {'; '.join(about)}; light model of [scan.md](scan.md).", ""]
    lines += _archives({name: one for name, one in found.items() if "counts" in one})
    if {"alone", "together"} <= set(found):
        lines += ["", *_models(found["alone"], found["together"])]
    (RESULTS / "bulk.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _archives(cells: dict[str, Any]) -> Iterator[str]:
    yield (
        "| archive | objects | scored | failed | seconds | objects/s | index s "
        "| driver MiB | largest worker MiB | all MiB |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name, one in sorted(cells.items(), key=lambda item: list(CELLS).index(item[0])):
        counts, peaks = one["counts"], one["peaks_mib"]
        yield (
            f"| {name} | {counts['objects']:,} | {counts['scored']:,} | {counts['failed']:,} | {one['seconds']:.0f} | "
            f"{counts['objects'] / one['seconds']:.0f} | {one['index_s']:.1f} | {peaks['driver']} | "
            f"{peaks['largest']} | "
            f"{peaks['total']} |"
        )


def _models(alone: dict[str, Any], together: dict[str, Any]) -> Iterator[str]:
    yield f"{SLICES:,} JPEG 2000 slices of 512 x 512 px with three models:"
    yield ""
    yield "| models | seconds | CPU-seconds |"
    yield "|---|---:|---:|"
    for name in THREE:
        yield f"| {name} alone | {alone[name]['seconds']:.1f} | {alone[name]['cpu_s']:.0f} |"
    slowest = max(alone[name]["seconds"] for name in THREE)
    yield f"| all three at once | {together['seconds']:.1f} | {together['cpu_s']:.0f} |"
    yield ""
    yield f"All three at once take {together['seconds'] / slowest:.2f} times as long as the slowest alone."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run only cells whose name contains this text")
    parser.add_argument("--work", type=Path, default=Path("build/scan"))
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    folder = RESULTS / "bulk"
    folder.mkdir(exist_ok=True)
    for name, cell in CELLS.items():
        path = folder / f"{name}.json"
        if path.exists() or given.only not in name:
            continue
        start = time.perf_counter()
        found = cell(work, name) | {"machine": machine(), "versions": versions(), "limits": Limits().model_dump()}
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(name, f"{time.perf_counter() - start:.0f} s", flush=True)
        write_table(folder)
    write_table(folder)


if __name__ == "__main__":
    main()
