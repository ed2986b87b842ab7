"""Where the manifest of a run lies that may not say where its objects lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scankit import make_model, png

from ad_jobs.archive.identifiers import Identifiers
from ad_jobs.archive.manifest_record import manifest_info
from ad_jobs.calibrate import calibrate
from ad_jobs.errors import UsageError
from ad_jobs.index import index
from ad_jobs.scanning.intent import Intent, manifest_beside, resolve
from ad_jobs.specs import ScanSpec


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive, a model, a key."""
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "archive").mkdir()
    (folder / "archive" / "a.png").write_bytes(png(1))
    make_model(folder / "model")
    (folder / "key").write_text("secret")
    return folder


def resolved(home: Path, out: Path, **options: Any) -> Intent:
    asked = {"source": str(home / "archive"), "model": [str(home / "model")], "out": str(out)}
    return resolve(ScanSpec(**(asked | options)))


def hashed(home: Path, out: Path, **options: Any) -> Intent:
    return resolved(home, out, identifiers="hashed", identifiers_key=home / "key", **options)


def test_it_lies_beside_the_run_or_where_it_is_sent(home: Path, tmp_path: Path) -> None:
    assert resolved(home, tmp_path / "plain").manifest.uri == f"{tmp_path}/plain/manifest"
    beside = hashed(home, tmp_path / "run")
    assert beside.manifest.uri == f"{tmp_path}/run.manifest"
    assert not (tmp_path / "run").exists()
    sent = hashed(home, tmp_path / "run", manifest_out=str(tmp_path / "sent"))
    assert sent.manifest.uri == f"{tmp_path}/sent"
    # Where it lies decides nothing.
    assert sent.run_id == beside.run_id
    assert resolved(home, tmp_path / "plain-2", manifest_out=str(tmp_path / "sent")).manifest == sent.manifest


@pytest.mark.parametrize("mode", ["plain", "none"])
def test_a_key_without_hashes_is_refused(home: Path, tmp_path: Path, mode: str) -> None:
    with pytest.raises(
        UsageError, match=r"--identifiers-key is the key of hashed identifiers\..*Add --identifiers hashed"
    ):
        resolved(home, tmp_path / "run", identifiers=mode, identifiers_key=home / "key")


def test_a_calibration_that_names_institutions_is_none_of_a_run_that_hides_them(home: Path, tmp_path: Path) -> None:
    """A run keeps a copy of the held-out scores that it was judged by."""
    model, out = make_model(tmp_path / "model"), tmp_path / "run"
    calibrate(model=model, normal=str(home / "archive"), max_fpr=0.5, identifiers="plain")
    assert resolved(home, tmp_path / "plain", model=[model]).models
    for refused in (hashed, lambda *places, **options: resolved(*places, identifiers="none", **options)):
        with pytest.raises(UsageError, match=r"names no institution.*--identifiers hashed and a key, or without"):
            refused(home, out, model=[model])
    assert not Path(f"{out}.manifest").exists(), "before anything is listed"
    key = home / "key"
    calibrate(model=model, normal=str(home / "archive"), max_fpr=0.5, identifiers="hashed", identifiers_key=key)
    assert hashed(home, tmp_path / "run-2", model=[model]).models


def test_what_is_no_place_for_it_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a whole bucket"):
        manifest_beside("s3://bucket")
    with pytest.raises(UsageError, match="Nothing below a run"):
        hashed(home, tmp_path / "run", manifest_out=str(tmp_path / "run" / "kept"))
    index(str(home / "archive"), str(tmp_path / "run" / "given"))
    with pytest.raises(UsageError, match="Nothing below a run"):
        hashed(home, tmp_path / "run", source=str(tmp_path / "run" / "given"))
    with pytest.raises(UsageError, match="no manifest"):
        hashed(home, tmp_path / "new", source=str(tmp_path / "run" / "given"), manifest_out=str(tmp_path / "sent"))
    (home / "other").mkdir(exist_ok=True)
    (home / "other" / "b.png").write_bytes(png(2))
    index(str(home / "other"), str(tmp_path / "of-another"))
    with pytest.raises(UsageError, match=r"a manifest of .*other"):
        hashed(home, tmp_path / "new", manifest_out=str(tmp_path / "of-another"))


def test_the_manifest_that_an_earlier_version_left_below_a_run_is_moved_first(home: Path, tmp_path: Path) -> None:
    index(str(home / "archive"), str(tmp_path / "run" / "manifest"))
    with pytest.raises(UsageError, match="Move it") as caught:
        hashed(home, tmp_path / "run")
    target = tmp_path / "run.manifest"
    assert str(target) in str(caught.value)
    (tmp_path / "run" / "manifest").rename(target)
    assert hashed(home, tmp_path / "run").manifest == manifest_info(str(target))


def test_a_request_is_recorded_without_the_names_of_an_archive(home: Path, tmp_path: Path) -> None:
    intent = hashed(home, tmp_path / "run", where="uri LIKE '%a%'", manifest_out=str(tmp_path / "sent"))
    config = intent.identifiers.config(intent.spec.config())
    assert not {"source", "where", "manifest_out"} & set(config)
    # With the source and the condition named again it is the same request.
    again = ScanSpec(**config, source=intent.spec.source, where=intent.spec.where, manifest_out=str(tmp_path / "sent"))
    assert resolve(again).run_id == intent.run_id
    plain = resolved(home, tmp_path / "plain", where="uri LIKE '%a%'")
    assert plain.identifiers.config(plain.spec.config()) == plain.spec.config()
    assert Identifiers().uri("/a") == "/a"
