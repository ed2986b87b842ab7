"""Finished runs of archives without pictures or Ray: what a scan leaves, by the code that a scan leaves it with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from runkit import scored, unscored, write_part

from ad_jobs.archive.manifest import RowReader
from ad_jobs.results.run import RunRecord
from ad_jobs.scanning import chapters, run_state
from ad_jobs.scanning.intent import resolve
from ad_jobs.schema import SCORED, is_flagged
from ad_jobs.specs import ScanSpec

# Of an object and a model: its rows, but for ids and names.
Rows = Callable[[str, str], list[dict[str, Any]]]


def write_objects(folder: Path, objects: dict[str, bytes]) -> str:
    """Files by name; the folder as a SOURCE."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in objects.items():
        (folder / name).write_bytes(content)
    return str(folder)


def run_of(spec: ScanSpec, *, failed: Iterable[str] = (), rows: Rows | None = None) -> RunRecord:
    """The finished run of a scan: all of it scored, a frame each, but for what ends with `failed`; or these rows."""
    ends = tuple(failed)

    def plain(uri: str, model_id: str) -> list[dict[str, Any]]:
        return [unscored(0, "corrupt", model_id) if ends and uri.endswith(ends) else scored(0, 0, model_id)]

    intent = resolve(spec)
    with run_state.writing(intent):
        run_state.begin(intent)
        if intent.objects:
            objects = RowReader(intent.manifest).rows(intent.ids(0), ["object_id", "uri"])
            known = [
                _judged(row, model.threshold)
                | {"object_id": held["object_id"], "uri": intent.identifiers.uri(held["uri"]), "run_id": intent.run_id}
                | {"content_sha256": _sha256(Path(held["uri"]))}
                for held in objects.to_pylist()
                for model in intent.models
                for row in (rows or plain)(held["uri"], model.model_id)
            ]
            write_part(Path(spec.out), known, "part-00000-0")
            models = [model.model_id for model in intent.models]
            assert chapters.commit(intent.checkpoint, spec.out, intent.run_id, 0, objects, models) is not None
        return run_state.close(intent)


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _judged(row: dict[str, Any], threshold: float) -> dict[str, Any]:
    flagged = bool(is_flagged(row["score"], threshold)) if row["status"] == SCORED else None
    return row | {"threshold": threshold, "flagged": flagged}
