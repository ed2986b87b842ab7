"""Source, model and run on S3: a scan, a fit, and refused credentials."""

from pathlib import Path

import pytest
import scankit as kit
from s3server import S3Server

from ad_jobs.errors import UsageError
from ad_jobs.fit import fit
from ad_jobs.results.read import open_heatmap, read_scores
from ad_jobs.scan import scan
from ad_jobs.scoring.model_domain import DOMAIN
from ad_jobs.scoring.model_store import open_model, read_model
from ad_jobs.show import show
from ad_jobs.specs import FitSpec
from ad_jobs.verify import verify
from cluster import storage

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.usefixtures("one_ray")]


@pytest.fixture(scope="module")
def model(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model in the bucket."""
    folder = tmp_path_factory.mktemp("model")
    kit.make_model(folder)
    return s3.put_folder(folder, "models/tiny")


def upload(s3: S3Server, prefix: str, objects: dict[str, bytes]) -> str:
    """The objects below a prefix; the prefix as a SOURCE."""
    for name, data in objects.items():
        s3.client.put_object(Bucket=s3.bucket, Key=f"{prefix}/{name}", Body=data)
    return f"s3://{s3.bucket}/{prefix}"


def test_everything_on_s3_gives_the_local_table(s3: S3Server, model: str, tmp_path: Path) -> None:
    good, bad = kit.good_objects(16), kit.bad_objects()
    objects = good | {name: data for name, (data, _) in bad.items()}
    source, out = upload(s3, "e2e-scan/mixed", objects), f"s3://{s3.bucket}/runs/mixed"
    local = kit.write_archive(tmp_path / "archive", objects)
    record = scan(source, [model], out, batch_size=4)
    scan(local, [model], str(tmp_path / "run"), batch_size=4)
    assert (record.counts.scored, record.counts.skipped, record.counts.failed) == (len(good), 1, len(bad) - 1)
    names = storage.list_names(out)
    assert not [name for name in names if "checkpoint" in name or "pending" in name]

    there, here = kit.table(out), kit.table(str(tmp_path / "run"))
    columns = ["object_id", "status", "error_code", "flagged", "content_sha256", "bytes", "modality"]
    assert there[columns].equals(here[columns])
    assert (there["score"].dropna() - here["score"].dropna()).abs().max() < 1e-5

    for reference in read_scores(out)["heatmap"].dropna():
        assert open_heatmap(out, reference).values.shape == (kit.SIZE_PX, kit.SIZE_PX)
    assert verify(out, sample=100).differences == []
    s3.client.put_object(Bucket=s3.bucket, Key="e2e-scan/mixed/good/0001.png", Body=kit.png(8))
    [only] = verify(out, sample=100).differences
    assert "good/0001.png" in only


def test_a_models_domain_is_read_from_s3(s3: S3Server, tmp_path: Path) -> None:
    kit.make_model(tmp_path / "model")
    (tmp_path / "model" / DOMAIN).write_text('{"accepts": {"modality": ["MR"]}}')
    model = s3.put_folder(tmp_path / "model", "models/brains")
    source = upload(s3, "e2e-scan/domain", {"mr.dcm": kit.dicom(1), "ct.dcm": kit.dicom_of(2, Modality="CT")})
    out = f"s3://{s3.bucket}/runs/domain"
    record = scan(source, [model], out)
    assert record.models[0].model_id == read_model(str(tmp_path / "model")).model_id
    assert record.counts.by_code == {"out_of_domain": 1}
    assert read_scores(out)["error_detail"].dropna().tolist() == ["modality CT, and the model takes MR"]
    assert verify(out, sample=100).differences == []
    assert show(model)["model"]["domain"]["accepts"]["modality"] == ["MR"]


def test_wrong_keys_are_refused_before_any_work(
    s3: S3Server, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = upload(s3, "e2e-scan/few", kit.good_objects(2))
    local = kit.make_model(tmp_path / "model")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for call in (
        (source, [local], str(tmp_path / "run")),
        (kit.write_archive(tmp_path / "archive", kit.good_objects(2)), [local], f"s3://{s3.bucket}/runs/refused"),
        (str(tmp_path / "archive"), [model], str(tmp_path / "run")),
    ):
        with pytest.raises(UsageError, match="AWS"):
            scan(*call)
    assert not (tmp_path / "run").exists()


def test_a_bucket_that_does_not_exist_is_refused(s3: S3Server, model: str, tmp_path: Path) -> None:
    del s3
    with pytest.raises(UsageError, match="bucket"):
        scan("s3://no-such-bucket/archive", [model], str(tmp_path / "run"))


def test_fit_from_s3_into_s3(s3: S3Server) -> None:
    normal = upload(s3, "e2e-scan/normal", {f"{number}.png": kit.png(number) for number in range(12)})
    out = f"s3://{s3.bucket}/models/fitted"
    spec = FitSpec(detector="mkd", normal=normal, out=out, size=(32, 32), options={"epochs": 2})
    record = fit(spec)
    opened = open_model(out)
    assert opened.model_id == record["model_id"]
    assert (record["data"]["n_fitted"], record["data"]["n_held_out"]) == (11, 1)
    assert storage.exists(storage.join(out, "fit/curve.json"))
    # The same again: nothing to do.
    assert fit(spec) == record
