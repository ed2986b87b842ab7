"""What was said so far: by oneself at once, by others soon, and never what could not be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_run
import pytest

from ad_jobs.cli.show import shown_text
from ad_jobs.reviewing import ledger as module
from ad_jobs.reviewing.ledger import Ledger
from ad_jobs.reviewing.verdicts import files
from ad_jobs.show import show
from cluster.errors import Unreachable

ROW: dict[str, Any] = {"object_id": 3, "frame": 1, "content_sha256": "ab", "uri": "/a/3", "flagged": True}


def _words(ledger: Ledger) -> list[tuple[str, str]]:
    return [(one.reviewer, one.verdict) for one in ledger.of(3, 1)]


@pytest.fixture
def at_once(monkeypatch):
    """Every look reads."""
    monkeypatch.setattr(module, "REFRESH_S", 0.0)
    monkeypatch.setattr(module, "REFRESH_SHARE", 0)


@pytest.mark.usefixtures("at_once")
def test_reviewers_see_each_others_verdicts(tmp_path):
    ada, bob = Ledger(str(tmp_path), "Ada", "d"), Ledger(str(tmp_path), "Bob", None)
    ada.say(ROW, "accepted")
    bob.say(ROW, "rejected")
    assert (_words(ada), _words(bob)) == ([("Ada", "accepted")], [("Bob", "rejected")])
    version = ada.version
    ada.look()
    bob.look()
    assert ada.version > version
    assert _words(ada) == _words(bob) == [("Ada", "accepted"), ("Bob", "rejected")]
    ada.undo()
    bob.look()
    assert _words(bob) == [("Bob", "rejected")]


def test_what_could_not_be_written_is_not_noted(tmp_path, monkeypatch):
    ada = Ledger(str(tmp_path), "Ada", None)
    ada.say(ROW, "accepted")

    def fail(*_: object) -> str:
        raise Unreachable("/reviews", "the disk is away")

    monkeypatch.setattr(module, "add", fail)
    with pytest.raises(Unreachable):
        ada.say(ROW, "rejected")
    with pytest.raises(Unreachable):
        ada.undo()
    assert _words(ada) == [("Ada", "accepted")]
    assert len(files(str(tmp_path))) == 1


def test_show_tells_of_a_runs_reviews(tmp_path: Path):
    run = fake_run.make(tmp_path, normal=2, anomalous=1).uri
    assert "reviewed" not in shown_text(show(folder=run))
    for reviewer, words in (("Ada", ("accepted", "rejected")), ("Bob", ("supplemented", "accepted"))):
        own = Ledger(run, reviewer, None)
        for object_id, word in enumerate(words):
            own.say({**ROW, "object_id": object_id}, word)
    told = shown_text(show(folder=run))
    assert "reviewed     4 verdicts: Ada 2, Bob 2" in told
    assert "agreement    50.0% on abnormal or not, Cohen's kappa 0.000, of 2 images read by several" in told
