"""The scores of a model in anyone's own `Dataset.map_batches`: a callable from Arrow table to Arrow table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from os import PathLike
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ad_jobs.archive.fetching import FetchedObject, Source, fetch_all
from ad_jobs.archive.identifiers import Identifiers
from ad_jobs.errors import ErrorCode, ImageError, UsageError
from ad_jobs.images.domain import Taker, check_accept
from ad_jobs.images.guard import GuardedDecoder
from ad_jobs.scanning.judgement import Judgement, ModelUse
from ad_jobs.scanning.stages import prepare_fetched, score_objects
from ad_jobs.scanning.table import finish_rows
from ad_jobs.scoring.model_store import OpenModel, open_model
from ad_jobs.values import place

# Torch stands behind it: loaded where batches are scored, not where the pipeline is written.
if TYPE_CHECKING:
    from ad_jobs.scoring.scorer import Scorer

PLACES = ("uri", "path")
CONTENT = "bytes"
# Columns of a run's table that mean nothing outside of a run.
_OF_A_RUN = ("object_id", "uri", "run_id", "heatmap", CONTENT)


class Score:
    """Scores the images of a batch as a scan does: same decoding, same pixel policy, same numbers.

    A batch has a column `bytes` with whole objects (as `ray.data.read_binary_files` gives), or a column `uri` or `path`
    that says where they lie, local or s3://, as a manifest's (whose `bytes` are numbers, and stay).
    What comes back has a row for each frame: the columns of the batch but `bytes`, and of a run's table `frame`,
    `status`, `error_code`, `error_detail`, `score`, `threshold`, `flagged`, `model_id`, `content_sha256`, the header's
    columns and the times.
    A bad object is a row with its reason, never an exception.

    Use it with `batch_format="pyarrow"` and a pool of actors, each of which loads the model once:

        actors = ray.data.ActorPoolStrategy(size=2)
        dataset.map_batches(Score, fn_constructor_args=("s3://models/m",), batch_format="pyarrow", compute=actors)

    Args:
        model: the folder of a calibrated model, local or s3://.
        batch_size: frames, or tiles, scored at once; it does not change a score.
        accept: what to score although the model's fit saw none of it, as `retroscan scan --accept`.

    Raises:
        UsageError: at the first batch: no model there, no Arrow table, no column that names objects, or columns that
            would be overwritten.
        JobError: at a batch: the store refuses the credentials, or was away for too long.
    """

    def __init__(self, model: str | PathLike[str], *, batch_size: int = 32, accept: Sequence[str] = ()) -> None:
        self._uri = place(model)
        self._accept = check_accept(accept)
        if batch_size < 1:
            raise UsageError("batch_size is at least 1.", batch_size, "Leave it out, or give 32.")
        self._batch_size = batch_size
        self._opened: tuple[OpenModel, Scorer, GuardedDecoder] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A decoder's process and a detector stay where they are.
        return self.__dict__ | {"_opened": None}

    def __call__(self, batch: pa.Table) -> pa.Table:
        if not isinstance(batch, pa.Table):
            raise UsageError(
                "A batch is an Arrow table.", type(batch).__name__, 'Give map_batches batch_format="pyarrow".'
            )
        model, scorer, decoder = self._open()
        use = ModelUse(Judgement.of(model, "none"), 0, model.domain.accepts.widened(self._accept))
        policies = [model.policy]
        prepared = prepare_fetched(
            _objects(batch, model.limits.max_bytes),
            policies,
            model.limits,
            decoder,
            Identifiers(),
            [Taker(0, use.domain)],
        )
        scored = score_objects(prepared, policies, [(scorer, use)])
        rows = finish_rows(scored, "", "", 0, [use])
        kept = batch.drop_columns([CONTENT]) if _has_content(batch) else batch
        found = rows.drop_columns(list(_OF_A_RUN))
        if clash := sorted(set(kept.column_names) & set(found.column_names)):
            raise UsageError(
                "The columns of a score must not be there already.", ", ".join(clash), "Rename or drop them before."
            )
        # Each frame's row of the batch: an object's id is its place there.
        repeated = kept.take(rows["object_id"])
        return pa.table([*repeated.columns, *found.columns], schema=pa.schema([*repeated.schema, *found.schema]))

    def _open(self) -> tuple[OpenModel, Scorer, GuardedDecoder]:
        if self._opened is None:
            from ad_jobs.scoring.scorer import Scorer

            model = open_model(self._uri)
            scorer = Scorer(model.detector, tiles=model.policy.tiles, batch_size=self._batch_size)
            self._opened = model, scorer, GuardedDecoder()
        return self._opened


def _has_content(batch: pa.Table) -> bool:
    """Whether it has the objects' bytes, and not how many they are, as a manifest says."""
    return CONTENT in batch.column_names and not pa.types.is_integer(batch.schema.field(CONTENT).type)


def _objects(batch: pa.Table, max_bytes: int) -> Iterable[FetchedObject]:
    """The batch's objects in order, with their bytes: given, or fetched."""
    where = next((name for name in PLACES if name in batch.column_names), None)
    if _has_content(batch):
        uris = batch[where].to_pylist() if where else [""] * batch.num_rows
        return (
            _given(number, uri, data.as_py() or b"", max_bytes)
            for number, (uri, data) in enumerate(zip(uris, batch[CONTENT], strict=True))
        )
    if where is None:
        raise UsageError(
            f"A batch names its objects in a column {CONTENT}, {' or '.join(PLACES)}.",
            f"columns {', '.join(batch.column_names)}",
            "Rename the one that says where the images lie, for example with rename_columns.",
        )
    return _fetched(batch[where].to_pylist(), max_bytes)


def _fetched(uris: list[Any], max_bytes: int) -> Iterator[FetchedObject]:
    """The objects in order; what names no place is an object that is not found."""
    placed: list[Source | FetchedObject] = []
    for number, uri in enumerate(uris):
        try:
            placed.append(Source(number, place(uri)))
        except UsageError as error:
            bad = ImageError(ErrorCode.NOT_FOUND, f"{error.rule} Got: {error.value}.")
            placed.append(FetchedObject(Source(number, str(uri)), None, False, bad, 0.0))
    with closing(fetch_all([one for one in placed if isinstance(one, Source)], max_bytes)) as fetched:
        for one in placed:
            yield next(fetched) if isinstance(one, Source) else one


def _given(number: int, uri: str, data: bytes, max_bytes: int) -> FetchedObject:
    source = Source(number, uri, len(data))
    if len(data) > max_bytes:
        error = ImageError(ErrorCode.TOO_MANY_BYTES, f"{len(data)} bytes, more than {max_bytes}")
        return FetchedObject(source, None, False, error, 0.0)
    return FetchedObject(source, data, False, None, 0.0)
