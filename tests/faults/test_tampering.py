"""What `verify` notices of a run that somebody changed, and what only a signed run shows: kind by kind.

Who tampers here may write to the run's folder and knows how it is made: after each change the digests are set right
again, those of the part, of the manifest and of run.json.
Without a key some things cannot be noticed then; they stand in OUT_OF_REACH. With a key nothing goes unnoticed.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import scankit as kit

from ad_jobs.errors import RetroscanError
from ad_jobs.results.heatmaps import decode_png, encode_png
from ad_jobs.results.seal import Signature, sealed
from ad_jobs.schema import SCORES
from ad_jobs.verify import verify
from tests.faults import killing

OBJECTS = kit.good_objects(10) | {
    name: data for name, (data, _) in kit.bad_objects().items() if name in ("bad/text.png", "bad/report.dcm")
}
# Without a key: what nothing else depends on. In run.json, by the beginning of the field's path:
OUT_OF_REACH = (
    "started_at",
    "ended_at",
    "machine.",
    "versions.",
    # What was asked for and decides nothing in the table.
    "config.out",
    "config.max_failed",
    "config.batch_size",
    "config.address",
    "config.key",
    "config.identifiers_key",
    "config.manifest_out",
    # Of version 1, which had no digest.
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
    kept = finished.with_name("kept")
    shutil.copytree(finished, kept)
    yield finished
    shutil.rmtree(finished)
    # With its times: the manifest knows them.
    shutil.copytree(kept, finished)
    shutil.rmtree(kept)


class Run:
    """A run in the hands of somebody who changes it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "run"
        self.record: dict[str, Any] = json.loads((self.folder / "run.json").read_text())

    def write(self) -> None:
        """run.json with its digest set right; the old signature stays, as nobody here has the key."""
        content = sealed(self.record, None) | {"signature": self.record["signature"]}
        (self.folder / "run.json").write_text(json.dumps(content))

    def parts(self) -> list[Path]:
        return [self.folder / part["name"] for part in self.record["parts"]]

    def rewrite(self, number: int, change: Callable[[pa.Table], pa.Table]) -> None:
        """A part with other rows, listed as it is now."""
        path = self.parts()[number]
        table = change(pq.read_table(path))
        pq.write_table(table, path)
        self.record["parts"][number] |= {"rows": table.num_rows, **described(path)}

    def count(self, **by: int) -> None:
        """Set the counts right."""
        for name, number in by.items():
            self.record["counts"][name] += number


def described(path: Path) -> dict[str, Any]:
    """A file as run.json lists it."""
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


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


def drop_a_row(run: Run) -> None:
    run.rewrite(0, lambda table: table.slice(1))
    run.count(rows=-1, scored=-1, objects=-1, heatmaps=-1)


def double_a_row(run: Run) -> None:
    run.rewrite(0, lambda table: pa.concat_tables([table, table.slice(0, 1)]))
    run.count(rows=1, heatmaps=1)


def swap_two_scores(run: Run) -> None:
    def swap(table: pa.Table) -> pa.Table:
        score = table["score"].to_pylist()
        at = [i for i, value in enumerate(score) if value is not None]
        score[at[0]], score[at[1]] = score[at[1]], score[at[0]]
        flags = [None if s is None else s > t for s, t in zip(score, table["threshold"].to_pylist(), strict=True)]
        table = table.set_column(table.column_names.index("score"), "score", pa.array(score, pa.float32()))
        return table.set_column(table.column_names.index("flagged"), "flagged", pa.array(flags))

    run.rewrite(0, swap)
    run.record["counts"]["flagged"] = sum(pc.sum(pq.read_table(path)["flagged"]).as_py() or 0 for path in run.parts())


def hide_what_is_flagged(run: Run) -> None:
    def hide(table: pa.Table) -> pa.Table:
        score = pc.min_element_wise(table["score"], pc.multiply(table["threshold"], 0.5), skip_nulls=False)
        flags = pc.if_else(pc.is_null(score), pa.scalar(None, pa.bool_()), pa.scalar(False))
        table = table.set_column(table.column_names.index("score"), "score", score.cast(pa.float32()))
        return table.set_column(table.column_names.index("flagged"), "flagged", flags)

    for number in range(len(run.parts())):
        run.rewrite(number, hide)
    run.record["counts"]["flagged"] = 0


def move_the_threshold(run: Run) -> None:
    def move(table: pa.Table) -> pa.Table:
        flags = pc.if_else(pc.is_null(table["score"]), pa.scalar(None, pa.bool_()), pa.scalar(False))
        high = pa.array([1e6] * table.num_rows, pa.float32())
        table = table.set_column(table.column_names.index("threshold"), "threshold", high)
        return table.set_column(table.column_names.index("flagged"), "flagged", flags)

    for number in range(len(run.parts())):
        run.rewrite(number, move)
    run.record["counts"]["flagged"] = 0
    run.record["models"][0]["threshold"] = 1e6


def swap_two_objects(run: Run) -> None:
    def swap(table: pa.Table) -> pa.Table:
        ids = table["object_id"].to_pylist()
        ids[0], ids[-1] = ids[-1], ids[0]
        return table.set_column(0, "object_id", pa.array(ids, pa.int64()))

    run.rewrite(0, swap)


def of_another_run(run: Run) -> None:
    def rename(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index("run_id"), "run_id", pa.array(["0" * 12] * table.num_rows))

    run.rewrite(0, rename)


def remove_a_part(run: Run) -> None:
    run.parts()[0].unlink()


def remove_a_part_and_its_entry(run: Run) -> None:
    path = run.parts()[0]
    table = pq.read_table(path)
    path.unlink()
    del run.record["parts"][0]
    run.count(rows=-table.num_rows, objects=-len(pc.unique(table["object_id"])))


def add_a_part(run: Run) -> None:
    shutil.copy(run.parts()[0], run.folder / "scores" / "part-00009-0000000000000000.parquet")


def list_a_part_twice(run: Run) -> None:
    run.record["parts"].append(run.record["parts"][0])


def cut_a_part(run: Run) -> None:
    path = run.parts()[0]
    path.write_bytes(path.read_bytes()[:-9])
    run.record["parts"][0] |= described(path)


def swap_two_parts_names(run: Run) -> None:
    first, second = run.parts()[:2]
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)


# --- Heatmaps


def shard_of(run: Run) -> tuple[Path, dict[str, bytes]]:
    path = run.folder / run.record["heatmap_parts"][0]["name"]
    with tarfile.open(path) as tar:
        return path, {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def write_shard(run: Run, path: Path, members: dict[str, bytes]) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(file.getvalue())
    run.record["heatmap_parts"][0] |= {"members": len(members), **described(path)}


def cool_a_heatmap(run: Run) -> None:
    path, members = shard_of(run)
    name = next(iter(members))
    values, geometry = decode_png(members[name])
    members[name] = encode_png(0 * values, geometry)
    padded = members[name] + b"\0" * 4096
    # At the place and of the length that the row says: the shard is rebuilt, the row is told.
    members[name] = padded
    write_shard(run, path, members)


def swap_two_heatmaps(run: Run) -> None:
    path, members = shard_of(run)
    first, second = list(members)[:2]
    members[first], members[second] = members[second], members[first]
    write_shard(run, path, members)


def remove_a_heatmap(run: Run) -> None:
    path, members = shard_of(run)
    members.popitem()
    write_shard(run, path, members)


def add_a_shard(run: Run) -> None:
    path, _ = shard_of(run)
    shutil.copy(path, path.with_name("part-00009-0000000000000000.tar"))


def remove_a_shard(run: Run) -> None:
    shard_of(run)[0].unlink()


# --- The manifest


def manifest_of(run: Run) -> tuple[Path, pa.Table, dict[str, Any]]:
    folder = run.folder / "manifest"
    return folder, pq.read_table(folder / "part-00000.parquet"), json.loads((folder / "manifest.json").read_text())


def write_manifest(run: Run, table: pa.Table) -> None:
    """The manifest with other rows, all of its own digests set right, and run.json's."""
    from ad_jobs.archive.manifest import row_bytes
    from ad_jobs.archive.manifest_record import Record, record_bytes

    folder, _, record = manifest_of(run)
    path = folder / "part-00000.parquet"
    pq.write_table(table, path)
    digest = hashlib.sha256(b"".join(row_bytes(tuple(row.values())) for row in table.to_pylist())).hexdigest()
    record.pop("seal")
    part = {"name": path.name, "rows": table.num_rows, "sha256": described(path)["sha256"]}
    record |= {"parts": [part], "objects": table.num_rows, "digest": digest}
    (folder / "manifest.json").write_bytes(record_bytes(Record.model_validate(record)))
    run.record["manifest"] |= {"digest": digest, "objects": table.num_rows}


def rename_an_object(run: Run) -> None:
    _, table, _ = manifest_of(run)
    names = table["uri"].to_pylist()
    names[0] = names[0] + "x"
    write_manifest(run, table.set_column(1, "uri", pa.array(names)))


def drop_an_object(run: Run) -> None:
    _, table, _ = manifest_of(run)
    write_manifest(run, table.slice(0, table.num_rows - 1))
    run.count(objects=-1)


def reorder_objects(run: Run) -> None:
    _, table, _ = manifest_of(run)
    names = table["uri"].to_pylist()
    write_manifest(run, table.set_column(1, "uri", pa.array(names[::-1])))


def change_a_manifests_part(run: Run) -> None:
    folder, table, _ = manifest_of(run)
    names = table["uri"].to_pylist()
    pq.write_table(table.set_column(1, "uri", pa.array(names[::-1])), folder / "part-00000.parquet")


def change_a_manifests_record(run: Run) -> None:
    folder, _, record = manifest_of(run)
    (folder / "manifest.json").write_text(json.dumps(record | {"digest": "0" * 64}))


def remove_the_manifest(run: Run) -> None:
    shutil.rmtree(run.folder / "manifest")


# --- Model, calibration, archive


def flip_a_weight(run: Run) -> None:
    kit.flip_byte(run.home / "model" / "weights.safetensors", -5)


def remove_the_model(run: Run) -> None:
    shutil.rmtree(run.home / "model")


def put_another_model(run: Run) -> None:
    shutil.rmtree(run.home / "model")
    kit.make_model(run.home / "model", seed=5)


def change_the_kept_calibration(run: Run) -> None:
    (path,) = (run.folder / "calibrations").iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threshold": 1e6}))


def remove_both_calibrations(run: Run) -> None:
    shutil.rmtree(run.folder / "calibrations")
    (run.home / "model" / "calibration.json").unlink()


def change_an_image(run: Run) -> None:
    kit.flip_byte(run.home / "archive" / "good" / "0006.dcm", -100)


def remove_an_image(run: Run) -> None:
    (run.home / "archive" / "good" / "0001.png").unlink()


def swap_two_images(run: Run) -> None:
    first, second = (run.home / "archive" / "good" / name for name in ("0001.png", "0002.png"))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)


def mend_a_broken_image(run: Run) -> None:
    (run.home / "archive" / "bad" / "text.png").write_bytes(kit.png(7))


CHANGES = [
    drop_a_row,
    double_a_row,
    swap_two_scores,
    hide_what_is_flagged,
    move_the_threshold,
    swap_two_objects,
    of_another_run,
    remove_a_part,
    remove_a_part_and_its_entry,
    add_a_part,
    list_a_part_twice,
    cut_a_part,
    swap_two_parts_names,
    cool_a_heatmap,
    swap_two_heatmaps,
    remove_a_heatmap,
    add_a_shard,
    remove_a_shard,
    rename_an_object,
    drop_an_object,
    reorder_objects,
    change_a_manifests_part,
    change_a_manifests_record,
    remove_the_manifest,
    flip_a_weight,
    remove_the_model,
    put_another_model,
    change_the_kept_calibration,
    remove_both_calibrations,
    change_an_image,
    remove_an_image,
    swap_two_images,
    mend_a_broken_image,
]


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


def test_a_recalibrated_model_fails_no_old_run(home: Path) -> None:
    path = home / "model" / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threshold": 123.0}))
    assert not noticed(home, key=True, sample=1000)
