"""Groups of a run that are decided each by itself: rows of a model with one value in each of some columns (`--by`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ad_jobs.archive.header_options import naming_of
from ad_jobs.archive.identifiers import Naming, is_hashed, place_beside
from ad_jobs.errors import UsageError
from ad_jobs.results.object_columns import ObjectColumns, manifest_of, read_object_columns
from ad_jobs.results.run import RunRecord
from ad_jobs.schema import SCORED, SCORES
from ad_jobs.scoring.held_out import HEADER

# Between the values of a row's columns, and what stands for one that it does not have.
_BETWEEN, _NULL = "\x1f", "\x00"


class Cell(NamedTuple):
    """A model, and the values of the columns asked for, as text; None where an object does not say."""

    model_id: str
    values: tuple[str | None, ...] = ()


class By:
    """The columns by which a run is divided, each from its table or else from its manifest."""

    def __init__(self, columns: Sequence[str], objects: ObjectColumns, naming: Naming | None = None) -> None:
        """`naming` is how the manifest names sites, where they are asked for."""
        self.columns = tuple(columns)
        self.naming = naming
        self._objects = objects

    @property
    def of_table(self) -> list[str]:
        """Those that the table has."""
        return [name for name in self.columns if name in SCORES.names]

    @property
    def fields(self) -> list[pa.Field]:
        """As they stand in a decision's table."""
        return [pa.field(name, pa.string()) for name in self.columns]

    def arrays(self, rows: pa.RecordBatch) -> list[pa.Array]:
        """The columns of some rows of the table, as text."""
        return [
            (rows[name] if name in SCORES.names else self._objects.of(name, rows["object_id"])).cast(pa.string())
            for name in self.columns
        ]


def divided_by(columns: Sequence[str], run_uri: str, record: RunRecord) -> By:
    """By which columns a run is divided.

    Raises:
        UsageError: no column of a held-out object's header, or one of a manifest that the run cannot name any more, or
            that it may not tell.
        JobError: a part of the manifest is damaged.
    """
    known = ", ".join(HEADER.names)
    if unknown := [name for name in columns if name not in HEADER.names]:
        raise UsageError(
            "--by names columns that a calibration keeps of held-out images.", unknown[0], f"Give {known}."
        )
    beside = [name for name in columns if name not in SCORES.names]
    if not beside:
        return By(columns, ObjectColumns({}))
    info = manifest_of(run_uri, record)
    objects = ObjectColumns({}) if info is None else read_object_columns(info, beside)
    if missing := sorted(set(beside) - set(objects.names)):
        if info is not None and missing == ["site"] and (mode := record.config.get("identifiers", "plain")) != "plain":
            raise UsageError(
                "A run that hides identifiers tells no institution but what its manifest has hashed.",
                f"--by site of a run with --identifiers {mode}, and {info.uri}",
                "Index with --headers --identifiers hashed and a key, and scan that manifest with the same.",
            )
        why = "is not there, or another by now" if info is None else "has none"
        raise UsageError(
            f"{', '.join(missing)} stands in a manifest with headers, and not in a run's table.",
            f"--by {missing[0]} of a run whose manifest {why}",
            f"{_remedy(run_uri, record)}, or give one of "
            f"{', '.join(name for name in HEADER.names if name in SCORES.names)}.",
        )
    return By(columns, objects, naming_of(info) if info is not None and "site" in columns else None)


def _remedy(run_uri: str, record: RunRecord) -> str:
    """How to come by a manifest's columns: that of a run that hides where it lies is looked for in one place."""
    place = place_beside(run_uri) if is_hashed(record.manifest.uri) else None
    scanned = "Index with --headers and scan that manifest"
    return scanned if place is None else f"{scanned}, and lay it at {place}"


def by_model(batch: pa.RecordBatch, models: Mapping[str, Any], *statuses: str) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The rows of each model that have one of these statuses; the scored ones by default."""
    wanted = batch.filter(pc.is_in(batch["status"], pa.array(statuses or [SCORED])))
    for model_id in models:
        rows = wanted.filter(pc.equal(wanted["model_id"], model_id))
        if rows.num_rows:
            yield model_id, rows


def by_values(rows: Any, columns: Sequence[str]) -> Iterator[tuple[tuple[str | None, ...], Any]]:
    """The rows of a batch or a table for each combination of values in these columns, which are shown as text."""
    if not columns:
        yield (), rows
        return
    texts = [_whole(rows[name]).cast(pa.string()) for name in columns]
    keys = joined(*texts)
    for key in pc.unique(keys):
        here = pc.equal(keys, key)
        yield tuple(text.filter(here)[0].as_py() for text in texts), rows.filter(here)


def joined(*texts: Any) -> Any:
    """The texts of each row as one, from which no other row's follow."""
    return pc.binary_join_element_wise(*texts, _BETWEEN, null_handling="replace", null_replacement=_NULL)


def _whole(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
