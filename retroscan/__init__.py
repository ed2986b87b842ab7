"""retroscan from Python: the verbs, the runs they leave, and what they raise.

What stands here is what is public; `docs/python.md` is a walk through it.
Each name is imported when it is first asked for, so that `import retroscan` is quick and brings no torch along.

>>> import retroscan
>>> run = retroscan.open_run("run")
>>> run.scores(columns=["status", "error_code"], where="status <> 'scored'")
   status error_code
0  failed  truncated
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ad_jobs.archive.manifest import read_manifest
    from ad_jobs.calibrate import calibrate
    from ad_jobs.compare import compare
    from ad_jobs.decide import decide
    from ad_jobs.errors import ErrorCode, ImageError, JobError, RetroscanError, TooManyFailed, UsageError
    from ad_jobs.evaluate import evaluate
    from ad_jobs.export import export
    from ad_jobs.export_model import export_model
    from ad_jobs.fit import fit
    from ad_jobs.fuse import fuse
    from ad_jobs.index import index
    from ad_jobs.plan import plan
    from ad_jobs.report import report
    from ad_jobs.results.handle import Run, open_run
    from ad_jobs.results.read import Heatmap, open_heatmap, read_scores
    from ad_jobs.results.runs import Runs, open_runs
    from ad_jobs.review import review
    from ad_jobs.reviewing.verdicts import read_verdicts
    from ad_jobs.run_specs import CompareSpec, DecideSpec, EvaluateSpec, ExportSpec, ReportSpec, ReviewSpec, VerifySpec
    from ad_jobs.scan import scan
    from ad_jobs.score import score
    from ad_jobs.show import show
    from ad_jobs.specs import (
        CalibrateSpec,
        ExportModelSpec,
        FitSpec,
        FuseSpec,
        IndexSpec,
        PlanSpec,
        ScanSpec,
        ScoreSpec,
        ShowSpec,
    )
    from ad_jobs.verify import verify
    from cluster.errors import ClusterError, StorageError

    __version__: str

_HOMES = {
    "ad_jobs.archive.manifest": ("read_manifest",),
    "ad_jobs.calibrate": ("calibrate",),
    "ad_jobs.compare": ("compare",),
    "ad_jobs.decide": ("decide",),
    "ad_jobs.errors": ("ErrorCode", "ImageError", "JobError", "RetroscanError", "TooManyFailed", "UsageError"),
    "ad_jobs.evaluate": ("evaluate",),
    "ad_jobs.export": ("export",),
    "ad_jobs.export_model": ("export_model",),
    "ad_jobs.fit": ("fit",),
    "ad_jobs.fuse": ("fuse",),
    "ad_jobs.index": ("index",),
    "ad_jobs.plan": ("plan",),
    "ad_jobs.report": ("report",),
    "ad_jobs.review": ("review",),
    "ad_jobs.reviewing.verdicts": ("read_verdicts",),
    "ad_jobs.results.handle": ("Run", "open_run"),
    "ad_jobs.results.read": ("Heatmap", "open_heatmap", "read_scores"),
    "ad_jobs.results.runs": ("Runs", "open_runs"),
    "ad_jobs.run_specs": (
        "CompareSpec",
        "DecideSpec",
        "EvaluateSpec",
        "ExportSpec",
        "ReportSpec",
        "ReviewSpec",
        "VerifySpec",
    ),
    "ad_jobs.scan": ("scan",),
    "ad_jobs.score": ("score",),
    "ad_jobs.show": ("show",),
    "ad_jobs.specs": (
        "CalibrateSpec",
        "ExportModelSpec",
        "FitSpec",
        "FuseSpec",
        "IndexSpec",
        "PlanSpec",
        "ScanSpec",
        "ScoreSpec",
        "ShowSpec",
    ),
    "ad_jobs.verify": ("verify",),
    "cluster.errors": ("ClusterError", "StorageError"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("retroscan")
    if name not in _HOME:
        raise AttributeError(f"module 'retroscan' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
