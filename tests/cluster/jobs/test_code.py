"""The code that goes along with a job."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ad_jobs.submit import PACKAGES
from cluster.jobs import code

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of two modules, which were compiled."""
    files = {"one.py": "1", "sub/two.py": "2", "__pycache__/one.cpython-311.pyc": "x", "sub/two.pyc": "y"}
    for name, text in files.items():
        path = tmp_path / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "package"


def test_what_is_sent_is_every_file_but_what_python_compiles_itself(package: Path, tmp_path: Path) -> None:
    code.copy([package], tmp_path / "job")
    found = {str(path.relative_to(tmp_path / "job")) for path in (tmp_path / "job").rglob("*") if path.is_file()}
    assert found == {"package/one.py", "package/sub/two.py"}


def test_the_digest_is_of_what_is_sent(package: Path, tmp_path: Path) -> None:
    first = code.digest([package])
    code.copy([package], tmp_path / "job")
    assert code.digest([tmp_path / "job" / "package"]) == first
    (package / "sub" / "two.py").write_text("3")
    changed = code.digest([package])
    (package / "sub" / "two.py").write_text("2")
    (package / "sub" / "two.py").rename(package / "two.py")
    moved = code.digest([package])
    # What one file loses, its neighbour gains.
    (package / "one.py").write_text("12")
    (package / "two.py").write_text("")
    assert len({first, changed, moved, code.digest([package])}) == 4


def test_all_packages_of_the_wheel_go_along() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert set(PACKAGES) == {pattern.rstrip("*") for pattern in patterns}
