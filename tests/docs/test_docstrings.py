"""The examples in public docstrings, run in a folder with a finished run."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import fake_run
import pytest

# Modules whose docstrings show how they are used.
MODULES = (
    "retroscan",
    "ad_jobs.cli.show_plan",
    "ad_jobs.errors",
    "ad_jobs.results",
    "ad_jobs.results.handle",
    "ad_jobs.results.read",
    "ad_jobs.specification",
)
# What differs from run to run stands as ..., and an exception without its module.
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_give_what_they_show(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_run.make(tmp_path, failed=("truncated",))
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(
        import_module(name),
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL,
    )
    assert result.attempted > 0
    assert result.failed == 0, "see the captured output"
