"""The rules of a decision, each as what a model's rows are flagged by."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ad_jobs.deciding.p_values import Reference
from ad_jobs.errors import UsageError
from ad_jobs.run_specs import DecideSpec
from ad_jobs.scoring.thresholds import threshold_for_fnr


class Ruled(NamedTuple):
    """What a model's rows are flagged by: a score above the threshold or, without one, being of the `top` highest.

    A threshold of infinity flags nothing.
    """

    threshold: float | None
    top: int = 0


def ruled(spec: DecideSpec, reference: Reference, anomalous: NDArray[np.float32], q: NDArray[np.float64]) -> Ruled:
    """The rule of `spec` for rows whose held-out scores, and q of each level, these are.

    Raises:
        UsageError: held-out images that cannot tell what is asked for.
    """
    if spec.top is not None:
        return Ruled(None, spec.top)
    if spec.max_fnr is not None:
        if not len(anomalous):
            raise UsageError(
                "A share of misses is judged on held-out anomalous images.",
                f"--max-fnr {spec.max_fnr:g}, and a calibration without any",
                "Calibrate with --anomalous SOURCE --max-fnr, or decide by --max-fpr, --fdr or --top.",
            )
        return Ruled(threshold_for_fnr(anomalous, spec.max_fnr).threshold)
    p = reference.p()
    if spec.max_fpr is not None:
        if spec.max_fpr < reference.smallest:
            raise UsageError(
                "A rate of A needs 1/A - 1 held-out normals: of fewer the best that can be promised is 1/(n + 1).",
                f"--max-fpr {spec.max_fpr:g} with n = {reference.n}",
                f"Calibrate with {_needed_text(spec.max_fpr)} normals, ask for "
                f"--max-fpr {np.ceil(1e4 * reference.smallest) / 1e4:g}, or decide by --fdr or --top.",
            )
        return Ruled(_above(reference, p <= spec.max_fpr))
    assert spec.fdr is not None
    return Ruled(_above(reference, q <= spec.fdr))


def needed(spec: DecideSpec) -> float:
    """How many held-out normals a group needs, so that the rule can flag any of its rows."""
    rate = spec.max_fpr if spec.max_fpr is not None else spec.fdr
    if rate is None:
        return 1
    if rate <= 1e-12:
        return float("inf")
    # As it is compared with 1 / (n + 1): a quotient may be rounded either way.
    least = max(int(np.ceil(1 / rate)) - 2, 1)
    return least if rate >= 1 / (least + 1) else least + 1


def _needed_text(rate: float) -> str:
    """How many held-out normals can promise a rate."""
    return str(int(np.ceil(1 / rate)) - 1) if rate > 1e-12 else "more"


def _above(reference: Reference, flagged: NDArray[np.bool_]) -> float:
    """The threshold above which lie the levels that are flagged: the first ones, or none."""
    levels = int(flagged.sum())
    return reference.threshold(levels - 1) if levels else float("inf")
