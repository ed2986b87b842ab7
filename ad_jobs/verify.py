"""`retroscan verify`: is the run what its record says, and does a sample of it come out the same again?

Everything that run.json vouches for is checked against what lies in storage; then objects are fetched,
hashed, decoded and scored once more. What differs is listed, never repaired.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ad_jobs.archive.fetching import Prepared, fetch_all, prepare_each, status_of
from ad_jobs.errors import JobError, RetroscanError
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.images.policy import Limits
from ad_jobs.results.count import count_table
from ad_jobs.results.heatmaps import on_scale
from ad_jobs.results.parts import HEATMAPS_FOLDER, SCORES_FOLDER, part_uris, sha256_of
from ad_jobs.results.read import open_heatmap, read_run, read_scores
from ad_jobs.results.run import ModelRef, RunRecord
from ad_jobs.scanning.run_archive import RunArchive
from ad_jobs.schema import SCORED, is_flagged
from ad_jobs.scoring.devices import best_device
from ad_jobs.scoring.model_store import OpenModel, open_model
from ad_jobs.scoring.scorer import AMP_TOLERANCE, FrameScore, Scorer
from ad_jobs.specs import VerifySpec, takes
from cluster import storage
from models.errors import DetectorError

# Relative above 1, absolute below: float32 convolutions differ by that between batch sizes.
SCORE_TOLERANCE = 1e-5
# Of the global scale: sixty-five steps of its 16-bit picture.
HEATMAP_TOLERANCE = 1e-3
# One sampled object in five is one without a score, where there are that many.
FAILED_SHARE = 5
MAX_LISTED = 20


class Verification(NamedTuple):
    """What was checked, how much of it, and every difference found."""

    run_id: str
    parts: int
    heatmap_parts: int
    sampled: int
    # By how much a score may differ: AMP_TOLERANCE for a run of `scan --amp`.
    tolerance: float
    differences: list[str]

    @property
    def ok(self) -> bool:
        """True if nothing differs."""
        return not self.differences

    def raise_if_different(self) -> None:
        """Raise JobError that lists the differences."""
        if self.differences:
            more = len(self.differences) - MAX_LISTED
            listed = "\n  ".join(self.differences[:MAX_LISTED] + ([f"and {more} more"] if more > 0 else []))
            raise JobError(f"The run differs from its record in {len(self.differences)} places:\n  {listed}")


@takes(VerifySpec)
def verify(spec: VerifySpec) -> Verification:
    """What differs between a finished run and its record, and between its rows and `sample` objects scored again.

    Raises:
        UsageError: not a run, or an unfinished one; a manifest or a key that is not this run's.
    """
    run_uri = spec.run
    record = read_run(run_uri)
    broken = _check_parts(run_uri, record)
    differences = broken + _check_heatmap_parts(run_uri, record)
    models: list[OpenModel] = []
    for reference in record.models:
        model, wrong = _check_model(reference)
        differences += wrong
        models += [model] if model is not None else []
    sampled = 0
    archive, missing = _archive(spec, record)
    differences += missing
    # A damaged table cannot be counted, and what it says of an object is worth nothing.
    if not broken:
        differences += _check_flags(run_uri)
        if archive is not None:
            differences += _check_counts(run_uri, record, archive)
        if models and archive is not None:
            rows = _choose(read_scores(run_uri), spec.sample, spec.seed)
            sampled = rows["object_id"].nunique()
            differences += _check_sample(run_uri, record, archive, models, rows)
    tolerance = AMP_TOLERANCE if _amp(record) else SCORE_TOLERANCE
    return Verification(record.run_id, len(record.parts), len(record.heatmap_parts), sampled, tolerance, differences)


def _archive(spec: VerifySpec, record: RunRecord) -> tuple[RunArchive | None, list[str]]:
    """What the run was made of; None, and why, where that is not found."""
    if spec.manifest is not None or spec.identifiers_key is not None:
        return RunArchive(spec.run, record, spec.manifest, spec.identifiers_key), []
    try:
        return RunArchive(spec.run, record), []
    except (RetroscanError, storage.StorageError) as error:
        return None, [f"manifest: {error}"]


def _amp(record: RunRecord) -> bool:
    return bool(record.config.get("amp"))


def _check_parts(run_uri: str, record: RunRecord) -> list[str]:
    found = [_file_difference(run_uri, part.name, part.sha256, part.bytes) for part in record.parts]
    stray = _names(run_uri, SCORES_FOLDER) - {part.name for part in record.parts}
    return [text for text in found if text] + [f"{name}: not in run.json" for name in sorted(stray)]


def _check_heatmap_parts(run_uri: str, record: RunRecord) -> list[str]:
    found = [_file_difference(run_uri, part.name, part.sha256, part.bytes) for part in record.heatmap_parts]
    stray = _names(run_uri, HEATMAPS_FOLDER) - {part.name for part in record.heatmap_parts}
    return [text for text in found if text] + [f"{name}: not in run.json" for name in sorted(stray)]


def _names(run_uri: str, folder: str) -> set[str]:
    root = storage.join(run_uri, folder)
    if not storage.is_folder(root):
        return set()
    # What a killed process was writing is no part of any run.
    return {f"{folder}/{name}" for name in storage.list_names(root) if not storage.is_temporary(name)}


def _file_difference(run_uri: str, name: str, sha256: str, size: int) -> str | None:
    try:
        found, found_size = sha256_of(storage.join(run_uri, name))
    except (OSError, storage.StorageError) as error:
        return f"{name}: cannot be read ({error})"
    if (found, found_size) == (sha256, size):
        return None
    return f"{name}: sha256 {found[:12]}…, {found_size} bytes; run.json has {sha256[:12]}…, {size} bytes"


def _check_model(recorded: ModelRef) -> tuple[OpenModel | None, list[str]]:
    try:
        model = open_model(recorded.uri)
    except (RetroscanError, DetectorError, storage.StorageError) as error:
        return None, [f"model {recorded.uri}: {error}"]
    differences = [
        f"model {recorded.uri}: {name} is {now}, and was {then} when the run was made"
        for name, now, then in (
            ("model_id", model.model_id, recorded.model_id),
            ("weights sha256", model.record["weights_sha256"], recorded.weights_sha256),
            ("policy", model.policy.model_dump(mode="json"), recorded.policy),
            # A new threshold is a new decision; the table holds the old one.
            ("calibration sha256", model.calibration_sha256, recorded.calibration_sha256),
        )
        if now != then
    ]
    return (model if model.model_id == recorded.model_id else None), differences


def _check_flags(run_uri: str) -> list[str]:
    differences = []
    for uri in part_uris(run_uri):
        filesystem, path = storage.filesystem(uri)
        with filesystem.open_input_file(path) as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=["object_id", "score", "threshold", "flagged"]):
                rows = pa.Table.from_batches([batch]).to_pandas().dropna(subset=["score"])
                wrong = rows[is_flagged(rows["score"], rows["threshold"]) != rows["flagged"].astype(bool)]
                differences += [f"object {i}: flagged is not score > threshold" for i in wrong["object_id"]]
    return differences


def _check_counts(run_uri: str, record: RunRecord, archive: RunArchive) -> list[str]:
    try:
        ids = archive.ids()
    except (RetroscanError, storage.StorageError) as error:
        return [f"manifest {archive.manifest.uri}: {error}"]
    if len(ids) != record.manifest.objects:
        return [f"manifest {archive.manifest.uri}: {len(ids)} objects; the run had {record.manifest.objects}"]
    differences = []
    counted = count_table(
        run_uri,
        objects=len(ids),
        run_id=record.run_id,
        model_ids=[model.model_id for model in record.models],
        selected=np.sort(ids),
    )
    differences += counted.complaints
    if counted.counts != record.counts:
        differences.append(f"counts {counted.counts}; run.json has {record.counts}")
    return differences


def _choose(rows: pd.DataFrame, sample: int, seed: int) -> pd.DataFrame:
    """All rows of `sample` objects, drawn at random; some of them, where there are any, without a score."""
    rng = np.random.default_rng(seed)
    without = np.unique(rows.loc[rows["status"] != SCORED, "object_id"])
    scored = np.setdiff1d(np.unique(rows["object_id"]), without)
    few = min(len(without), -(-sample // FAILED_SHARE) if len(scored) else sample)
    drawn = [rng.choice(without, few, replace=False), rng.choice(scored, min(len(scored), sample - few), replace=False)]
    return rows[rows["object_id"].isin(np.concatenate(drawn))]


def _check_sample(
    run_uri: str, record: RunRecord, archive: RunArchive, models: list[OpenModel], rows: pd.DataFrame
) -> list[str]:
    limits = Limits.model_validate(record.config["limits"])
    amp = _amp(record)
    # Without a GPU here, in float32: what --amp did to a score is within its tolerance either way.
    scorers = [Scorer(model.detector, amp=amp and best_device().amp) for model in models]
    policies = [model.policy for model in models]
    by_object = {int(group["object_id"].iloc[0]): group for _, group in rows.groupby("object_id")}
    sources = archive.sources(by_object)
    known = {source.object_id for source in sources}
    differences = [f"object {i}: not in the manifest" for i in by_object if i not in known]
    with GuardedDecoder() as decoder:
        for fetched in fetch_all(sources, limits.max_bytes):
            source, group = fetched.source, by_object[fetched.source.object_id]
            under_each = prepare_each(fetched, policies, limits, decoder)
            # As the run names it: what verify says may be handed on with the run.
            called = f"object {source.object_id} ({group['uri'].iloc[0]})"
            wrong = archive.wrong_names(group.iloc[0], under_each[0])
            differences += [f"{called}: {text}" for text in wrong]
            for model, scorer, prepared in zip(models, scorers, under_each, strict=True):
                of_model = group[group["model_id"] == model.model_id]
                found = list(scorer.score(frame.pixels for frame in prepared.frames))
                differences += [
                    f"{called}: {text}" for text in _object_differences(run_uri, model, of_model, prepared, found, amp)
                ]
    return differences


def _object_differences(
    run_uri: str, model: OpenModel, group: pd.DataFrame, prepared: Prepared, found: list[FrameScore], amp: bool
) -> list[str]:
    if group.empty:
        return [f"no row of model {model.model_id}"]
    first = group.iloc[0]
    if _plain(first["content_sha256"]) != prepared.content_sha256:
        return [f"sha256 is {prepared.content_sha256}; the table has {_plain(first['content_sha256'])}"]
    code = str(prepared.error.code) if prepared.error else None
    if prepared.error is not None or not found:
        now = [(0, code)]
    else:
        now = [
            (frame.index, None if answer.finite else "non_finite_score")
            for frame, answer in zip(prepared.frames, found, strict=True)
        ]
    then = [(int(row["frame"]), _plain(row["error_code"])) for row in group.to_dict("records")]
    if now != then:
        return [f"frames and error codes are {now}; the table has {then}"]
    differences = []
    for row, answer in zip(group.to_dict("records"), found, strict=False):
        if row["status"] != status_of(None):
            continue
        if not _same_score(answer.score, row["score"], row["threshold"], amp):
            differences.append(f"frame {row['frame']} scores {answer.score:.7g}; the table has {row['score']:.7g}")
        if (reference := _plain(row["heatmap"])) is not None:
            differences += _heatmap_differences(run_uri, str(reference), model, answer, amp)
    return differences


def _same_score(again: float, then: float, threshold: float, amp: bool) -> bool:
    # Near the threshold is where a difference would matter.
    if amp:
        return abs(again - then) <= AMP_TOLERANCE * max(abs(then), abs(threshold))
    return bool(np.isclose(again, then, rtol=SCORE_TOLERANCE, atol=SCORE_TOLERANCE))


def _heatmap_differences(run_uri: str, reference: str, model: OpenModel, answer: FrameScore, amp: bool) -> list[str]:
    try:
        kept = open_heatmap(run_uri, reference).values
    except (RetroscanError, storage.StorageError) as error:
        return [f"heatmap {reference}: {error}"]
    scale = model.calibration
    again = on_scale(answer.heatmap, scale.heatmap_low, scale.heatmap_high)
    worst = float(np.abs(kept - again).max())
    allowed = AMP_TOLERANCE if amp else HEATMAP_TOLERANCE
    return [f"heatmap {reference} differs by {worst:.3g}"] if worst > allowed else []


def _plain(value: Any) -> Any:
    """None for pandas' several ways of saying so."""
    return None if pd.isna(value) else value
