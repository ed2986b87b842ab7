"""A run in the hands of somebody who may write to it, knows how it is made, and sets its digests right again."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scankit as kit

from ad_jobs.archive.manifest import row_bytes
from ad_jobs.archive.manifest_record import Record, record_bytes
from ad_jobs.results.heatmaps import decode_png, encode_png
from ad_jobs.results.seal import sealed


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


# --- The table


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
    values, geometry, anchor = decode_png(members[name])
    members[name] = encode_png(0 * values, geometry, anchor)
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


def swap_two_columns_names(run: Run) -> None:
    folder, table, record = manifest_of(run)
    names = ["etag" if name == "uri" else "uri" if name == "etag" else name for name in table.column_names]
    path = folder / "part-00000.parquet"
    pq.write_table(table.rename_columns(names).select(table.column_names), path)
    record.pop("seal")
    record["parts"] = [{**record["parts"][0], "sha256": described(path)["sha256"]}]
    (folder / "manifest.json").write_bytes(record_bytes(Record.model_validate(record)))


def free_the_manifest_of_its_root(run: Run) -> None:
    folder, _, record = manifest_of(run)
    record.pop("seal")
    (folder / "manifest.json").write_bytes(record_bytes(Record.model_validate(record | {"root": None})))


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
    (path,) = (run.folder / "calibrations").glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threshold": 1e6}))


def change_the_kept_scores(run: Run) -> None:
    (path,) = (run.folder / "calibrations").glob("*.parquet")
    kit.flip_byte(path, 40)


def remove_the_kept_scores(run: Run) -> None:
    (path,) = (run.folder / "calibrations").glob("*.parquet")
    path.unlink()


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
    swap_two_columns_names,
    free_the_manifest_of_its_root,
    remove_the_manifest,
    flip_a_weight,
    remove_the_model,
    put_another_model,
    change_the_kept_calibration,
    change_the_kept_scores,
    remove_the_kept_scores,
    remove_both_calibrations,
    change_an_image,
    remove_an_image,
    swap_two_images,
    mend_a_broken_image,
]
