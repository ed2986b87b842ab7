"""The driver killed in mid-scan, then the same command: the table of an undisturbed run."""

from pathlib import Path

import pytest
import scankit as kit
from killkit import OBJECTS, kill_and_compare

pytestmark = pytest.mark.ray


def test_killed_and_repeated_on_disk(tmp_path: Path) -> None:
    source = kit.write_archive(tmp_path / "archive", OBJECTS)
    kill_and_compare(
        source, kit.make_model(tmp_path / "model"), str(tmp_path / "run"), str(tmp_path / "undisturbed")
    )
