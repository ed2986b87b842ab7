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
    found = manifest_of(record)
    assert found is not None
    assert found.digest == record.manifest.digest
    stream = described(record, ["uri", "sex"])
    assert stream is not None
    assert stream.schema.names == ["object_id", "uri"]
    assert described(record, ["sex"]) is None


@pytest.mark.parametrize("changed", [{"uri": "/gone"}, {"uri": "hmac:0123"}, {"digest": "another"}], ids=str)
def test_one_that_is_gone_hidden_or_another_by_now_is_none(record: RunRecord, changed: dict[str, str]) -> None:
    assert manifest_of(with_manifest(record, **changed)) is None
    assert described(with_manifest(record, **changed), ["uri"]) is None


def test_who_may_not_see_it_has_none_and_a_store_that_is_away_is_told(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(uri: str) -> bytes:
        raise error(uri, "refused")

    monkeypatch.setattr(storage, "read_bytes", refuse)
    error: type[storage.StorageError] = storage.AccessDenied
    assert manifest_of(record) is None
    error = storage.Unreachable
    for look in (manifest_of, lambda record: described(record, ["uri"])):
        with pytest.raises(storage.Unreachable):
            look(record)
