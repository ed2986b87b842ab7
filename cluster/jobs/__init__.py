"""Work sent to a running cluster as Ray jobs: the face of this package.

Its names come with Ray, and so are imported when they are first asked for: a job's driver takes in its `environment`
before Ray is there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.jobs.client import Job, Jobs
    from cluster.jobs.connection import named_address

__all__ = ["Job", "Jobs", "named_address"]

_MODULES = {"Job": "client", "Jobs": "client", "named_address": "connection"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
