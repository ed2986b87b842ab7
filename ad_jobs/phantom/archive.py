"""A phantom archive on disk, from a seed: what a first look at the program and its own tests run on.

OUT/train/*.dcm            normal slices, to fit a model on
OUT/calibration/*.dcm      normal slices of other patients
OUT/archive/**             what to scan: normal and anomalous, single and multi-frame, broken and no images
OUT/labels.csv             image, anomalous, mask, frame, group of the archive's good frames
OUT/masks/*.png            8-bit, 255 = abnormal
OUT/planted.txt            every identifier that stands in the files and must turn up nowhere else; the two institutions
                           (scanners.INSTITUTIONS) are none of them
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ad_jobs.errors import UsageError
from ad_jobs.phantom.broken import KINDS
from ad_jobs.phantom.objects import NON_IMAGE_MODALITIES
from ad_jobs.phantom.patients import patients
from ad_jobs.phantom.writer import Label, Writer


class PhantomArchive(NamedTuple):
    """Where the parts of a phantom archive lie, and what a scan of `archive` has to find.

    `planted` are identifiers that must not leak.
    `images` counts the good objects, `frames` their frames (the rows of the labels), `anomalous` those with a lesion.
    `expected` is the error code of every other object, by its path below `archive`.
    """

    root: Path
    train: Path
    calibration: Path
    archive: Path
    labels: Path
    planted_file: Path
    planted: list[str]
    images: int
    frames: int
    anomalous: int
    expected: dict[str, str]

    @property
    def objects(self) -> int:
        """All objects below `archive`."""
        return self.images + len(self.expected)


def generate(
    out: Path | str,
    *,
    seed: int = 0,
    train: int = 200,
    calibration: int = 80,
    normals: int = 110,
    anomalous: int = 60,
    multiframe: int = 4,
    broken: int = 6,
    non_images: int = 3,
    size_px: int = 176,
) -> PhantomArchive:
    """A phantom archive written to the folder `out`; the same arguments give the same bytes.

    Args:
        out: a new or empty local folder.
        seed: of everything random.
        train: normal slices to fit on.
        calibration: normal slices of other patients.
        normals: normal slices among those to scan.
        anomalous: slices with a lesion.
        multiframe: objects of four frames, every second one with a lesion in two of them.
        broken: objects that cannot be read, the kinds in turn.
        non_images: SR, PR and KO objects in turn.
        size_px: nominal height and width; scanners differ by a few percent.

    Raises:
        UsageError: `out` is not an empty folder, or a number is out of range.
    """
    numbers = (train, calibration, normals, anomalous, multiframe, broken, non_images)
    if min(numbers) < 0 or seed < 0 or size_px < 32:
        raise UsageError(
            "A phantom archive needs counts and a seed of 0 or more, and slices of 32 pixels or more.",
            f"counts {numbers}, seed {seed}, size_px {size_px}",
            "Change the number that is too small.",
        )
    root = Path(out).resolve()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError("A phantom archive is written to an empty folder.", root, "Name a new folder.")
    writer = Writer(root, seed, size_px)
    writer.normals("train", train)
    writer.normals("calibration", calibration)
    drawn = patients("archive", seed)
    lesions = np.arange(normals + anomalous) < anomalous
    np.random.default_rng([seed, 0]).shuffle(lesions)
    writer.singles(drawn, lesions)
    for index in range(multiframe):
        writer.multiframe(next(drawn), lesion=index % 2 == 1)
    for index in range(broken):
        writer.bad(next(drawn), KINDS[index % len(KINDS)])
    for index in range(non_images):
        writer.bad(next(drawn), NON_IMAGE_MODALITIES[index % len(NON_IMAGE_MODALITIES)])
    return _close(writer)


def _close(writer: Writer) -> PhantomArchive:
    root = writer.root
    root.mkdir(parents=True, exist_ok=True)
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(Label._fields)
        table.writerows(writer.labels)
    (root / "planted.txt").write_text("\n".join(writer.planted.words) + "\n", encoding="utf-8")
    return PhantomArchive(
        root=root,
        train=root / "train",
        calibration=root / "calibration",
        archive=root / "archive",
        labels=root / "labels.csv",
        planted_file=root / "planted.txt",
        planted=list(writer.planted.words),
        images=writer.images,
        frames=len(writer.labels),
        anomalous=sum(label.anomalous for label in writer.labels),
        expected=writer.expected,
    )
