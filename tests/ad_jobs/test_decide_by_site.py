"""`decide --by site`: institutions of a run against those of a calibration, plain or hashed under one key."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import runkit as kit
from scankit import dicom_of

from ad_jobs.archive.identifiers import Identifiers
from ad_jobs.archive.manifest_record import ManifestInfo
from ad_jobs.decide import decide
from ad_jobs.errors import UsageError
from ad_jobs.index import index
from ad_jobs.results.run import ManifestRef, held_out_copy, write_record
from ad_jobs.scoring.held_out import Scored, to_parquet
from cluster import storage

# What the scanners of a site add to a score, and how many images are there; the last does not say where it is.
SHIFT: dict[str | None, float] = {"North Hospital": 0.0, "South Clinic": 3.0, None: 0.0}
IMAGES, HELD = 30, 60
HASHED = Identifiers("hashed", b"a key")
PLAIN, OTHER = Identifiers("plain"), Identifiers("hashed", b"another key")
SITES = [name for name in SHIFT for _ in range(IMAGES)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of all sites, and two keys."""
    folder = tmp_path_factory.mktemp("sites")
    (folder / "archive").mkdir()
    for number, site in enumerate(SITES):
        (folder / "archive" / f"{number:04}.dcm").write_bytes(dicom_of(number, InstitutionName=site or ""))
    (folder / "key").write_bytes(HASHED.key)
    index(str(folder / "archive"), str(folder / "plain"), headers=True)
    return folder


def indexed(home: Path, out: Path, mode: str) -> ManifestInfo:
    keyed: dict[str, Any] = {"identifiers_key": home / "key"} if mode == "hashed" else {}
    return index(str(home / "archive"), str(out), headers=True, identifiers=mode, **keyed)


def held_out(identifiers: Identifiers) -> bytes:
    """What a calibration kept whose sites are named so."""
    rng = np.random.default_rng(0)
    scored = [
        Scored(f"{name} {i}", 0, f"{name} {i}", False, float(rng.normal(shift)), "", header)
        for name, shift in SHIFT.items()
        for header in [{"site": identifiers.uid(name), "modality": "MR"}]
        for i in range(HELD)
    ]
    return to_parquet(scored, identifiers.naming)


def make_run(folder: Path, manifest: ManifestInfo, body: bytes, mode: str = "plain") -> str:
    """A run of normal images; of a manifest beside it where identifiers are hashed."""
    rng = np.random.default_rng(1)
    rows = [kit.scored(i, score=float(rng.normal(SHIFT[site])), modality="MR") for i, site in enumerate(SITES)]
    kit.write_part(folder, rows)
    record = kit.record(folder, len(rows))
    update = {"calibration_id": "c" * 12, "held_out_sha256": hashlib.sha256(body).hexdigest()}
    uri = "hmac:0123" if mode == "hashed" else manifest.uri
    changed: dict[str, Any] = {
        "models": [record.models[0].model_copy(update=update)],
        "manifest": ManifestRef(uri=uri, digest=manifest.digest, objects=len(rows)),
        "config": {"identifiers": mode},
    }
    storage.write_bytes(held_out_copy(str(folder), kit.MODEL), body)
    write_record(str(folder), record.model_copy(update=changed))
    return str(folder)


def groups_of(decision: dict[str, Any]) -> dict[str | None, tuple[bool, int]]:
    return {one["values"]["site"]: (one["own"], one["n_normal"]) for one in decision["models"][0]["groups"]}


def test_each_site_is_judged_by_its_own_held_out_normals(home: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", indexed(home, home / "plain", "plain"), held_out(PLAIN))
    apart = decide(run=run, max_fpr=0.1, by="modality,site")
    assert groups_of(apart) == {"North Hospital": (True, HELD), "South Clinic": (True, HELD), None: (True, HELD)}
    table = pd.read_parquet(f"{run}/decisions/{apart['decision_id']}.parquet")
    sites = [None if pd.isna(site) else site for site in table.sort_values("object_id")["site"]]
    assert sites == SITES
    thresholds = {one["values"]["site"]: one["threshold"] for one in apart["models"][0]["groups"]}
    assert thresholds["South Clinic"] > thresholds["North Hospital"] + 2
    assert groups_of(decide(run=run, fdr=0.1, by="site,modality")) == groups_of(apart)


def test_hashed_sites_are_the_same_under_one_key(home: Path, tmp_path: Path) -> None:
    manifest = indexed(home, tmp_path / "run.manifest", "hashed")
    # A run that hides where its manifest lies finds it beside its folder.
    for number, mode in enumerate(("hashed", "plain")):
        folder = tmp_path / ("run" if not number else "shown")
        run = make_run(folder, manifest, held_out(HASHED), mode)
        found = decide(run=run, max_fpr=0.05, by="site", level="study")
        assert groups_of(found) == {HASHED.uid(site): (True, HELD) for site in SHIFT}
        left = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        assert b"Hospital" not in left + str(found).encode()
    with pytest.raises(
        UsageError, match=r"whose manifest is not there, or another by now\. .*lay it at .*/alone\.manifest,"
    ):
        decide(run=make_run(tmp_path / "alone", manifest, held_out(HASHED), "hashed"), max_fpr=0.05, by="site")


@pytest.mark.parametrize(
    ("of_manifest", "of_calibration", "words"),
    [
        (
            "plain",
            Identifiers("none"),
            r"which was not asked\. Calibrate the model again with --identifiers plain, and",
        ),
        ("hashed", Identifiers("none"), r"which was not asked\. .* with --identifiers hashed --identifiers-key FILE"),
        ("plain", HASHED, r"a run with plain ones, and calibration c{12} with hashed ones\. .*--identifiers plain"),
        ("hashed", PLAIN, r"a run with hashed ones, and calibration c{12} with plain ones\. "),
        ("hashed", OTHER, r"with hashed ones under another key\. .*the key that the run's manifest was indexed with"),
        ("none", PLAIN, r"--by site of a run whose manifest has none\. Index with --headers"),
    ],
)
def test_sites_that_cannot_be_compared_are_refused(
    home: Path, tmp_path: Path, of_manifest: str, of_calibration: Identifiers, words: str
) -> None:
    run = make_run(tmp_path / "run", indexed(home, tmp_path / "manifest", of_manifest), held_out(of_calibration))
    with pytest.raises(UsageError, match=words):
        decide(run=run, max_fpr=0.05, by="site")
    assert decide(run=run, max_fpr=0.05)["models"][0]["n_normal"] == len(SHIFT) * HELD


@pytest.mark.parametrize("mode", ["hashed", "none"])
def test_a_run_that_hides_identifiers_tells_no_institution_of_a_plain_manifest(
    home: Path, tmp_path: Path, mode: str
) -> None:
    run = make_run(tmp_path / "run", indexed(home, tmp_path / "run.manifest", "plain"), held_out(PLAIN), mode)
    with pytest.raises(
        UsageError, match=rf"tells no institution.*a run with --identifiers {mode}, and .*run\.manifest"
    ):
        decide(run=run, max_fpr=0.05, by="site")
