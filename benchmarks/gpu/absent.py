"""Stands in for libraries that retroscan's modules import and that scoring plain pictures never calls.

`ad_jobs.scoring.scorer` needs one function of `ad_jobs.images.decode`, which brings DICOM's and the codecs' libraries,
and shares a module with fetching, which brings S3's.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import MutableSequence, Sequence
from types import ModuleType
from typing import Any

LIBRARIES = ("pydicom", "imagecodecs", "tifffile", "boto3", "botocore")


class _Empty(ModuleType):
    """Any name is there, as an exception of its own, so that it can be stored, compared and caught; none works."""

    # As a package's, so that it has submodules.
    __path__: MutableSequence[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (Exception,), {})
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, missing: Sequence[str]) -> None:
        self._missing = missing

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname.partition(".")[0] not in self._missing:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        del module


def stand_in(libraries: Sequence[str] = LIBRARIES) -> list[str]:
    """The libraries that are not installed here; from now on each is imported as an empty module."""
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        sys.meta_path.append(_Finder(missing))
    return missing
