"""What a verification says while it goes on."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from ad_jobs.archive import progress
from ad_jobs.verifying.progress import watched


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    # Half a minute an item.
    seconds = iter(range(0, 1000, 30))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with caplog.at_level(logging.INFO):
        assert list(watched("abcde", 5, "parts hashed")) == list("abcde")
    assert [entry.getMessage() for entry in caplog.records] == ["2 of 5 parts hashed.", "4 of 5 parts hashed."]


def test_a_terminal_has_a_bar_and_the_log_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with caplog.at_level(logging.INFO):
        assert list(watched(range(3), 3, "parts hashed")) == [0, 1, 2]
    assert "parts hashed" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
    assert caplog.records == []


def test_errors_come_through() -> None:
    def broken():
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(watched(broken(), 2, "parts hashed"))
