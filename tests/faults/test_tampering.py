"""What `verify` notices of a run that somebody changed, and what only a signed run shows: kind by kind.

Who tampers here may write to the run's folder and knows how it is made: after each change the digests are set right
again, those of the part, of the manifest and of run.json.
Without a key some things cannot be noticed then; they stand in OUT_OF_REACH. With a key nothing goes unnoticed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import scankit as kit

from ad_jobs.errors import RetroscanError
from ad_jobs.results.seal import Signature, sealed
from ad_jobs.schema import SCORES
from ad_jobs.verify import verify
from tests.faults import killing
from tests.faults.tampering import CHANGES, Run

OBJECTS = kit.good_objects(10) | {
    name: data for name, (data, _) in kit.bad_objects().items() if name in ("bad/text.png", "bad/report.dcm")
}
# Without a key: what nothing else depends on. In run.json, by the beginning of the field's path:
OUT_OF_REACH = (
    "started_at",
    "ended_at",
    "machine.",
    "engines",
    "versions.",
    # What was asked for and decides nothing in the table.
    "config.out",
    "config.max_failed",
    "config.batch_size",
    "config.address",
    "config.key",
    "config.identifiers_key",
    "config.manifest_out",
    # Of an earlier version, in which less was recorded.
    "version",
)
# In the table: times, and why an object could not be scored, in words.
COLUMNS_OUT_OF_REACH = {"fetch_ms", "decode_ms", "score_ms", "scored_at"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model, archive, signing key and signed run."""
    home = tmp_path_factory.mktemp("tampering")
    (home / "key").write_text("a secret\n")
    source = kit.write_archive(home / "archive", OBJECTS)
    wanted = {"source": source, "model": [kit.make_model(home / "model")], "out": str(home / "run")}
    assert killing.end(killing.begin(**wanted, heatmaps="all", key=home / "key")) == 0
    return home


@pytest.fixture
def home(finished: Path) -> Iterator[Path]:
    """The same, and after the test it is whole again."""
    with kit.kept_whole(finished) as whole:
        yield whole


def noticed(home: Path, *, key: bool, sample: int = 0) -> bool:
    """Whether verify says that something is wrong, with or without the key."""
    try:
        found = verify(str(home / "run"), sample=sample, key=home / "key" if key else None)
    except RetroscanError:
        return True
    return not found.ok


def test_what_nobody_changed_is_verified(home: Path) -> None:
    found = verify(str(home / "run"), sample=1000, key=home / "key")
    assert found.differences == []
    assert found.signature is Signature.SIGNED
    assert (found.sampled, found.scored) == (len(OBJECTS), len(OBJECTS) - 2)
    Run(home).write()
    assert not noticed(home, key=True), "the digest is part of what is signed"


# --- run.json, field by field


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths to all values that hold no others; of a list, to those of its first entry."""
    if isinstance(value, dict) and value:
        for name, inside in value.items():
            yield from leaves(inside, (*path, name))
    elif isinstance(value, list) and value:
        yield from leaves(value[0], (*path, 0))
    else:
        yield path


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return ["more"]
    if value is None or isinstance(value, dict):
        return 7
    moment = value.startswith("20") and value[4:5] == "-"
    return value.replace("20", "19", 1) if moment else value[:-1] + ("0" if value[-1:] != "0" else "1")


def test_every_field_of_the_record(home: Path) -> None:
    whole = Run(home).record
    unnoticed, with_a_key = [], []
    for path in leaves({name: value for name, value in whole.items() if name not in ("digest", "signature")}):
        run = Run(home)
        run.record = copy.deepcopy(whole)
        inside = run.record
        for name in path[:-1]:
            inside = inside[name]
        inside[path[-1]] = 1 if path == ("version",) else other(inside[path[-1]])
        run.write()
        called = ".".join(map(str, path))
        # With a key all that is done without one, and more.
        if not noticed(home, key=False):
            unnoticed.append(called)
            if not noticed(home, key=True):
                with_a_key.append(called)
    assert with_a_key == []
    assert [called for called in unnoticed if not called.startswith(OUT_OF_REACH)] == []
    # What is said to be out of reach is.
    assert {"started_at", "version", "config.max_failed", "machine.cpu", "versions.torch"} <= set(unnoticed)


@pytest.mark.parametrize(
    ("name", "value"), [("digest", "0" * 64), ("digest", None), ("signature", "0" * 64), ("signature", None)]
)
def test_digest_and_signature(home: Path, name: str, value: str | None) -> None:
    path = home / "run" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    assert noticed(home, key=True)
    if name == "digest":
        assert noticed(home, key=False)


# --- The table, column by column


def changed(column: str, table: pa.Table) -> pa.Table:
    """The table with another value in the first row of a scored image."""
    place = table["status"].to_pylist().index("scored")
    values = table[column].to_pylist()
    value = values[place]
    field = SCORES.field(column)
    if value is None:
        new: Any = "x" if pa.types.is_string(field.type) else 7
    elif pa.types.is_timestamp(field.type):
        new = value + timedelta(days=400)
    elif pa.types.is_floating(field.type):
        new = value + 0.25
    else:
        new = "failed" if column == "status" else other(value)
    values[place] = new
    return table.set_column(table.column_names.index(column), field, pa.array(values, field.type))


@pytest.mark.full
@pytest.mark.parametrize("column", SCORES.names)
def test_every_column_of_the_table(home: Path, column: str) -> None:
    run = Run(home)
    run.rewrite(0, lambda table: changed(column, table))
    run.write()
    assert noticed(home, key=True)
    assert noticed(home, key=False, sample=1000) == (column not in COLUMNS_OUT_OF_REACH)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whoever_changes_a_run_is_noticed(home: Path, change: Callable[[Run], None]) -> None:
    run = Run(home)
    change(run)
    run.write()
    assert noticed(home, key=False, sample=1000)


@pytest.mark.full
def test_every_field_of_the_models_record(home: Path) -> None:
    path = home / "model" / "detector.json"
    whole = json.loads(path.read_text())
    for place in leaves(whole):
        record = copy.deepcopy(whole)
        inside = record
        for name in place[:-1]:
            inside = inside[name]
        inside[place[-1]] = other(inside[place[-1]])
        path.write_text(json.dumps(record))
        assert noticed(home, key=False), place


def test_who_lacks_the_key_cannot_sign_and_a_run_without_one_says_so(home: Path) -> None:
    run = Run(home)
    run.record = sealed(run.record, b"another secret")
    (run.folder / "run.json").write_text(json.dumps(run.record))
    assert verify(str(run.folder), sample=0, key=home / "key").signature is Signature.WRONG
    run.record = sealed(run.record, None)
    (run.folder / "run.json").write_text(json.dumps(run.record))
    assert verify(str(run.folder), sample=0).signature is Signature.UNSIGNED
    found = verify(str(run.folder), sample=0, key=home / "key")
    assert any("signature is missing" in text for text in found.differences)


def test_a_name_that_stands_twice(home: Path) -> None:
    path = home / "run" / "run.json"
    path.write_text('{"run_id": "ffffffffffff", ' + path.read_text()[1:])
    assert noticed(home, key=True)


def test_a_recalibrated_model_fails_no_old_run(home: Path) -> None:
    path = home / "model" / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threshold": 123.0}))
    assert not noticed(home, key=True, sample=1000)
