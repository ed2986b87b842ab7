"""report: a finished run as one HTML page, RUN/report/index.html, or a decision, RUN/report/ID/index.html."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ad_jobs.archive.identifiers import is_hashed
from ad_jobs.deciding import gathering
from ad_jobs.deciding.decided_table import DecidedTable
from ad_jobs.deciding.drift import DRIFT_FILE
from ad_jobs.deciding.record import KEY, read_decision, table_of
from ad_jobs.deciding.run_stacks import run_stacks, write_run_stacks
from ad_jobs.deciding.text import decided_units, decision_text
from ad_jobs.deciding.units import are_pictures
from ad_jobs.errors import UsageError
from ad_jobs.evaluation.evaluation_file import Found, read_evaluation
from ad_jobs.evaluation.labels import read_labels
from ad_jobs.page import drift
from ad_jobs.page.gallery import UNKNOWN, Truth
from ad_jobs.page.pictures import INLINE_CARDS, Pictures
from ad_jobs.page.place import page_folder, page_uri
from ad_jobs.page.render import render
from ad_jobs.page.sections import COLUMNS, Decided, sections
from ad_jobs.results.run import RunRecord, read_record
from ad_jobs.results.score_table import BATCH_ROWS, ScoreTable
from ad_jobs.run_specs import ReportSpec
from ad_jobs.schema import SCORES
from ad_jobs.specs import takes
from cluster import storage

if TYPE_CHECKING:
    from ad_jobs.verifying.run_archive import RunArchive

# Of the page's list; studies.parquet has all.
STUDIES_SHOWN = 24


@takes(ReportSpec)
def report(spec: ReportSpec) -> str:
    """The URI of the page just written for a finished run; its evaluation.json is shown if there is one.

    With a decision it is a page of its own, of what that flags, with its evaluation; the run's page stays.
    Up to 24 cards a model stand in the page, so that it is self-contained; more are files in `pictures` beside it.
    A run with hashed identifiers has pictures in its page only if its `manifest` is named: who is given the page sees
    them. Names stay hashed.
    RUN/drift.parquet (deciding.drift.DRIFT) is written beside it, and RUN/studies.parquet and RUN/series.parquet unless
    they are there.

    Raises:
        UsageError: not a run, or an unfinished one; no such decision; a manifest that is not the run's.
        JobError: a part of the score table is missing or damaged.
    """
    record = read_record(spec.run)
    archive = None if spec.manifest is None else _archive(spec.run, record, spec.manifest)
    decision = None if spec.decision is None else read_decision(spec.run, record, spec.decision)
    found = read_evaluation(spec.run, record.run_id, spec.decision)
    folder = page_folder(spec.run, spec.decision)
    pictures = Pictures(folder if spec.top > INLINE_CARDS else None)
    # The run is read once; what is looked at below is a local copy.
    by = [] if decision is None else [name for name in decision.get("by") or () if name in SCORES.names]
    columns = dict.fromkeys([*COLUMNS, *drift.COLUMNS, *gathering.COLUMNS, "transfer_syntax", *by])
    with ScoreTable(spec.run, record).copied(list(columns)) as original, ExitStack() as stack:
        for level in ("study", "series"):
            write_run_stacks(spec.run, record, original, level)
        # Of the scores, and of what the run itself flags.
        drifting = drift.section(original)
        table: ScoreTable = original
        if decision is not None:
            table = stack.enter_context(DecidedTable(original, decision).copied(COLUMNS))
        context = sections(
            table,
            found,
            spec.top,
            decided=None if decision is None else _shown(spec, record, decision),
            pictures=pictures,
            truth=_truth(found),
            stacks=_studies(spec.run, record),
            archive=archive,
            of_pictures=are_pictures(original),
        )
        page = render(context | drifting.context)
    storage.write_bytes(storage.join(spec.run, DRIFT_FILE), drifting.file)
    uri = page_uri(spec.run, spec.decision)
    storage.write_bytes(uri, page.encode())
    # Last: until then the page that was there shows them.
    pictures.remove_others(folder)
    return uri


def _archive(run_uri: str, record: RunRecord, manifest: str) -> RunArchive:
    """What a run with hashed identifiers was made of."""
    if record.config.get("identifiers") != "hashed":
        raise UsageError(
            "--manifest finds the objects of a run with hashed identifiers.",
            f"--manifest {manifest}, of a run that names its objects",
            "Leave it out.",
        )
    # Half of a scan stands behind it, and few runs need it.
    from ad_jobs.verifying.run_archive import RunArchive

    return RunArchive(run_uri, record, manifest)


def _shown(spec: ReportSpec, record: RunRecord, decision: dict[str, Any]) -> Decided:
    """What the page shows of a decision."""
    filesystem, path = storage.filesystem(table_of(spec.run, decision["decision_id"]))
    highest = pq.read_table(path, columns=[*KEY, "rank"], filesystem=filesystem, filters=pc.field("rank") <= spec.top)
    return Decided(
        decision["decision_id"],
        decision_text(decision),
        {model["model_id"]: model["threshold"] for model in decision["models"]},
        {model.model_id: highest.filter(pc.equal(highest["model_id"], model.model_id)) for model in record.models},
        None if decision["level"] == "image" else decided_units(decision),
        {model["model_id"]: (model["flagged"], model["scored"]) for model in decision["models"]},
    )


def _truth(found: Found) -> Truth:
    """The labels of an evaluation, where they are still what it was made with."""
    labels = (found.evaluation or {}).get("labels", {})
    uri = labels.get("uri")
    if uri is None or is_hashed(uri) or labels.get("disputed") is not None:
        return UNKNOWN
    try:
        read = read_labels(uri)
    except UsageError:
        # Gone since; the numbers of the evaluation are shown all the same.
        return UNKNOWN
    if read.sha256 != labels["sha256"]:
        return UNKNOWN
    named = read.table[["uri", "frame", "anomalous"]].itertuples(index=False, name=None)
    return Truth({(of, None if frame is None else frame): is_so for of, frame, is_so in _plain(named)})


def _plain(rows: Any) -> Any:
    for uri, frame, anomalous in rows:
        yield str(uri), int(frame) if isinstance(frame, int) else None, bool(anomalous)


def _studies(run_uri: str, record: RunRecord) -> list[dict[str, Any]]:
    """The most suspicious studies, where there are any of several frames; of the first model."""
    filesystem, path = storage.filesystem(run_stacks(run_uri, "study"))
    first = record.models[0].model_id
    several, shown = False, pa.table({})
    with filesystem.open_input_file(path) as file:
        for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS):
            of_model = batch.filter(pc.equal(batch["model_id"], first))
            several = several or bool(pc.any(pc.greater(of_model["frames"], 1)).as_py())
            if not shown.num_rows:
                shown = pa.Table.from_batches([of_model.slice(0, STUDIES_SHOWN)])
            if several:
                break
    return shown.to_pylist() if several else []
