"""`retroscan.ray.Score` on tables and in Ray Data: the rows of a scan, whatever is wrong with an object."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import scankit as kit

from cluster.session import session
from retroscan import UsageError, index, open_run, read_manifest, scan
from retroscan.ray import Score

pytestmark = pytest.mark.ray

OBJECTS = kit.good_objects(16) | {name: data for name, (data, _) in kit.bad_objects().items()}
# What a scan and a pipeline of one's own agree in; times and the run's own columns are each one's.
SAME = ("status", "error_code", "error_detail", "threshold", "flagged", "model_id", "content_sha256")
OF_THE_HEADER = ("study_uid", "sop_uid", "modality", "study_month", "rows", "columns", "bits", "transfer_syntax")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score")
    kit.make_model(folder / "model")
    kit.write_archive(folder / "archive", OBJECTS)
    index(folder / "archive", folder / "manifest")
    return folder


@pytest.fixture(scope="module")
def scanned(home: Path) -> Iterator[pd.DataFrame]:
    """The table of a scan, in a session that lasts."""
    with session(num_cpus=2):
        scan(home / "manifest", home / "model", home / "run", heatmaps="none")
        yield kit.named(open_run(home / "run").scores())


@pytest.fixture(scope="module")
def listed(home: Path) -> pa.Table:
    """The archive's objects as a manifest lists them, last object first."""
    return read_manifest(home / "manifest").sort_by([("object_id", "descending")])


def content(uris: pa.ChunkedArray) -> pa.Array:
    return pa.array([Path(uri).read_bytes() for uri in uris.to_pylist()], pa.large_binary())


def assert_as_scanned(found: pa.Table, scanned: pd.DataFrame, *, place: str = "uri") -> None:
    rows = kit.named(found.to_pandas().rename(columns={place: "uri"}))
    assert rows.index.tolist() == scanned.index.tolist()
    pd.testing.assert_series_equal(rows["score"], scanned["score"], rtol=0, atol=1e-5)
    for name in (*SAME, *OF_THE_HEADER):
        expected = scanned[name].astype(object).where(scanned[name].notna(), None)
        assert rows[name].astype(object).where(rows[name].notna(), None).tolist() == expected.tolist(), name


@pytest.mark.parametrize("place", ["uri", "path"])
def test_objects_are_fetched_from_where_a_column_says(
    place: str, home: Path, listed: pa.Table, scanned: pd.DataFrame
) -> None:
    batch = pa.table({place: listed["uri"], "note": [f"note {number}" for number in range(len(listed))]})
    found = Score(home / "model")(batch)
    assert_as_scanned(found, scanned, place=place)
    assert found.column_names[:3] == [place, "note", "frame"]
    assert {"object_id", "run_id", "heatmap", "bytes"}.isdisjoint(found.column_names)
    # Row by row the batch's own order, frames in theirs, and each frame with its object's note.
    notes = dict(zip(batch[place].to_pylist(), batch["note"].to_pylist(), strict=True))
    assert found["note"].to_pylist() == [notes[uri] for uri in found[place].to_pylist()]
    assert list(dict.fromkeys(found[place].to_pylist())) == batch[place].to_pylist()
    frames = found.filter(pa.compute.equal(found[place], f"{home}/archive/good/multi frame #1?.dcm"))["frame"]
    assert frames.to_pylist() == list(range(kit.FRAMES))


def test_bytes_that_are_there_are_not_fetched(home: Path, listed: pa.Table, scanned: pd.DataFrame) -> None:
    names = pa.array([f"/nowhere{uri}" for uri in listed["uri"].to_pylist()])
    found = Score(home / "model", batch_size=3)(pa.table({"uri": names, "bytes": content(listed["uri"])}))
    assert_as_scanned(found, scanned)
    assert "bytes" not in found.column_names


def test_a_manifest_may_be_scored_as_it_is(home: Path, listed: pa.Table, scanned: pd.DataFrame) -> None:
    found = Score(home / "model")(listed)
    assert_as_scanned(found, scanned)
    assert found.column_names[: len(listed.column_names)] == listed.column_names, "and its columns stay"


def test_bytes_alone_are_enough(home: Path, listed: pa.Table, scanned: pd.DataFrame) -> None:
    found = Score(home / "model")(pa.table({"bytes": content(listed["uri"])}))
    by_digest = dict(zip(scanned["content_sha256"], scanned["score"].round(5), strict=True))
    last_frames = dict(zip(found["content_sha256"].to_pylist(), found["score"].to_pandas().round(5), strict=True))
    assert last_frames.keys() == by_digest.keys()
    assert found.num_rows == len(scanned)


def test_what_has_no_bytes_or_too_many_is_a_row_too(home: Path) -> None:
    model = home / "model"
    found = Score(model)(pa.table({"bytes": pa.array([None, b"", kit.png(1)], pa.binary())}))
    assert found["error_code"].to_pylist() == ["empty", "empty", None]
    assert found["score"].to_pylist()[:2] == [None, None]
    gone = Score(model)(pa.table({"uri": [str(home / "gone.png")]}))
    assert gone["error_code"].to_pylist() == ["not_found"]
    assert gone["status"].to_pylist() == ["failed"]


def test_a_batch_of_nothing_gives_the_columns_of_one(home: Path, listed: pa.Table) -> None:
    score = Score(home / "model")
    nothing, something = score(listed.slice(0, 0)), score(listed.slice(0, 1))
    assert nothing.num_rows == 0
    assert nothing.schema == something.schema


def test_what_cannot_be_scored_is_refused_in_words(home: Path) -> None:
    score = Score(home / "model")
    with pytest.raises(UsageError, match="rename_columns"):
        score(pa.table({"image": ["a.png"]}))
    with pytest.raises(UsageError, match=r"must not be there already.*frame, score"):
        score(pa.table({"uri": ["/a.png"], "score": [1.0], "frame": [0]}))
    with pytest.raises(UsageError, match=r"Arrow table.*batch_format"):
        score(pd.DataFrame({"uri": ["/a.png"]}))
    with pytest.raises(UsageError, match="batch_size"):
        Score(home / "model", batch_size=0)
    with pytest.raises(UsageError, match="model"):
        Score(home / "archive")(pa.table({"uri": ["/a.png"]}))
    with pytest.raises(UsageError, match="gs://models/m"):
        Score("gs://models/m")


def test_a_row_that_names_no_place_fails_by_itself(home: Path, listed: pa.Table) -> None:
    score = Score(home / "model")
    good = listed["uri"][3].as_py()
    found = score(pa.table({"uri": ["gs://b/a", good, None, ""]}))
    assert found["error_code"].to_pylist()[0] == "not_found"
    assert (
        found.filter(pc.equal(found["uri"], good))["score"].to_pylist()
        == score(pa.table({"uri": [good]}))["score"].to_pylist()
    )
    assert found.num_rows >= 4


def test_one_that_has_scored_can_be_sent_elsewhere(home: Path, listed: pa.Table) -> None:
    score = Score(home / "model")
    first = score(listed.slice(3, 4))
    again = pickle.loads(pickle.dumps(score))(listed.slice(3, 4))
    assert again["score"] == first["score"]


@pytest.mark.parametrize("columns", ["uri", "path", "bytes"])
def test_ray_data_gives_the_rows_of_a_scan(columns: str, home: Path, listed: pa.Table, scanned: pd.DataFrame) -> None:
    import ray.data

    tables = {
        "uri": pa.table({"uri": listed["uri"]}),
        "path": pa.table({"path": listed["uri"]}),
        "bytes": pa.table({"uri": listed["uri"], "bytes": content(listed["uri"])}),
    }
    scores = (
        ray.data.from_arrow(tables[columns])
        .repartition(3)
        .map_batches(
            Score,
            fn_constructor_args=(str(home / "model"),),
            batch_format="pyarrow",
            batch_size=5,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
    )
    found = pa.concat_tables(ray.get(scores.to_arrow_refs()))
    assert_as_scanned(found, scanned, place="path" if columns == "path" else "uri")
