"""A plan says what a scan then says, as far as headers can tell; locally and on S3, with a header index and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import containerkit
import pytest
import scankit as kit
from sincekit import run_of
from typer.testing import CliRunner

from ad_jobs.cli.app import app
from ad_jobs.cli.show_plan import plan_text
from ad_jobs.errors import UsageError
from ad_jobs.images import dicom
from ad_jobs.images.domain import Domain, DomainFile
from ad_jobs.index import index
from ad_jobs.plan import plan
from ad_jobs.planning import census
from ad_jobs.results.run import Counts
from ad_jobs.scan import scan
from ad_jobs.scoring.model_domain import DOMAIN
from ad_jobs.specs import ScanSpec
from cluster.session import session

# Of the same length as Explicit VR Little Endian: no such syntax is known.
NO_SYNTAX = "1.2.840.10008.1.2.9"
UNDECODABLE = kit.dicom(11).replace(b"1.2.840.10008.1.2.1\0", f"{NO_SYNTAX}\0".encode())
ARCHIVE = {
    **{f"mr{number}.dcm": kit.dicom(number) for number in range(4)},
    "ct.dcm": kit.dicom_of(4, Modality="CT"),
    "cine.dcm": kit.dicom(5, kit.FRAMES),
    "grey.png": kit.png(6),
    "colour.jpg": kit.jpeg(7),
    "report.dcm": kit.structured_report(8),
    "undecodable.dcm": UNDECODABLE,
    "empty.dcm": b"",
    "text.txt": b"no picture, whatever its name says\n" * 20,
    "members.zip": containerkit.zipped({"mr.dcm": kit.dicom(9), "b.png": kit.png(10), "c.txt": b"nothing" * 50}),
    "broken.zip": containerkit.zipped({"a.png": kit.png(12)})[:-30],
}
OBJECTS = len(ARCHIVE) + 2
DOMAINS = {"brains": Domain(modality=("MR",), kind=("dicom",)), "pictures": Domain(kind=("picture",))}
# Under either model. That a container is damaged no header says: it is no image by its first bytes.
EXPECTED = {"empty": 1, "not_an_image": 1, "unknown_format": 3, "unsupported_syntax": 1}


class Home:
    """An archive with its models, and a folder for runs and manifests; all local, or all on S3."""

    def __init__(self, place: str, local: Path) -> None:
        self.archive, self.out, self.local = f"{place}/archive", f"{place}/out", local
        for seed, (name, accepts) in enumerate(DOMAINS.items()):
            kit.make_model(local / name, seed=seed)
            (local / name / DOMAIN).write_text(DomainFile(accepts=accepts).model_dump_json())

    @property
    def models(self) -> list[str]:
        return [str(self.local / name) for name in DOMAINS]


@pytest.fixture(scope="module", params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("plan")
    if request.param == "local":
        kit.write_archive(folder / "archive", ARCHIVE)
        return Home(str(folder), folder)
    s3 = request.getfixturevalue("s3")
    for name, data in ARCHIVE.items():
        s3.client.put_object(Bucket=s3.bucket, Key=f"plan/archive/{name}", Body=data)
    return Home(f"s3://{s3.bucket}/plan", folder)


@pytest.fixture(scope="module")
def manifest(home: Home) -> str:
    index(home.archive, f"{home.out}/manifest", headers=True)
    return f"{home.out}/manifest"


def planned(source: str, models: list[str], **options: Any) -> dict[str, Any]:
    return plan(source=source, model=models, sample=options.pop("sample", 6), **options)


def codes(found: dict[str, Any]) -> dict[str, int]:
    return {code: amount["value"] for code, amount in found["expected"]["by_code"].items()}


def of_facet(found: dict[str, Any], facet: str) -> dict[Any, int]:
    return {row["value"]: row["objects"]["value"] for row in found["facets"][facet]}


def as_scanned(found: dict[str, Any], counts: Counts) -> None:
    """What was expected is what a scan counted."""
    expected, by_code = found["expected"], dict(counts.by_code)
    by_code["unknown_format"] += by_code.pop("unreadable_container")
    assert codes(found) == by_code
    for status in ("scored", "failed", "skipped"):
        assert expected[status] == {name: getattr(counts, status) for name in ("value", "low", "high")}, status


@pytest.mark.ray
def test_counts_are_those_of_the_scan(home: Home, manifest: str) -> None:
    by_manifest, by_archive = planned(manifest, home.models), planned(home.archive, home.models)
    with session(num_cpus=2):
        counts = scan(manifest, home.models, f"{home.out}/run").counts
    as_scanned(by_manifest, counts)
    as_scanned(by_archive, counts)
    assert by_manifest["manifest"]["listed"] == by_manifest["manifest"]["objects"] == counts.objects == OBJECTS
    same = ("manifest", "headers", "facets", "expected", "undecodable", "models")
    assert {name: by_manifest[name] for name in same} == {name: by_archive[name] for name in same}


def test_what_occurs_and_why_it_is_not_scored(home: Home, manifest: str) -> None:
    found = planned(manifest, home.models[:1])
    assert codes(found) == EXPECTED | {"out_of_domain": 5}
    assert found["expected"]["scored"]["value"] == 5
    assert of_facet(found, "kind") == {"dicom": 9, "other": 4, "png": 2, "jpeg": 1}
    assert of_facet(found, "modality") == {"MR": 6, "CT": 1, "OT": 1, "SR": 1, None: 7}
    assert of_facet(found, "size") == {"40 x 40": 8, None: 8}
    (first, *_) = found["facets"]["transfer_syntax"]
    assert (first["value"], first["name"]) == ("1.2.840.10008.1.2.1", "Explicit VR Little Endian")
    (refused,) = found["expected"]["refused"]
    assert {row["reason"]: row["objects"]["value"] for row in refused} == {
        "kind picture, and the model takes dicom": 3,
        "modality CT, and the model takes MR": 1,
        "modality OT, and the model takes MR": 1,
    }
    (missing,) = found["undecodable"]
    assert (missing["transfer_syntax"], missing["name"], missing["objects"]["value"]) == (NO_SYNTAX, None, 1)
    assert codes(planned(manifest, home.models[:1], accept=["all"])) == EXPECTED


def test_a_plan_leaves_nothing_and_says_nothing_of_a_single_object(home: Home, manifest: str) -> None:
    result = CliRunner().invoke(app, ["plan", manifest, "--model", home.models[0], "--sample", "4", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    told = plan_text(found)
    for secret in ("Zzyzx", "PLANTED", "mr0", "members.zip", "report"):
        assert secret not in result.stdout.replace(manifest, "")
        assert secret not in told
    assert "no decoder   1.2.840.10008.1.2.9 (a name that is not known): 1" in told
    assert f"{OBJECTS} = {OBJECTS} to scan + 0 not selected + 0 undecided" in told
    estimate = found["estimate"]
    assert estimate["sample"] == 4
    assert min(estimate["means"].values()) > 0
    assert 0 < estimate["table_bytes"]["low"] <= estimate["table_bytes"]["value"] <= estimate["table_bytes"]["high"]


@pytest.fixture
def local(tmp_path: Path) -> Home:
    kit.write_archive(tmp_path / "archive", ARCHIVE)
    return Home(str(tmp_path), tmp_path)


def test_where_leaves_out_and_tells_what_is_undecided(local: Home) -> None:
    index(local.archive, f"{local.out}/manifest", headers=True)
    found = planned(f"{local.out}/manifest", local.models[:1], where="modality = 'MR'", nodes=3, cores=4)
    assert found["manifest"] == {
        **{"listed": OBJECTS, "objects": 6, "already": 0, "since": None, "not_selected": 3, "undecided": 7}
    }
    assert codes(found) == {"unsupported_syntax": 1}
    here, asked = found["estimate"]["clusters"]
    assert (asked["nodes"], asked["cores"], asked["cost"]) == (3, 4, None)
    assert here["nodes"] == 1
    with pytest.raises(UsageError, match="at least one object"):
        planned(f"{local.out}/manifest", local.models[:1], where="modality = 'XX'")


def test_since_leaves_out_what_the_run_has(local: Home) -> None:
    archive = local.local / "archive"
    record = run_of(ScanSpec(source=str(archive), model=local.models[:1], out=f"{local.out}/run"), rows=None)
    nothing = planned(str(archive), local.models[:1], since=f"{local.out}/run")
    assert (nothing["manifest"]["objects"], nothing["manifest"]["already"]) == (0, OBJECTS)
    assert nothing["manifest"]["since"] == record.run_id
    assert (nothing["estimate"], nothing["expected"]["scored"]["value"]) == (None, 0)
    assert "nothing: no object will be scored" in plan_text(nothing)
    (archive / "new.dcm").write_bytes(kit.dicom(20))
    found = planned(str(archive), local.models[:1], since=f"{local.out}/run")
    assert (found["manifest"]["objects"], found["manifest"]["already"]) == (1, OBJECTS)
    assert found["expected"]["scored"]["value"] == 1
    assert found["estimate"]["sample"] == 1


def test_a_sample_of_headers_gives_estimates(local: Home) -> None:
    found = planned(local.archive, local.models[:1], headers=8, sample=2)
    assert found["headers"] == {"read": 8, "objects": OBJECTS, "exact": False}
    dicoms = next(row["objects"] for row in found["facets"]["kind"] if row["value"] == "dicom")
    assert dicoms["low"] <= 9 <= dicoms["high"]
    assert dicoms["low"] < dicoms["value"] < dicoms["high"]
    assert "8 of 16 were read, drawn at random" in plan_text(found)
    again = planned(local.archive, local.models[:1], headers=8, sample=2)
    assert (again["facets"], again["expected"]) == (found["facets"], found["expected"])


def test_a_decoder_that_is_missing_is_told(local: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ad_jobs.planning.shown.decodable", lambda _: False)
    monkeypatch.setattr(dicom, "decodable", lambda _: False)
    found = planned(local.archive, local.models[:1])
    assert {row["transfer_syntax"]: row["objects"]["value"] for row in found["undecodable"]} == {
        "1.2.840.10008.1.2.1": 8,
        NO_SYNTAX: 1,
    }
    # The report is no image anyway.
    assert codes(found)["unsupported_syntax"] == 8
    assert found["estimate"] is None


def test_objects_of_equal_headers_are_judged_once(local: Home) -> None:
    info = index(local.archive, f"{local.out}/manifest", headers=True)
    asked: list[dict[str, Any]] = []

    def judge(header: dict[str, Any]) -> Any:
        asked.append(header)
        return census.Outlook(None, "", (None,))

    found = census.count(census.listed_headers(info, None), OBJECTS, info.objects, 1, 1 << 30, judge)
    assert found.scored == found.will_score.sum() == OBJECTS
    assert sum(header["modality"] == "MR" for header in asked) == 2, "one for each transfer syntax"
