"""The code that goes along with a job: folders of importable packages."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc")


def digest(packages: Iterable[Path]) -> str:
    """sha256, in hex, over names and contents of the packages' files: what `copy` would copy."""
    found = hashlib.sha256()
    for package in sorted(packages, key=lambda path: path.name):
        files = (path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc")
        for path in sorted(files):
            name = f"{package.name}/{path.relative_to(package)}"
            found.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return found.hexdigest()


def copy(packages: Iterable[Path], folder: Path) -> None:
    """Copy the packages into the folder that will be a job's working directory."""
    for package in packages:
        shutil.copytree(package, folder / package.name, ignore=_LEFT_OUT)
