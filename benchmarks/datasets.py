"""The data sets of the quality benchmark as the lists that the verbs take: fit on one, judge on the other.

Every split is by group and the same for all seeds of a fit; what a fit holds out for itself is drawn by its own seed.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ad_jobs.images.decode import decode
from ad_jobs.images.policy import Limits, PixelPolicy
from ad_jobs.phantom import generate

COLUMNS = ("image", "anomalous", "group", "mask")
# Of a phantom's picture; its scanners differ by a few percent.
PHANTOM_PX = 176


class Lists(NamedTuple):
    """What one cell is fitted on and judged on.

    `normal` is a list or a folder, `anomalous` a list, for a detector that learns from anomalous images.
    `archive` is what is scanned.
    """

    normal: str
    anomalous: str | None
    archive: str
    labels: Path
    masks: bool


def lists(data: dict[str, Any], folder: Path, seed: int) -> Lists:
    """The lists of one data set, written below `folder`; `seed` draws the anomalous images to fit on, if any."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"split": _split, "boards": _boards, "phantom": _phantom, "digits": _digits}
    return kinds[data["kind"]](data, folder, seed)


def _split(data: dict[str, Any], folder: Path, seed: int) -> Lists:
    """A split file (image, anomalous, split); `anomalous: N` moves N anomalous images, whole groups, from test to fit.

    `development: FILE` names groups on which options were chosen: nothing of them is fitted on or judged.
    `turned: {degrees, shift}` turns and shifts every image, normal or not, by its own amount up to these.
    """
    root = Path(data["root"]).resolve()
    groups = {row["image"]: row["group"] for row in read_rows(data["labels"])}
    chosen_on = {row["group"] for row in read_rows(data["development"])} if "development" in data else set()
    rows = [
        {**row, "group": groups[row["image"]]}
        for row in read_rows(data["split"])
        if groups[row["image"]] not in chosen_on
    ]
    test = [row for row in rows if row["split"] == "test"]
    moved: list[dict[str, str]] = []
    if wanted := data.get("anomalous"):
        names = sorted({row["group"] for row in test if row["anomalous"] == "1"})
        for number in np.random.default_rng(seed).permutation(len(names)):
            found = [row for row in test if row["group"] == names[number] and row["anomalous"] == "1"]
            if len(moved) + len(found) <= wanted:
                moved += found
        # Nothing of a moved group is judged, its normal images included.
        test = [row for row in test if row["group"] not in {row["group"] for row in moved}]
    normal = [row for row in rows if row["split"] == "train"]
    if turned := data.get("turned"):
        root = _turned(normal + test, root, folder / "turned", **turned)
    return Lists(
        str(_write(folder / "normal.csv", root, normal)),
        str(_write(folder / "anomalous.csv", root, moved)) if moved else None,
        str(_write(folder / "test.csv", root, test)),
        folder / "test.csv",
        masks=False,
    )


def _turned(rows: list[dict[str, str]], root: Path, folder: Path, *, degrees: float, shift: float) -> Path:
    """The images of `rows`, each turned by up to `degrees` and shifted by up to the share `shift` of its sides.

    A mask goes with its image.
    """
    draw = np.random.default_rng(0)
    for row in sorted(rows, key=lambda row: row["image"]):
        angle, x, y = draw.uniform(-1, 1, 3) * (degrees, shift, shift)
        for name in filter(None, (row["image"], row.get("mask"))):
            path = folder / name
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(root / name) as opened:
                moved = _moved(np.asarray(opened), angle, x, y)
            # Without loss and whole or not at all; the name keeps its ending, the decoder goes by the content.
            unfinished = path.with_suffix(".unfinished")
            Image.fromarray(moved).save(unfinished, format="PNG")
            unfinished.rename(path)
    return folder


def _moved(image: NDArray[np.uint8], angle_deg: float, x: float, y: float) -> NDArray[np.uint8]:
    """The image turned and shifted, by shares of its sides.

    What comes in from outside continues the image by reflection, so that no black corner tells an image from another.
    """
    high, wide = image.shape[:2]
    edges = [(high // 2, high // 2), (wide // 2, wide // 2)] + [(0, 0)] * (image.ndim - 2)
    larger = Image.fromarray(np.pad(image, edges, mode="symmetric"))
    larger = larger.rotate(angle_deg, Image.Resampling.BICUBIC, translate=(round(x * wide), round(y * high)))
    return np.asarray(larger.crop((wide // 2, high // 2, wide // 2 + wide, high // 2 + high)))


def _boards(data: dict[str, Any], folder: Path, seed: int) -> Lists:
    """DeepPCB: templates of some boards to fit on, both kinds of the others to judge, defect boxes as masks.

    `anomalous: N` adds to the fit so many tested images of its boards.
    """
    root = Path(data["root"]).resolve()
    rows = list(read_rows(root / "labels.csv"))
    boxes: dict[str, list[list[int]]] = {}
    for row in read_rows(root / "boxes.csv"):
        boxes.setdefault(row["image"], []).append([int(row[key]) for key in ("x1", "y1", "x2", "y2")])
    test = [row for row in rows if row["group"] in data["test_groups"]]
    for row in test:
        if row["anomalous"] == "1":
            row["mask"] = str(folder / "masks" / f"{Path(row['image']).stem}.png")
            _draw(Path(row["mask"]), root / row["image"], boxes[row["image"]])
    fit = [row for row in rows if row["group"] not in data["test_groups"]]
    normal = [row for row in fit if row["anomalous"] == "0"]
    tested = [row for row in fit if row["anomalous"] == "1"]
    drawn = np.random.default_rng(seed).permutation(len(tested))[: data.get("anomalous", 0)]
    return Lists(
        str(_write(folder / "normal.csv", root, normal)),
        str(_write(folder / "anomalous.csv", root, [tested[n] for n in drawn])) if len(drawn) else None,
        str(_write(folder / "test.csv", root, test)),
        folder / "test.csv",
        masks=True,
    )


def _draw(path: Path, image: Path, boxes: list[list[int]]) -> None:
    with Image.open(image) as opened:
        mask = np.zeros((opened.height, opened.width), np.uint8)
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = 255
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(mask).save(path)


def _phantom(data: dict[str, Any], folder: Path, seed: int) -> Lists:  # noqa: ARG001
    """The demo's archive of DICOM phantoms, the same for every seed; lesions to fit on come from other patients."""
    made = folder / "phantoms"
    if not made.exists():
        unfinished = folder / "unfinished"
        generate(unfinished / "demo", seed=0)
        counts = dict.fromkeys(("train", "calibration", "normals", "multiframe", "broken", "non_images"), 0)
        generate(unfinished / "lesions", seed=1, anomalous=data["anomalous"], **counts)
        unfinished.rename(made)
    demo = made / "demo"
    if turned := data.get("turned"):
        return _turned_phantoms(demo, folder, turned)
    return Lists(
        str(demo / "train"), str(made / "lesions" / "archive"), str(demo / "archive"), demo / "labels.csv", masks=True
    )


def _digits(data: dict[str, Any], folder: Path, seed: int) -> Lists:  # noqa: ARG001
    """MNIST as PNG pictures: the first `normal` training images of one `digit`, `tested` of it and of others to judge.

    The test images are stored digit by digit: the others are taken at equal steps.
    """
    with np.load(data["root"]) as file:
        stored = dict(file)
    is_normal = stored["test_labels"] == data["digit"]
    same, others = np.flatnonzero(is_normal), np.flatnonzero(~is_normal)
    chosen = {
        "train": np.flatnonzero(stored["train_labels"] == data["digit"])[: data["normal"]],
        "test": np.concatenate([same[: data["tested"]], others[:: len(others) // data["tested"]][: data["tested"]]]),
    }
    written = {}
    for part, places in chosen.items():
        (folder / part).mkdir(exist_ok=True)
        rows = []
        for place in places:
            name = f"{part}/{place}.png"
            Image.fromarray(stored[f"{part}_images"][place]).save(folder / name)
            other = stored[f"{part}_labels"][place] != data["digit"]
            rows.append({"image": name, "anomalous": str(int(other)), "group": name})
        written[part] = _write(folder / f"{part}.csv", folder, rows)
    return Lists(str(written["train"]), None, str(written["test"]), written["test"], masks=False)


def _turned_phantoms(demo: Path, folder: Path, turned: dict[str, float]) -> Lists:
    """Every frame of the demo as a PNG picture, turned and shifted as `_turned` does."""
    stills = folder / "stills"
    normal = [
        {"image": f"train/{path.name}", "anomalous": "0", "group": path.name.partition("-")[0]}
        for path in sorted((demo / "train").glob("*.dcm"))
    ]
    test = list(read_rows(demo / "labels.csv"))
    for row in normal + test:
        source, frame = demo / row["image"], int(row.pop("frame", 0))
        row["image"] = f"{row['image'].removesuffix('.dcm')}-{frame}.png"
        path = stills / row["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        policy = PixelPolicy(channels=1, height_px=PHANTOM_PX, width_px=PHANTOM_PX)
        (found,) = decode(source.read_bytes(), policy, Limits(), only=frame).frames
        Image.fromarray((found.pixels[0] >> 8).astype(np.uint8)).save(path)
        if row.get("mask"):
            (stills / row["mask"]).parent.mkdir(exist_ok=True)
            with Image.open(demo / row["mask"]) as opened:
                opened.resize((PHANTOM_PX, PHANTOM_PX)).save(stills / row["mask"])
    root = _turned(normal + test, stills, folder / "turned", **turned)
    for row in test:
        row["mask"] = str(root / row["mask"]) if row["mask"] else ""
    return Lists(
        str(_write(folder / "normal.csv", root, normal)),
        None,
        str(_write(folder / "test.csv", root, test)),
        folder / "test.csv",
        masks=True,
    )


def read_rows(path: str | Path) -> Iterable[dict[str, str]]:
    """The rows of a CSV file by its header."""
    with Path(path).open(newline="") as file:
        yield from csv.DictReader(file)


def _write(path: Path, root: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", restval="")
        table.writeheader()
        table.writerows({**row, "image": str(root / row["image"])} for row in rows)
    return path
