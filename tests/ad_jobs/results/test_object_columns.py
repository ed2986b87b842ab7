"""A run's manifest, found again: there, or not, or the store does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runkit

from ad_jobs.index import index
from ad_jobs.results.described import described
from ad_jobs.results.object_columns import manifest_of
from ad_jobs.results.run import ManifestRef, RunRecord
from cluster import storage

# Where the run would lie.
RUN = "/run"


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    """Of a run whose manifest has one object."""
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "a.png").write_bytes(b"no picture")
    made = index(str(tmp_path / "archive"), str(tmp_path / "manifest"))
    (tmp_path / "run" / "scores").mkdir(parents=True)
    runkit.write_part(tmp_path / "run", [runkit.scored(0)])
    ref = ManifestRef(uri=str(tmp_path / "manifest"), digest=made.digest, objects=1, fingerprint=made.fingerprint)
    return runkit.record(tmp_path / "run", 1).model_copy(update={"manifest": ref})


def with_manifest(record: RunRecord, **changed: Any) -> RunRecord:
    return record.model_copy(update={"manifest": record.manifest.model_copy(update=changed)})


def test_a_manifest_is_found_where_the_run_says(record: RunRecord) -> None:
    found = manifest_of(RUN, record)
    assert found is not None
    assert found.digest == record.manifest.digest
    stream = described(RUN, record, ["uri", "sex"])
    assert stream is not None
    assert stream.schema.names == ["object_id", "uri"]
    assert described(RUN, record, ["sex"]) is None


@pytest.mark.parametrize("changed", [{"uri": "/gone"}, {"uri": "hmac:0123"}, {"digest": "another"}], ids=str)
def test_one_that_is_gone_hidden_or_another_by_now_is_none(record: RunRecord, changed: dict[str, str]) -> None:
    assert manifest_of(RUN, with_manifest(record, **changed)) is None
    assert described(RUN, with_manifest(record, **changed), ["uri"]) is None
    assert manifest_of("s3://bucket", with_manifest(record, uri="hmac:0123")) is None, "beside a bucket lies nothing"


def test_who_may_not_see_it_has_none_and_a_store_that_is_away_is_told(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(uri: str) -> bytes:
        raise error(uri, "refused")

    monkeypatch.setattr(storage, "read_bytes", refuse)
    error: type[storage.StorageError] = storage.AccessDenied
    assert manifest_of(RUN, record) is None
    error = storage.Unreachable
    with pytest.raises(storage.Unreachable):
        manifest_of(RUN, record)
    with pytest.raises(storage.Unreachable):
        described(RUN, record, ["uri"])


def test_a_run_tells_of_its_manifest_what_its_identifiers_allow(tmp_path: Path, record: RunRecord) -> None:
    """A hidden manifest lies beside the run; who hides identifiers tells institutions by their hashes alone."""
    (tmp_path / "key").write_bytes(b"a key")
    named: dict[str, dict[str, Any]] = {"plain": {}, "hashed": {"identifiers_key": tmp_path / "key"}}
    told = {}
    for mode, keyed in named.items():
        made = index(
            str(tmp_path / "archive"), str(tmp_path / f"{mode}.manifest"), headers=True, identifiers=mode, **keyed
        )
        for of_run in ("plain", "hashed", "none"):
            uri = "hmac:0123" if of_run == "hashed" else made.uri
            run = with_manifest(record, uri=uri, digest=made.digest).model_copy(
                update={"config": {"identifiers": of_run}}
            )
            found = manifest_of(str(tmp_path / mode), run)
            assert found is not None
            assert ("study_uid" in found.names) == ("site" in found.names)
            told[mode, of_run] = described(str(tmp_path / mode), run, ["site"]) is not None
    assert {pair for pair, is_told in told.items() if is_told} == {
        ("plain", "plain"),
        ("hashed", "plain"),
        ("hashed", "hashed"),
    }
