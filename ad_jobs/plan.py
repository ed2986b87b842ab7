"""`retroscan plan`: what a scan will score, what it will not and why, and what it takes, before anything is spent.

Nothing is written but to a temporary folder, and no Ray is started.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ad_jobs.archive.marks import drawn
from ad_jobs.images.domain import Taker
from ad_jobs.planning import census
from ad_jobs.planning.census import Census
from ad_jobs.planning.estimate import ASSUMED, Cluster, Estimator, Share
from ad_jobs.planning.outlook import outlook
from ad_jobs.planning.shown import expected, facets, undecodable
from ad_jobs.planning.timing import time_sample
from ad_jobs.scanning.intent import Intent, resolve
from ad_jobs.specs import PlanSpec, ScanSpec, takes
from cluster import storage


@takes(PlanSpec)
def plan(spec: PlanSpec) -> dict[str, Any]:
    """What `scan` of the same source by the same models will find and take, as plain values.

    Objects are counted by what their headers say: those of a manifest with headers, else of a random sample, by which
    numbers of all objects are estimated.
    Time and disk are estimated from a random sample of the objects that will be scored, which are fetched, decoded and
    scored in this process.
    An amount is its value with a 95 % interval, `low` and `high`, which are the value itself where it is known.

    Raises:
        UsageError: as `scan`.
        JobError: the store refuses the credentials, or was away for too long.
    """
    with tempfile.TemporaryDirectory(prefix="retroscan-plan-") as scratch:
        intent = resolve(_as_scan(spec, storage.join(scratch, "run")), index_to=storage.join(scratch, "manifest"))
        rng = np.random.default_rng(spec.seed)
        found = _counted(intent, spec.headers, rng)
        return {
            "manifest": _selection(intent),
            "headers": {"read": found.read, "objects": found.objects, "exact": found.is_exact},
            "models": [{"uri": model.uri, "model_id": model.model_id, "kind": model.kind} for model in intent.models],
            "facets": facets(found),
            "expected": expected(found),
            "undecodable": undecodable(found),
            "estimate": _estimate(intent, found, spec, rng, scratch),
        }


def _as_scan(spec: PlanSpec, out: str) -> ScanSpec:
    """The scan that is planned, into a folder that goes again."""
    same = {name: getattr(spec, name) for name in PlanSpec.model_fields.keys() & ScanSpec.model_fields.keys()}
    return ScanSpec(**same, out=out)


def _selection(intent: Intent) -> dict[str, Any]:
    return {
        "listed": intent.manifest.objects,
        "objects": intent.objects,
        "already": intent.already,
        "since": None if intent.parent is None else intent.parent.run_id,
        "not_selected": intent.not_selected,
        "undecided": intent.undecided,
    }


def _counted(intent: Intent, headers: int, rng: np.random.Generator) -> Census:
    """The objects by their headers: all that a manifest tells of, else so many, drawn at random."""
    takers = [Taker(use.policy, use.domain) for use in intent.uses]
    judge = partial(outlook, policies=intent.policies, limits=intent.limits, takers=takers)
    if census.has_headers(intent.manifest):
        selected = None if intent.selection is None else intent.selection.ids
        tables = census.listed_headers(intent.manifest, selected)
    else:
        ids = _ids(intent)
        tables = [census.read_headers(intent.manifest, _drawn(ids, headers, rng))] if len(ids) else []
    listed = intent.manifest.objects
    return census.count(tables, listed, intent.objects, len(takers), intent.limits.max_bytes, judge)


def _ids(intent: Intent) -> NDArray[np.int64]:
    return np.arange(intent.objects) if intent.selection is None else intent.selection.ids


def _drawn(ids: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Some of the ids, ascending; all of them where there are no more."""
    return ids if len(ids) <= count else np.sort(rng.choice(ids, count, replace=False))


def _estimate(
    intent: Intent, found: Census, spec: PlanSpec, rng: np.random.Generator, scratch: str
) -> dict[str, Any] | None:
    """What the scan takes; None where nothing will be scored, of which nothing can be timed."""
    if not found.scored:
        return None
    ids = np.array(drawn(found.will_score, min(found.scored, spec.sample), rng))
    timed = time_sample(intent, ids, scratch)
    scored = Share(found.scored, found.read, found.objects)
    estimator = Estimator(timed, scored, len(intent.models), spec.seed, intent.score_ms, intent.object_bytes)
    here = Cluster(1, len(os.sched_getaffinity(0)), _gpus(), spec.price_per_hour)
    asked = here._replace(nodes=spec.nodes, cores=spec.cores or here.cores)
    mean = timed.costs.mean(axis=0)
    return {
        "sample": len(ids),
        "by_code": timed.by_code,
        "means": dict(zip(("bytes", "fetch_ms", "decode_ms", "score_ms", "write_ms"), mean.tolist(), strict=False)),
        # Of all processes here: what else ran while the sample was timed.
        "load": round(os.getloadavg()[0], 1),
        "assumed": ASSUMED._asdict(),
        "clusters": [estimator.on(one) for one in dict.fromkeys((here, asked))],
        **estimator.disk(),
    }


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
