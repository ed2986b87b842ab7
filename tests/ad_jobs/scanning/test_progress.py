"""How far a scan is, as the terminal and the log are told."""

import io
import logging
import sys

import pytest

from ad_jobs.scanning import progress
from ad_jobs.scanning.progress import ScanProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.time, "monotonic", lambda: 100.0)


@pytest.mark.usefixtures("clock")
def test_what_is_done_and_left_and_how_fast() -> None:
    shown = ScanProgress(1000)
    state = shown.state({"objects": 100, "failed": 7, "frames": 300}, 110.0)
    assert (state.done, state.failed, state.images_per_s, state.left_s) == (100, 7, 30.0, 90.0)
    assert str(state) == "100 of 1,000 objects done, 900 left, 7 failed; 30.0 images/s; 0:01:30 left"


@pytest.mark.usefixtures("clock")
def test_a_continued_scan_counts_on_and_what_was_done_before_makes_it_no_faster() -> None:
    shown = ScanProgress(1000, done=500, failed=3)
    assert str(shown.state({}, 100.0)).endswith("0.0 images/s; ? left")
    state = shown.state({"objects": 100, "failed": 1, "frames": 100}, 110.0)
    assert (state.done, state.failed, state.images_per_s, state.left_s) == (600, 4, 10.0, 40.0)


@pytest.mark.usefixtures("clock")
def test_the_rate_is_that_of_the_last_two_minutes() -> None:
    shown = ScanProgress(100_000)
    # 10 a second.
    for minute in range(1, 11):
        shown.state({"objects": 600 * minute, "frames": 600 * minute}, 100.0 + 60 * minute)
    # Then 1 a second.
    for minute in range(11, 14):
        state = shown.state(
            {"objects": 6000 + 60 * (minute - 10), "frames": 6000 + 60 * (minute - 10)}, 100.0 + 60 * minute
        )
    assert state.images_per_s == pytest.approx(1.0)


@pytest.mark.usefixtures("clock")
def test_objects_that_were_scored_again_do_not_make_more_than_there_are() -> None:
    state = ScanProgress(10).state({"objects": 12, "frames": 12}, 101.0)
    assert (state.done, state.left_s) == (10, 0.0)


def test_without_a_terminal_it_is_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    with caplog.at_level(logging.INFO, logger="retroscan.scan"), ScanProgress(10) as shown:
        shown.update({"objects": 5, "failed": 1, "frames": 5})
    assert shown.every_s == 60.0
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("5 of 10 objects done, 5 left, 1 failed;")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_and_the_log_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with caplog.at_level(logging.INFO, logger="retroscan.scan"), ScanProgress(10, done=2) as shown:
        shown.update({"objects": 5, "failed": 1, "frames": 5})
    assert shown.every_s == 1.0
    assert "7 of 10 objects done, 3 left, 1 failed;" in " ".join(terminal.getvalue().split())
    assert caplog.records == []
