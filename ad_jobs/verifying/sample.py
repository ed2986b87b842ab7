"""Do objects of a sample, fetched, hashed, decoded and scored once more, give the rows that the table has of them?"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ad_jobs.archive.fetching import ETAG_CHANGED, Prepared, detail_of_scored, fetch_all, prepare_each
from ad_jobs.archive.marks import drawn
from ad_jobs.errors import ErrorCode, ImageError, RetroscanError
from ad_jobs.images.domain import Taker
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.images.policy import Limits
from ad_jobs.images.tiling import to_store
from ad_jobs.results.heatmaps import on_scale
from ad_jobs.results.read import as_pandas, open_heatmap
from ad_jobs.results.run import RunRecord
from ad_jobs.results.score_table import ScoreTable, equal
from ad_jobs.schema import HEADER, SCORED, UIDS
from ad_jobs.scoring.calibration import Calibration
from ad_jobs.scoring.devices import best_device
from ad_jobs.scoring.scorer import FrameScore, Scorer
from ad_jobs.scoring.tolerances import AMP_TOLERANCE, same_scores
from ad_jobs.verifying.progress import watched
from ad_jobs.verifying.record import Judge
from ad_jobs.verifying.run_archive import RunArchive, accepted, has_header
from ad_jobs.verifying.whole import DecodedWhole, WholeFrames
from cluster import storage

# Of the global scale: sixty-five steps of its 16-bit picture.
HEATMAP_TOLERANCE = 1e-3
# One sampled object in five is one without a score, where there are that many.
FAILED_SHARE = 5
# Of an object, by bits: it is in the table, and some of its rows have no score.
_PRESENT, _WITHOUT = np.uint8(1), np.uint8(2)


class Sampled(NamedTuple):
    """How many objects were fetched again, how many of them were scored again, and what differs.

    `whole` tells of each model what decoding whole frames would change, where that was asked for.
    """

    fetched: int
    scored: int
    differences: list[str]
    whole: list[DecodedWhole]


def choose(table: ScoreTable, objects: int, sample: int, seed: int) -> pd.DataFrame:
    """All rows of `sample` objects, drawn at random; some of them, where there are any, without a score.

    Two bytes are held for each of the manifest's `objects`; rows are read of those that were drawn.
    """
    rng = np.random.default_rng(seed)
    # Ids are dense in the manifest; others are complained of by `table.check_counts`.
    state = np.zeros(objects, np.uint8)
    for batch in table.batches(["object_id", "status"]):
        ids = batch["object_id"].to_numpy()
        known = (ids >= 0) & (ids < objects)
        state[ids[known]] |= _PRESENT
        state[ids[known & ~equal(batch, "status", SCORED).to_numpy(zero_copy_only=False)]] |= _WITHOUT
    scored, without = (int(np.count_nonzero(state == one)) for one in (_PRESENT, _PRESENT | _WITHOUT))
    few = min(without, -(-sample // FAILED_SHARE) if scored else sample)
    ids = [*drawn(state == _PRESENT | _WITHOUT, few, rng), *drawn(state == _PRESENT, min(scored, sample - few), rng)]
    return as_pandas(table.of_objects(ids))


def check_sample(
    run_uri: str, record: RunRecord, archive: RunArchive, judges: list[Judge], rows: pd.DataFrame, *, full: bool = False
) -> Sampled:
    """What differs between rows of the table and their objects, fetched and scored again under the run's models.

    `full`: frames of models that decode reduced ones are scored whole as well, to see what that would change.
    """
    limits = Limits.model_validate(record.config["limits"])
    amp = bool(record.config.get("amp"))
    # Without a GPU here, in float32: what --amp did to a score is within its tolerance either way.
    scorers = [
        Scorer(judge.detector, tiles=judge.model.policy.tiles, amp=amp and best_device().amp) for judge in judges
    ]
    policies = [judge.model.policy for judge in judges]
    whole = [WholeFrames(*pair, limits) for pair in zip(judges, scorers, strict=True)] if full else []
    accept = accepted(record) or ()
    takers = [Taker(number, judge.model.domain.accepts.widened(accept)) for number, judge in enumerate(judges)]
    by_object = {int(group["object_id"].iloc[0]): group for _, group in rows.groupby("object_id")}
    sources = archive.sources(by_object)
    known = {source.object_id for source in sources}
    differences = [f"object {i}: not in the manifest" for i in by_object if i not in known]
    scored = 0
    with GuardedDecoder() as decoder:
        for fetched in watched(fetch_all(sources, limits.max_bytes), len(sources), "objects scored again"):
            source, group = fetched.source, by_object[fetched.source.object_id]
            under_each = prepare_each(fetched, policies, limits, decoder, takers)
            scored += any(prepared.frames for prepared in under_each)
            # As the run names it: what verify says may be handed on with the run.
            called = f"object {source.object_id} ({group['uri'].iloc[0]})"
            wrong = archive.wrong_names(group.iloc[0], under_each[0])
            for number, (judge, scorer, prepared) in enumerate(zip(judges, scorers, under_each, strict=True)):
                of_model = group[group["model_id"] == judge.model.model_id]
                if prepared.refused and (reason := prepared.refused[number]) is not None:
                    prepared = prepared._replace(error=ImageError(ErrorCode.OUT_OF_DOMAIN, reason), frames=[])
                found = list(scorer.score(frame.pixels for frame in prepared.frames))
                wrong += _object_differences(run_uri, judge, of_model, prepared, found, amp)
                if whole:
                    whole[number].add(fetched, found, decoder)
            differences += [f"{called}: {text}" for text in wrong]
    return Sampled(len(by_object), scored, differences, [one.told() for one in whole])


def _object_differences(
    run_uri: str, judge: Judge, group: pd.DataFrame, prepared: Prepared, found: list[FrameScore], amp: bool
) -> list[str]:
    if group.empty:
        return [f"no row of model {judge.model.model_id}"]
    rows = group.to_dict("records")
    if _plain(rows[0]["content_sha256"]) != prepared.content_sha256:
        return [f"sha256 is {prepared.content_sha256}; the table has {_plain(rows[0]['content_sha256'])}"]
    code = str(prepared.error.code) if prepared.error else None
    if prepared.error is not None or not found:
        now = [(0, code)]
    else:
        now = [
            (frame.index, None if answer.finite else "non_finite_score")
            for frame, answer in zip(prepared.frames, found, strict=True)
        ]
    then = [(int(row["frame"]), _plain(row["error_code"])) for row in rows]
    if now != then:
        return [f"frames and error codes are {now}; the table has {then}"]
    if code == ErrorCode.OUT_OF_DOMAIN and prepared.error is not None:
        told = _plain(rows[0]["error_detail"])
        if told != prepared.error.detail:
            return [f"it is out of the domain by {prepared.error.detail!r}; the table has {told!r}"]
    differences = [
        f"frame {row['frame']}: {name} is {value!r}; the table has {_plain(row[name])!r}"
        for row in rows
        for name, value in _of_the_object(prepared).items()
        if _plain(row[name]) != value and (name not in HEADER.names or has_header(row))
    ]
    for row, frame, answer in zip(rows, prepared.frames, found, strict=False):
        if row["status"] != SCORED:
            continue
        if not _same_score(answer.score, row["score"], row["threshold"], amp):
            differences.append(f"frame {row['frame']} scores {answer.score:.7g}; the table has {row['score']:.7g}")
        now_said = _remarks(detail_of_scored(frame.constant, prepared.remarks))
        if (said := _remarks(_plain(row["error_detail"]))) != now_said:
            differences.append(f"frame {row['frame']}: error_detail is {now_said}; the table has {said}")
        if (reference := _plain(row["heatmap"])) is not None:
            again = to_store(answer.heatmap, frame.geometry, judge.model.policy)
            differences += _heatmap_differences(run_uri, str(reference), judge.calibration, again, amp)
    return differences


def _remarks(detail: str | None) -> list[str]:
    """The remarks in a scored row's error_detail, but for the one that is of its time."""
    return [remark for remark in (detail or "").split(", ") if remark not in ("", ETAG_CHANGED)]


def _of_the_object(prepared: Prepared) -> dict[str, Any]:
    """The columns that follow from the object's content alone; its names are `RunArchive.wrong_names`' matter."""
    header = {name: prepared.header.get(name) for name in HEADER.names if name not in UIDS}
    return {"bytes": prepared.bytes, **header}


def _same_score(again: float, then: float, threshold: float, amp: bool) -> bool:
    # Near the threshold is where a difference would matter.
    if amp:
        return abs(again - then) <= AMP_TOLERANCE * max(abs(then), abs(threshold))
    return bool(same_scores(again, then, abs(threshold)))


def _heatmap_differences(
    run_uri: str, reference: str, scale: Calibration, heatmap: NDArray[np.float32], amp: bool
) -> list[str]:
    try:
        kept = open_heatmap(run_uri, reference).values
    except (RetroscanError, storage.StorageError) as error:
        return [f"heatmap {reference}: {error}"]
    again = on_scale(heatmap, scale.heatmap_low, scale.heatmap_high)
    worst = float(np.abs(kept - again).max())
    allowed = AMP_TOLERANCE if amp else HEATMAP_TOLERANCE
    return [f"heatmap {reference} differs by {worst:.3g}"] if worst > allowed else []


def _plain(value: Any) -> Any:
    """None for pandas' several ways of saying so."""
    return None if pd.isna(value) else value
