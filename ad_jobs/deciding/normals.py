"""The held-out normals that a run's rows were judged by: of each model its copy, as the scan left it."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ad_jobs.deciding.held_out import held_out_of
from ad_jobs.deciding.p_values import Reference
from ad_jobs.results.run import ModelRef


class HeldOutNormals:
    """Scores of held-out normal frames, float32 [n], and of how many studies (groups, images of none) they are."""

    def __init__(self, scores: NDArray[np.float32], studies: int) -> None:
        self.scores = scores
        self.studies = studies

    @cached_property
    def reference(self) -> Reference:
        """What other scores are ranked against."""
        return Reference(self.scores)


def held_out_normals(run_uri: str, model: ModelRef) -> HeldOutNormals | None:
    """Those of a model of the run; None where its calibration kept none: it is of an earlier version.

    Raises:
        UsageError: they are gone, or were changed.
    """
    found = held_out_of(run_uri, model)
    if found is None or not (normal := found.normal).num_rows:
        return None
    return HeldOutNormals(normal["score"].to_numpy(), int(pc.count_distinct(normal["group"]).as_py()))
