"""`decide --by`: each scanner is judged by its own held-out normals where it has enough, and the record says so."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runkit as kit

from ad_jobs.decide import decide
from ad_jobs.deciding.p_values import pooled_q_values, q_values
from ad_jobs.deciding.text import decision_text
from ad_jobs.errors import UsageError
from ad_jobs.results.run import ManifestRef, held_out_copy, write_record
from ad_jobs.scoring.held_out import HELD_OUT, Scored, to_parquet
from benchmarks.made import numbered, write_manifest
from cluster import storage

# What scanners add to a score, and how many of their normals are held out.
SHIFT: dict[str | None, float] = {"Acme": 0.0, "Blur & Co": 2.0, None: -1.0, "Rare": 0.5}
HELD = {"Acme": 299, "Blur & Co": 199, None: 99, "Rare": 5}
ROWS = 400


def held_out(seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    return to_parquet(
        Scored(f"{name} {i}", 0, f"{name} {i // 3}", False, float(rng.normal(SHIFT[name])), f"{name} {i}", header)
        for name, count in HELD.items()
        for i in range(count)
        for header in [{"manufacturer": name, "rows": 512, "model": "X1" if i % 2 else "X2"}]
    )


def make_run(folder: Path, body: bytes, manifest: ManifestRef | None = None) -> str:
    """A run of normal images alone, so many of each scanner."""
    rng = np.random.default_rng(1)
    rows = [
        kit.scored(i, score=float(rng.normal(SHIFT[name])), manufacturer=name, rows=512, series_uid=f"1.{i // 4}")
        for i, name in enumerate(name for name in SHIFT for _ in range(ROWS))
    ]
    kit.write_part(folder, rows)
    record = kit.record(folder, len(rows))
    update = {"calibration_id": "c" * 12, "held_out_sha256": hashlib.sha256(body).hexdigest()}
    changed = {"models": [record.models[0].model_copy(update=update)]}
    storage.write_bytes(held_out_copy(str(folder), kit.MODEL), body)
    write_record(str(folder), record.model_copy(update=changed | ({"manifest": manifest} if manifest else {})))
    return str(folder)


@pytest.fixture
def run(tmp_path: Path) -> str:
    return make_run(tmp_path / "run", held_out())


def shares(run: str, decision: dict[str, Any]) -> pd.Series[float]:
    """How many rows of each scanner are flagged."""
    table = pd.read_parquet(f"{run}/decisions/{decision['decision_id']}.parquet").sort_values("object_id")
    return table["flagged"].groupby(np.arange(len(table)) // ROWS).mean().set_axis(list(SHIFT))


def test_each_scanner_has_the_rate_that_was_promised(run: str) -> None:
    together = shares(run, decide(run=run, max_fpr=0.05))
    assert together["Blur & Co"] > 0.12, "of shifted scores far more are flagged than was promised"
    assert together["Acme"] < 0.02
    found = decide(run=run, max_fpr=0.05, by="manufacturer")
    apart = shares(run, found)
    # Rates of 400 rows over 100 held-out ones and more: three standard errors are 0.07.
    assert ((apart[["Acme", "Blur & Co", None]] - 0.05).abs() < 0.05).all()
    assert found["by"] == ["manufacturer"]
    (model,) = found["models"]
    groups = {group["values"]["manufacturer"]: group for group in model["groups"]}
    assert list(groups) == ["Acme", "Blur & Co", "Rare", None], "what does not say its maker is a group of its own"
    assert [(group["own"], group["n_normal"]) for group in groups.values()] == [
        (True, 299),
        (True, 199),
        (False, 602),
        (True, 99),
    ]
    assert groups["Blur & Co"]["threshold"] > groups["Acme"]["threshold"] + 1
    assert sum(group["flagged"] for group in groups.values()) == model["flagged"]
    assert (model["threshold"], model["likeness"]) == (None, None)
    text = decision_text(found)
    assert "--max-fpr 0.05 --by manufacturer" in text
    assert "manufacturer Acme: " in text
    assert "against 299 held-out normal images of its own" in text
    assert "against all 602 held-out normal images: of its own there are too few" in text
    assert "manufacturer unknown: " in text


def test_a_work_list_says_among_which_normals_a_row_was_ranked(run: str, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    found = decide(run=run, max_fpr=0.05, by="manufacturer", worklist=str(path))
    (model,) = found["models"]
    groups = {group["values"]["manufacturer"] or "": group["n_normal"] for group in model["groups"]}
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert len(table) == model["flagged"]
    assert all(f" of {groups[row.manufacturer]} held-out normal images" in row.why for row in table.itertuples())
    assert set(table["rule"]) == {"max-fpr 0.05, by manufacturer"}


def test_a_group_is_judged_by_its_own_if_that_is_enough_for_the_rate(run: str) -> None:
    (model,) = decide(run=run, max_fpr=0.2, by="manufacturer")["models"]
    assert {group["values"]["manufacturer"]: group["own"] for group in model["groups"]}["Rare"] is True
    assert decide(run=run, max_fpr=0.2)["decision_id"] != decide(run=run, max_fpr=0.2, by="rows")["decision_id"]


def test_one_procedure_over_the_p_of_all_groups(run: str) -> None:
    found = decide(run=run, fdr=0.5, by=("manufacturer", "rows"))
    table = pd.read_parquet(f"{run}/decisions/{found['decision_id']}.parquet")
    assert set(table["rows"]) == {"512"}
    ordered = np.sort(table["p"])
    passed = [k for k in range(1, len(ordered) + 1) if ordered[k - 1] <= k / len(ordered) * 0.5]
    wanted = table["p"] <= (ordered[passed[-1] - 1] if passed else -1)
    np.testing.assert_array_equal(table["flagged"], wanted)
    assert table["p"].is_monotonic_increasing
    own = table[table["manufacturer"] == "Acme"]
    assert own["p"].min() >= 1 / 300
    np.testing.assert_allclose(own["p"] * 300, np.rint(own["p"] * 300))


def test_pooled_p_are_those_of_single_rows() -> None:
    rng = np.random.default_rng(0)
    counts = [rng.integers(0, 4, n + 1) for n in (19, 49, 99)]
    found = pooled_q_values(counts)
    p = np.concatenate([np.repeat(np.arange(1, len(one) + 1) / len(one), one) for one in counts])
    q = np.concatenate([np.repeat(of, one) for of, one in zip(found, counts, strict=True)])
    for rate in (0.1, 0.5, 0.9):
        ordered = np.sort(p)
        passed = [k for k in range(1, len(p) + 1) if ordered[k - 1] <= k / len(p) * rate]
        np.testing.assert_array_equal(q <= rate, p <= ordered[passed[-1] - 1] if passed else np.zeros(len(p), bool))
    np.testing.assert_array_equal(pooled_q_values(counts[:1])[0], q_values(counts[0]))


def test_a_column_of_the_manifest_is_found_by_object(tmp_path: Path) -> None:
    objects = ROWS * len(SHIFT)

    def columns(ids: Any) -> dict[str, pa.Array]:
        model = pa.array(["X1" if i % 2 else "X2" for i in ids])
        return {"uri": numbered("/a/", ids, 6, ""), "etag": pa.array(["e"] * len(ids)), "model": model}

    info = write_manifest("/a", tmp_path / "manifest", objects, columns, headers=True)
    manifest = ManifestRef(uri=info.uri, digest=info.digest, objects=objects)
    made = make_run(tmp_path / "run", held_out(), manifest)
    found = decide(run=made, max_fpr=0.05, by="model")
    assert [group["values"] for group in found["models"][0]["groups"]] == [{"model": "X1"}, {"model": "X2"}]
    table = pd.read_parquet(f"{made}/decisions/{found['decision_id']}.parquet")
    assert ((table["object_id"] % 2 == 1) == (table["model"] == "X1")).all()
    (tmp_path / "manifest" / "manifest.json").unlink()
    with pytest.raises(UsageError, match="--by model of a run whose manifest is not there, or another by now"):
        decide(run=made, max_fpr=0.1, by="model")


def test_what_cannot_be_divided_is_refused(run: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a calibration keeps.*sop_uid.*Give modality"):
        decide(run=run, max_fpr=0.05, by="sop_uid")
    with pytest.raises(UsageError, match=r"without --max-fpr and --fdr"):
        decide(run=run, top=3, by="manufacturer")
    table = pq.read_table(pa.BufferReader(held_out())).select(HELD_OUT.names[:5])
    older = pa.BufferOutputStream()
    pq.write_table(table, older)
    made = make_run(tmp_path / "older", older.getvalue().to_pybytes())
    assert decide(run=made, max_fpr=0.05)["models"][0]["n_normal"] == 602
    with pytest.raises(UsageError, match=r"--by manufacturer, and calibration c{12} of an earlier version"):
        decide(run=made, max_fpr=0.05, by="manufacturer")
    with pytest.raises(UsageError, match=r"--level series, and calibration c{12} of an earlier version"):
        decide(run=made, max_fpr=0.05, level="series")


def test_studies_are_divided_too(run: str) -> None:
    found = decide(run=run, max_fpr=0.1, level="series", by="manufacturer")
    table = pd.read_parquet(f"{run}/decisions/{found['decision_id']}.parquet")
    assert len(table) == ROWS * len(SHIFT) / 4
    assert set(table["frames"]) == {4}
    by_maker = table.groupby("manufacturer", dropna=False)["flagged"].mean()
    assert by_maker["Blur & Co"] < 0.25
    whole = pd.read_parquet(f"{run}/series.parquet")
    assert whole["group"].nunique() == len(whole) == len(table)
