"""What a scan leaves and how it is read.

>>> from ad_jobs.results import open_heatmap, read_run, read_scores
>>> scores = read_scores("run")
>>> open_heatmap("run", scores.heatmap.dropna().iloc[0]).on_source().shape
(90, 120)
>>> read_run("run").counts.failed
1
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ad_jobs.results.read import Heatmap, open_heatmap, read_run, read_scores

__all__ = ["Heatmap", "open_heatmap", "read_run", "read_scores"]


def __getattr__(name: str) -> Any:
    # Lazily, since the scan's workers import this package for its schema and need no pandas.
    if name in __all__:
        from ad_jobs.results import read

        return getattr(read, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
