"""A model's files edited by hand, value by value: read as before, or refused in one sentence that names the place."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fusekit import fitted, normals
from s3server import S3Server

from ad_jobs.cli.show_model import calibrated_text, model_text
from ad_jobs.errors import UsageError
from ad_jobs.images.policy import Limits
from ad_jobs.scoring.calibration import CALIBRATION, Calibration
from ad_jobs.scoring.model_domain import DOMAIN
from ad_jobs.scoring.model_store import open_fitted, read_calibration, read_model
from ad_jobs.show import show
from cluster import storage
from models.record import DETECTOR, model_id

Place = tuple[str | int, ...]
# What a leaf is replaced by: of each kind of JSON one that is hardly ever meant.
ODD: tuple[Any, ...] = (None, [], "x", -1.5)
AUTO = {
    "digest": "0" * 16,
    "budget_s": 600.0,
    "seconds": 12.5,
    "judged_on": 3,
    "kinds": ["paste", "blob"],
    "kept": "linear",
    "rule": "the only one that was fitted",
    "candidates": [
        {
            **{"detector": "linear", "folder": "m/fit/candidates/linear", "model_id": "0123456789ab", "why": "kept"},
            **{"seconds": 1.5, "score_cpu_ms": 2.0, "found": 0.8, "auroc": {"paste": 0.7, "blob": 0.9}},
        },
        {"detector": "padim", "folder": "m/fit/candidates/padim", "why": "not tried"},
    ],
}


NETWORK = {"name": "resnet18", "weights": "random", "sha256": "0" * 64, "licence": "", "norm": "x", "halvings": [3]}
MEMBER = {"kind": "padim", "model_id": "0123456789ab", "weight": 1.0, "source": NETWORK}
FUSED = {
    **{
        "normal": "normal",
        "normals": 3,
        "kinds": ["paste", "blob"],
        "found": 0.8,
        "auroc": {"paste": 0.7, "blob": 0.9},
    },
    "members": [
        {
            **{"uri": "m", "kind": "padim", "model_id": "0123456789ab", "found": 0.8, "weight": 1.0, "why": None},
            "auroc": {"paste": 0.7, "blob": 0.9},
        }
    ],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, quick to open, with all that any record tells."""
    folder = tmp_path_factory.mktemp("models") / "model"
    fitted(str(folder), normals(str(folder.parent / "normal"), 8))
    content = json.loads((folder / DETECTOR).read_text())
    content |= {"limits": Limits().model_dump(), "versions": {"torch": "2"}, "seconds": 1.5, "score_cpu_ms": 2.0}
    content |= {"auto": AUTO, "fused": FUSED, "source": {"members": [MEMBER]}}
    content["policy"]["tiles"] = {"overlap_px": 4, "size_px": [48, 48]}
    content["model_id"] = model_id(content)
    (folder / DETECTOR).write_text(json.dumps(content))
    calibration = json.loads((folder / CALIBRATION).read_text()) | {"model_id": content["model_id"]}
    (folder / CALIBRATION).write_text(json.dumps(calibration))
    return folder


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Where there is a value, whatever it is, the whole not included."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, found in inside:
        yield (*at, key)
        yield from places(found, (*at, key))


def edits(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every value replaced by what is odd there, or taken away, and a key added to every object; in words, and done."""
    for place in ((), *places(content)):
        for odd in ODD if place else ():
            yield (
                f"{place} = {odd!r}",
                edited(content, place, lambda within, key, odd=odd: within.__setitem__(key, odd)),
            )
        if place:
            yield f"no {place}", edited(content, place, lambda within, key: within.__delitem__(key))
        if isinstance(_at(content, place), dict):
            yield (
                f"more in {place}",
                edited(content, (*place, "unheard_of"), lambda within, key: within.update({key: 1})),
            )


def edited(content: dict[str, Any], place: Place, change: Callable[[Any, Any], None]) -> dict[str, Any]:
    """A copy, changed at a place."""
    copy = json.loads(json.dumps(content))
    change(_at(copy, place[:-1]), place[-1])
    return copy  # type: ignore[no-any-return]


def _at(content: Any, place: Place) -> Any:
    for key in place:
        content = content[key]
    return content


def harmed(path: Path, used: Callable[[], object]) -> list[str]:
    """What edits of a file do harm where its model is used; what is refused is to name the file or the detector."""
    harm, before = [], path.read_bytes()
    try:
        for words, now in edits(json.loads(before)):
            # Whoever edits what decides a score reckons the id anew.
            path.write_text(json.dumps({**now, "model_id": model_id(now)} if path.name == DETECTOR else now))
            try:
                used()
            except UsageError as error:
                if not any(part in str(error) for part in (path.name, "of a detector", "weights")):
                    harm.append(f"{words}: does not say where: {error}")
            except Exception as error:  # noqa: BLE001 - any is what is looked for
                harm.append(f"{words}: {type(error).__name__}: {error}")
    finally:
        path.write_bytes(before)
    return harm


def test_whatever_is_edited_is_read_or_refused_in_words(home: Path) -> None:
    def used() -> None:
        found, _ = open_fitted(str(home))
        shown = {"uri": found.uri, **found.record, "calibration": None, "calibrations": [], "damaged": []}
        shown |= {"domain": {"file": "", **found.domain.model_dump(mode="json")}}
        model_text(shown)
        # What is shown of one that is not fused.
        model_text({name: value for name, value in shown.items() if name != "fused"})

    assert not harmed(home / DETECTOR, used)
    assert not harmed(home / DOMAIN, lambda: model_text(show(folder=str(home))["model"]))
    own = json.loads((home / DETECTOR).read_text())["model_id"]
    assert not harmed(home / CALIBRATION, lambda: told(read_calibration(str(home), own)))


def told(calibration: Calibration) -> str:
    """What people are shown of it."""
    return calibrated_text(calibration.model_dump(mode="json")) + calibration.id


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("limits", "max_frame"), 3, r"limits\.max_frame: no such field, with 3"),
        (("data",), None, r"data: must be an object, with None"),
        (("data", "n_held_out"), "3", r"data\.n_held_out: must be a valid integer, with '3'"),
        (("auto", "candidates", 0, "auroc"), {"paste": 0.5}, r"auto: linear was judged by every kind of defect"),
        (("seconds",), "soon", r"seconds: must be a valid number, with 'soon'"),
    ],
)
def test_the_sentence_names_file_place_value_and_remedy(home: Path, place: Place, value: Any, words: str) -> None:
    path = home / DETECTOR
    before = path.read_text()
    path.write_text(json.dumps(edited(json.loads(before), place, lambda within, key: within.update({key: value}))))
    try:
        with pytest.raises(UsageError, match=words) as refused:
            read_model(str(home))
    finally:
        path.write_text(before)
    assert str(refused.value).startswith(f"{DETECTOR} stays as `fit` or `fuse` wrote it. Got: {path}: ")
    assert refused.value.remedy == "Put back what stood there, or fit again."


def test_a_kept_calibration_names_the_field(home: Path) -> None:
    (path,) = (home / "calibrations").glob("*.json")
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"heatmap_high": None}))
    try:
        (told,) = show(folder=str(home))["model"]["damaged"]
    finally:
        path.write_text(before)
    assert f"{path}: heatmap_high: must be a valid number, with None" in told


@pytest.mark.s3
def test_a_model_in_s3_that_misses_a_file_is_told_by_its_own_place(home: Path, s3: S3Server) -> None:
    uri = f"s3://{s3.bucket}/half"
    for name in (DETECTOR, DOMAIN, CALIBRATION):
        storage.write_bytes(storage.join(uri, name), (home / name).read_bytes())
    with pytest.raises(UsageError, match=rf"A model folder holds weights.safetensors. Got: {uri}, without it") as told:
        read_model(uri)
    assert tempfile.gettempdir() not in str(told.value)
