"""An archive with containers in it, in a folder and on S3, from the index to verify; and a fit from a ZIP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import containerkit
import pytest
import scankit as kit
from s3server import S3Server

from ad_jobs.archive.manifest import read_manifest
from ad_jobs.calibrate import calibrate
from ad_jobs.fit import fit
from ad_jobs.index import index
from ad_jobs.results.handle import open_run
from ad_jobs.results.read import read_scores
from ad_jobs.scan import scan
from ad_jobs.score import score
from ad_jobs.verify import verify
from cluster import storage

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.usefixtures("one_ray")]


def archive() -> dict[str, bytes]:
    """Plain files and containers, one of which is broken."""
    images = {f"series/IM{number}": kit.dicom(number) for number in range(5)}
    pictures = {f"{number}.png": kit.png(number) for number in range(6)}
    return {
        "plain.png": kit.png(20),
        "odd.zip!/plain.dcm": kit.dicom(21),
        "study.zip": containerkit.zipped({**images, "DICOMDIR": b"x" * 400, "inner.zip": containerkit.zipped(images)}),
        "pictures.tar": containerkit.tarred(pictures),
        "series.tar.gz": containerkit.gzipped(containerkit.tarred(images)),
        "IM9.dcm.gz": containerkit.gzipped(kit.dicom(9)),
        "broken.zip": containerkit.zipped(pictures)[:-50],
        "secret.zip": containerkit.encrypted(containerkit.zipped(pictures)),
    }


STATUS = {"scored": 2 + 5 + 6 + 5 + 1, "failed": 2 + 1 + 6}
CODES = {"unknown_format": 1, "nested_container": 1, "unreadable_container": 1, "unsupported_member": 6}


def written(root: str, objects: dict[str, bytes]) -> str:
    for name, data in objects.items():
        storage.write_bytes(f"{root}/{name}", data)
    return root


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, s3: S3Server) -> Callable[[str], str]:
    """Where a folder of this name lies."""
    if request.param == "disk":
        return lambda name: str(tmp_path / name)
    return lambda name: s3.uri(f"containers-{tmp_path.name}/{name}")


def test_members_are_scored_and_verified_like_files(place: Callable[[str], str], tmp_path: Path) -> None:
    root = written(place("archive"), archive())
    model, out = kit.make_model(tmp_path / "model"), place("run")
    manifest = index(root, place("manifest"), headers=True)
    assert manifest.objects == sum(STATUS.values())
    assert index(root, place("again"), headers=True).parts == manifest.parts
    described = read_manifest(manifest.uri, ["uri"], where="modality = 'MR'")
    assert described.num_rows == 1 + 5 + 5 + 1

    record = scan(manifest.uri, [model], out, batch_size=4)
    rows = read_scores(out).set_index("uri", drop=False)
    assert rows["status"].value_counts().to_dict() == STATUS
    assert rows["error_code"].value_counts().to_dict() == CODES
    assert record.counts.objects == manifest.objects
    assert rows.loc[f"{root}/broken.zip", "error_code"] == "unreadable_container"
    # The same image, and so the same score, wherever it lies.
    in_zip, in_tar = (rows.loc[f"{root}/{name}!/series/IM3"] for name in ("study.zip", "series.tar.gz"))
    assert in_zip["content_sha256"] == in_tar["content_sha256"]
    assert in_zip["score"] == in_tar["score"]
    [alone] = score(model, [str(in_zip["uri"])])
    assert alone["score"] == pytest.approx(in_zip["score"], abs=1e-5)
    assert open_run(out).image(in_tar).shape == (40, 40, 3)
    assert verify(out, sample=100).differences == []

    # The same container but for one image: only that one is told.
    changed = {f"series/IM{number}": kit.dicom(number + (number == 3)) for number in range(5)}
    written(root, {"series.tar.gz": containerkit.gzipped(containerkit.tarred(changed))})
    told = verify(out, sample=100).differences
    assert all("series.tar.gz!/series/IM3)" in difference for difference in told)
    assert any("sha256 is" in difference for difference in told)


def test_an_archive_that_is_one_container(place: Callable[[str], str]) -> None:
    normal = {f"{number:02}.png": kit.png(number) for number in range(14)}
    root = written(place("normal"), {"normal.zip": containerkit.zipped(normal), "other.tgz": b"no container"})
    model = place("model")
    asked = {"detector": "mkd", "out": model, "size": (32, 32), "options": {"epochs": 1}}
    record = fit(normal=f"{root}/normal.zip", **asked)
    assert record["data"]["n_fitted"] + record["data"]["n_held_out"] == len(normal)
    assert calibrate(model, normal=f"{root}/normal.zip", max_fpr=0.5).n_normal == len(normal)
    done = scan(f"{root}/normal.zip", [model], place("run"), batch_size=4)
    assert done.counts.scored == len(normal)
    assert verify(place("run"), sample=3).differences == []
