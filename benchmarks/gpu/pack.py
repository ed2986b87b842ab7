"""What a GPU machine without a network needs: images, ImageNet weights, and packages that it lacks.

    python -m benchmarks.gpu.pack [--pack build/gpu-pack]

Images are grey and at most 256 px a side; those that are already so keep their bytes. Normal images are all there; of
br35h's anomalous ones half, drawn by seed, or the pack would be too large to travel. They are for local tests alone:
the folder is ignored by git.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from benchmarks.datasets import read_rows
from benchmarks.gpu.pictures import LIST, WEIGHTS, WHEELS, list_text
from models.backbones import LITE0, Backbone

SHARED = Path("../shared/data")
PACK = Path("build/gpu-pack")
# Share of a data set's anomalous images.
SHARES = {"br35h": 0.5, "elpv": 1.0}
SIDE_PX = 256
QUALITY = 92
PACKAGES = ("pydantic", "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions")
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64")
LARGEST_MIB = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, default=PACK)
    folder = parser.parse_args().pack
    if not SHARED.is_dir():
        raise SystemExit(f"There is no {SHARED.resolve()}: the pack is made of its images.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, share in SHARES.items():
        print(name, _images(name, share, folder), "images", flush=True)
    # Under the names that the detectors' backbones give them, whichever of the maps they tap.
    network = Backbone(LITE0, (1, 2, 3, 4, 5)).network
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / WEIGHTS)
    _wheels(folder / WHEELS)
    size_mib = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    print(f"{folder}: {size_mib:.1f} MiB")
    if size_mib > LARGEST_MIB:
        raise SystemExit(f"The pack must be at most {LARGEST_MIB} MiB.")


def _images(name: str, share: float, folder: Path) -> int:
    """How many images of a data set were packed."""
    groups = {row["image"]: row["group"] for row in read_rows(SHARED / name / "labels.csv")}
    rows = [{**row, "group": groups[row["image"]]} for row in read_rows(SHARED / "splits" / f"{name}.csv")]
    anomalous = [row for row in rows if row["anomalous"] == "1"]
    drawn = np.random.default_rng(0).permutation(len(anomalous))[: round(share * len(anomalous))]
    kept = [row for row in rows if row["anomalous"] == "0"] + [anomalous[number] for number in sorted(drawn)]
    # Stored: a JPEG does not become smaller.
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        archive.writestr(LIST, list_text(kept))
        for row in kept:
            archive.writestr(row["image"], _small(SHARED / name / row["image"]))
    return len(kept)


def _small(path: Path) -> bytes:
    with Image.open(path) as image:
        if image.format == "JPEG" and image.mode == "L" and max(image.size) <= SIDE_PX:
            return path.read_bytes()
        smaller = image.convert("L")
    smaller.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    saved = io.BytesIO()
    smaller.save(saved, "JPEG", quality=QUALITY, optimize=True)
    return saved.getvalue()


def _wheels(folder: Path) -> None:
    """The packages' wheels for that machine, of the versions that are installed here."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--implementation", "cp", "--dest", str(folder)]
    command += [part for platform in PLATFORMS for part in ("--platform", platform)]
    subprocess.run([*command, *(f"{name}=={version(name)}" for name in PACKAGES)], check=True)


if __name__ == "__main__":
    main()
