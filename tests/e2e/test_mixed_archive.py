"""One walk through the command line over a mixed archive, in a folder and on S3: each object in exactly one place."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import containerkit
import pandas as pd
import pytest
import reducedkit
import scankit as kit
from s3server import S3Server

from ad_jobs.cli.app import main
from ad_jobs.results.read import read_scores
from cluster import storage

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.usefixtures("one_ray")]

# Of frames that a model of 32 px decodes at half their size.
SIDE_PX = 2 * 2 * kit.SIZE_PX + 3
# NULL of what has no header or no rows, unless it is named.
WHERE = "rows > 30 OR kind IN ('jpeg', 'tiff', 'other') OR modality = 'SR'"


def mr(number: int, side_px: int = SIDE_PX) -> bytes:
    return reducedkit.jpeg_2000(number, side_px, Modality="MR")


PICTURES = {"pictures/a.png": kit.png(1), "pictures/b.jpg": kit.jpeg(2), "pictures/c.tif": kit.tiff(3)}
ARCHIVE = {
    **{f"mr/{number}.dcm": mr(100 + number) for number in range(4)},
    "mr/small.dcm": mr(110, 24),
    "ct/0.dcm": kit.dicom_of(4, Modality="CT"),
    "cine/0.dcm": kit.dicom(5, kit.FRAMES),
    **PICTURES,
    "study.zip": containerkit.zipped({"IM1": mr(111), "notes.txt": b"no picture\n" * 40, "p.jpg": kit.jpeg(6)}),
    "series.tar.gz": containerkit.gzipped(containerkit.tarred({"IM1": mr(112), "p.tif": kit.tiff(7)})),
    "single.dcm.gz": containerkit.gzipped(mr(113)),
    "cut.zip": containerkit.zipped({"p.png": kit.png(8)})[:-30],
    **{name: data for name, (data, _) in kit.bad_objects().items()},
}
NEW = {"mr/new.dcm": mr(120), "pictures/new.png": kit.png(20), "pictures/new.jpg": kit.jpeg(21)}

# What becomes of each object under the condition, and of those selected under a model of MR alone.
MR = [*(f"mr/{number}.dcm" for number in range(4)), "study.zip!/IM1", "series.tar.gz!/IM1", "single.dcm.gz!/single.dcm"]
OTHERS = ["ct/0.dcm", "cine/0.dcm", "pictures/b.jpg", "pictures/c.tif", "study.zip!/p.jpg", "series.tar.gz!/p.tif"]
FAILED = {
    "bad/empty.png": "empty",
    "bad/text.png": "unknown_format",
    "bad/truncated.dcm": "truncated",
    "cut.zip": "unreadable_container",
    "study.zip!/notes.txt": "unknown_format",
}
NO_IMAGE = ["bad/report.dcm"]
UNDECIDED = ["pictures/a.png", "bad/huge.png", "bad/truncated.png"]
NOT_SELECTED = ["mr/small.dcm"]
SELECTED = [*MR, *OTHERS, *FAILED, *NO_IMAGE]
LISTED = [*SELECTED, *UNDECIDED, *NOT_SELECTED]


def retroscan(*words: str, code: int = 0) -> str:
    """What the command line, in this process, prints to stdout."""
    said, log = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(log), pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == code, log.getvalue()
    return said.getvalue()


def answer(*words: str) -> Any:
    return json.loads(retroscan(*words, "--json"))


class Walk(NamedTuple):
    """Where everything lies, and what the verbs said on the way."""

    place: Callable[[str], str]
    planned: dict[str, Any]
    first: dict[str, Any]
    second: dict[str, Any]

    def rows(self, run: str) -> pd.DataFrame:
        """A run's table with the objects' names below the archive."""
        table = read_scores(self.place(run))
        return table.assign(name=table["uri"].str.removeprefix(f"{self.place('archive')}/"))


@pytest.fixture(scope="module", params=["local", "s3"])
def walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, s3: S3Server) -> Walk:
    """Two runs, the second since the first, by two models: one was fitted on MR, the other takes everything."""
    folder = tmp_path_factory.mktemp("mixed")

    def place(name: str) -> str:
        return str(folder / name) if request.param == "local" else s3.uri(f"mixed/{name}")

    def put(objects: dict[str, bytes], below: str = "archive") -> None:
        for name, data in objects.items():
            storage.write_bytes(f"{place(below)}/{name}", data)

    put(ARCHIVE)
    put({f"{number}.dcm": mr(number) for number in range(20)}, "normal")
    everything = kit.make_model(folder / "everything")
    models = ("--model", place("model"), "--model", everything)
    retroscan("index", place("archive"), "--out", place("manifest"), "--headers")
    fit = ("--detector", "linear", "--size", str(kit.SIZE_PX), "--decode", "reduced")
    retroscan("fit", *fit, "--normal", place("normal"), "--out", place("model"))
    planned = answer("plan", place("manifest"), *models, "--where", WHERE, "--sample", "4")
    scan = ("scan", place("manifest"), *models, "--where", WHERE, "--heatmaps", "all")
    first = answer(*scan, "--out", place("run"))
    put(NEW)
    retroscan("index", place("archive"), "--out", place("manifest-2"), "--headers")
    since = ("scan", place("manifest-2"), *models, "--where", WHERE, "--since", place("run"))
    second = answer(*since, "--out", place("run-2"))
    return Walk(place, planned, first, second)


def code_of(rows: pd.DataFrame) -> dict[str, str]:
    """The code of each object that has one."""
    without = rows[rows["error_code"].notna()]
    return dict(zip(without["name"], without["error_code"], strict=True))


def test_what_is_selected_is_accounted_for(walk: Walk) -> None:
    manifest = walk.first["manifest"]
    assert (manifest["listed"], manifest["objects"]) == (len(LISTED), len(SELECTED))
    assert (manifest["undecided"], manifest["already"]) == (len(UNDECIDED), 0)
    names = walk.rows("run")["name"]
    assert set(names) == set(SELECTED)


def test_every_object_is_in_one_place_under_each_model(walk: Walk) -> None:
    rows = walk.rows("run")
    assert not rows.duplicated(["name", "frame", "model_id"]).any()
    fitted, everything = (rows[rows["model_id"] == model["model_id"]] for model in walk.first["models"])
    codes = code_of(fitted)
    outside = dict.fromkeys(OTHERS, "out_of_domain")
    bad = FAILED | dict.fromkeys(NO_IMAGE, "not_an_image")
    assert codes == outside | bad
    assert sorted(fitted["name"][fitted["status"] == "scored"]) == sorted(MR)
    scored = everything["name"][everything["status"] == "scored"]
    assert Counter(scored) == {name: kit.FRAMES if name == "cine/0.dcm" else 1 for name in (*MR, *OTHERS)}
    assert code_of(everything) == bad
    counts = walk.first["counts"]
    assert counts["scored"] + counts["failed"] + counts["skipped"] == counts["objects"] == len(SELECTED)
    assert (counts["scored"], counts["failed"]) == (len(MR), len(FAILED))
    assert counts["by_code"] == Counter(codes.values())


def test_the_plan_foretold_it(walk: Walk) -> None:
    counts, expected = walk.first["counts"], walk.planned["expected"]
    assert walk.planned["manifest"]["objects"] == counts["objects"]
    assert walk.planned["manifest"]["undecided"] == len(UNDECIDED)
    assert walk.planned["manifest"]["not_selected"] == len(NOT_SELECTED)
    # Of what only the pixels, or a container's end, can tell.
    foretold = Counter(counts["by_code"])
    foretold["unknown_format"] += foretold.pop("unreadable_container")
    del foretold["truncated"]
    assert {code: amount["value"] for code, amount in expected["by_code"].items()} == foretold


def test_only_what_is_new_is_scanned_since(walk: Walk) -> None:
    manifest, counts = walk.second["manifest"], walk.second["counts"]
    assert manifest["listed"] == len(LISTED) + len(NEW)
    assert (manifest["already"], manifest["objects"]) == (len(SELECTED), 2)
    assert manifest["undecided"] == len(UNDECIDED) + 1
    assert set(walk.rows("run-2")["name"]) == {"mr/new.dcm", "pictures/new.jpg"}
    assert (counts["scored"], counts["failed"], counts["by_code"]) == (1, 0, {"out_of_domain": 1})


@pytest.mark.parametrize("run", ["run", "run-2"])
def test_verify_finds_no_difference_and_tells_what_whole_frames_would_change(walk: Walk, run: str) -> None:
    found = answer("verify", walk.place(run), "--sample", "1000", "--full")
    assert (found["ok"], found["differences"], found["parent_checked"]) == (True, [], True)
    reduced, whole = found["whole"]
    assert (reduced["decode"], whole["decode"]) == ("reduced", "full")
    rows = walk.rows(run)
    of_model = rows["model_id"] == reduced["model_id"]
    assert (reduced["frames"], reduced["by_code"]) == ((of_model & (rows["status"] == "scored")).sum(), {})
    assert 0 < reduced["largest"] < reduced["spread"]
    told = retroscan("verify", walk.place(run), "--sample", "1000", "--full").splitlines()
    assert f"model {reduced['model_id']} decodes reduced frames" in told[1]
    assert told[2].endswith("decodes whole frames: there is nothing to compare")


def test_show_says_what_they_are(walk: Walk) -> None:
    model = retroscan("show", walk.place("model"))
    assert "decode reduced" in model
    assert "kind [dicom], modality [MR]" in model
    listed, chosen, left = len(LISTED), len(SELECTED), len(NOT_SELECTED)
    assert f"manifest {listed} = selected {chosen} + not selected {left} + undecided {len(UNDECIDED)}" in retroscan(
        "show", walk.place("run")
    )


def test_compare_report_and_evaluate_count_the_same_objects(walk: Walk, tmp_path: Path) -> None:
    objects = answer("compare", walk.place("run"), walk.place("run-2"))["objects"]
    assert objects == {"both": 0, "only_a": len(SELECTED), "only_b": 2, "content_changed": 0}
    page = answer("report", walk.place("run"))["report"]
    assert storage.read_bytes(page).startswith(b"<!doctype html>")

    labelled = [*MR, *OTHERS, *FAILED, UNDECIDED[0], NOT_SELECTED[0], "mr/gone.dcm"]
    lines = [f"{walk.place('archive')}/{name},{number % 2}" for number, name in enumerate(labelled)]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["image,anomalous", *lines]) + "\n")
    judged = answer("evaluate", walk.place("run"), "--labels", str(labels), "--bootstrap", "0")
    assert judged["n_normal"] + judged["n_anomalous"] == len(MR)
    assert (judged["n_failed"], judged["n_skipped"]) == (len(FAILED), len(OTHERS))
    assert (judged["n_missing"], judged["labels"]["not_selected"]) == (3, 2)
    assert judged["n_unlabelled"] == len(NO_IMAGE)
