"""A fit into a folder that holds a model already."""

from __future__ import annotations

import logging

import pytest

from ad_jobs import fit
from ad_jobs.errors import UsageError
from ad_jobs.results.run import versions
from ad_jobs.scoring import model_store


@pytest.fixture(autouse=True)
def _whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model in the folder can be opened."""
    monkeypatch.setattr(model_store, "open_model", lambda folder: folder)


def record(**others: str) -> dict[str, object]:
    return {"fit_digest": "d", "model_id": "0123456789ab", "versions": versions() | others}


def test_the_same_fit_is_done_already(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert fit._already(record(), "d", "m")["model_id"] == "0123456789ab"
    assert "already holds this very fit" in caplog.text
    assert not [entry for entry in caplog.records if entry.levelno >= logging.WARNING]


def test_other_versions_that_made_it_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """After an upgrade the same options may fit another model, and nothing else would tell."""
    with caplog.at_level(logging.INFO):
        fit._already(record(torch="1.0.0", retroscan="0.0.1"), "d", "m")
    warned = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert len(warned) == 1
    here = versions()
    assert f"retroscan 0.0.1, here {here['retroscan']}; torch 1.0.0, here {here['torch']}" in warned[0]
    assert "name another --out" in warned[0]


def test_another_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="One folder holds one model"):
        fit._already(record(), "other", "m")
