"""docs/walk.md, run as it stands: every command in order, with a scripted reviewer and an Orthanc at its end."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from orthanc import Orthanc, needed
from reviewkit import client, images

from ad_jobs.cli.app import main
from ad_jobs.phantom import generate
from ad_jobs.phantom.scanners import INSTITUTIONS
from cluster.session import session

PAGE = Path(__file__).parents[2] / "docs" / "walk.md"
pytestmark = pytest.mark.ray


class Walked(NamedTuple):
    """Where it went, what each decision is called, and what each verb printed for machines."""

    folder: Path
    named: dict[str, str]
    printed: dict[str, list[dict[str, Any]]]
    # By the phantoms' own labels, as the reviewer gave them.
    said: dict[str, int]


def commands() -> list[list[str]]:
    """The page's commands, in order."""
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walked]:
    folder = tmp_path_factory.mktemp("walk")
    generate(folder / "demo" / "phantoms", train=40, calibration=60, normals=24, anomalous=16, multiframe=1)
    found = Walked(folder, {}, {}, {})
    decisions = iter(("FIRST", "STUDIES", "SITES", "SECOND"))
    with pytest.MonkeyPatch.context() as patch, session(num_cpus=2):
        patch.chdir(folder)
        for program, verb, *rest in commands():
            assert program == "retroscan"
            given = [found.named.get(word, word) for word in rest]
            if verb == "review":
                _review(found, given)
                continue
            told = _run(verb, given)
            found.printed.setdefault(verb, []).append(told)
            if verb == "decide":
                found.named[next(decisions)] = told["decision_id"]
        yield found


def _run(verb: str, given: list[str]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as ended:
        main([verb, *given, "--json"])
    assert ended.value.code == 0, (verb, given)
    return json.loads(printed.getvalue())


def _review(found: Walked, given: list[str]) -> None:
    """The flagged images by rank, each called what it is."""
    run, *options = given
    with (found.folder / "demo" / "phantoms" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    truth = {(Path(row["image"]).name, int(row["frame"] or 0)): int(row["anomalous"]) for row in rows}
    asked = {options[at].removeprefix("--"): options[at + 1] for at in range(0, len(options), 2)}
    with client(run, **asked) as page:
        for row in images(page, flagged="yes"):
            anomalous = truth[Path(row["uri"]).name, row["frame"]]
            verdict = {
                "object_id": row["object_id"],
                "frame": row["frame"],
                "verdict": "accepted" if anomalous else "rejected",
            }
            assert page.post("/api/verdicts", json=verdict).status_code == 200
            found.said[f"{row['object_id']}/{row['frame']}"] = anomalous


def test_decisions_find_lesions_and_studies_have_a_work_list(walked: Walked) -> None:
    first, studies, sites, _ = walked.printed["decide"]
    groups = {group["values"]["site"]: group["own"] for group in sites["models"][0]["groups"]}
    assert groups == dict.fromkeys(INSTITUTIONS, True)
    assert 3 <= first["models"][0]["flagged"] == len(walked.said)
    assert sum(walked.said.values()) >= len(walked.said) / 2
    work = pd.read_csv(walked.folder / "worklist.csv")
    assert len(work) == studies["models"][0]["flagged"]
    everything = pd.read_parquet(walked.folder / "run" / "studies.parquet")
    assert len(everything) > len(work)


def test_what_was_learnt_is_of_the_archive_and_compared(walked: Walked) -> None:
    _, learnt = walked.printed["calibrate"]
    assert learnt["n_anomalous"] == sum(walked.said.values())
    *_, second = walked.printed["decide"]
    assert second["models"][0]["calibration_id"] != walked.printed["decide"][0]["models"][0]["calibration_id"]
    assert (walked.folder / "compared" / "index.html").exists()
    (judged,) = walked.printed["evaluate"]
    assert judged["n_anomalous"] == sum(walked.said.values())


def test_what_is_handed_on_is_whole(walked: Walked) -> None:
    table, overlays, keys = walked.printed["export"]
    flagged = walked.printed["decide"][-1]["models"][0]["flagged"]
    assert table["written"] == overlays["written"] == flagged
    assert keys["written"] >= 1
    decision = walked.printed["decide"][-1]["decision_id"]
    assert (walked.folder / "run" / "report" / decision / "index.html").exists()


@needed
def test_a_pacs_takes_it(walked: Walked, tmp_path: Path) -> None:
    made = [*(walked.folder / "overlays").glob("*.dcm"), *(walked.folder / "key_images").glob("*.dcm")]
    assert made
    with Orthanc(tmp_path) as server:
        for path in made:
            assert server.json("instances", path.read_bytes())["Status"] == "Success"
        assert {one["MainDicomTags"]["Modality"] for one in server.json("series?expand")} == {"OT", "KO"}
