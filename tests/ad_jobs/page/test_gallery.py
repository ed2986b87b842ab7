"""The gallery: pictures with their heatmaps, what is told where one is missing, and several models side by side."""

import base64
import io
import shutil
from functools import partialmethod
from pathlib import Path

import fake_run
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hiddenkit import hide
from pagekit import page_of
from PIL import Image

from ad_jobs.errors import UsageError
from ad_jobs.images.policy import Limits
from ad_jobs.index import index
from ad_jobs.page import gallery
from ad_jobs.page.pictures import Pictures
from ad_jobs.results.read import read_scores
from ad_jobs.results.run import read_record
from ad_jobs.results.score_table import ScoreTable
from ad_jobs.schema import SCORES


@pytest.fixture
def fake(tmp_path) -> fake_run.FakeRun:
    return fake_run.make(tmp_path, names={16: "a <b> & 'c'.png"})


def test_highest_scores_first_each_with_picture_and_heatmap(fake):
    page = page_of(fake, top=5)
    best = sorted(fake.scores, key=lambda name: -fake.scores[name])[:5]
    pictures = [alt for alt in page.values("img", "alt") if alt]
    assert pictures == [f"{name}, score {fake.scores[name]:.4g}" for name in best]
    kinds = [source.partition(";")[0] for source in page.values("img", "src")]
    assert kinds == ["data:image/jpeg", "data:image/png"] * 5


def test_a_card_is_told_from_others_of_its_file_name(tmp_path):
    folders = ("scanner a", "scanner b")
    for folder in folders:
        (tmp_path / "pictures" / folder).mkdir(parents=True)
    names = {0: "scanner a/1.png", 1: "scanner b/1.png"}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "mkdir", partialmethod(Path.mkdir, exist_ok=True))
        fake = fake_run.make(tmp_path, normal=2, anomalous=1, names=names)
    shown = {alt.partition(",")[0] for alt in page_of(fake).values("img", "alt") if alt}
    assert shown == {"scanner a/1.png", "scanner b/1.png", "defect 002.png"}


def test_pictures_show_the_original(fake):
    page = page_of(fake, top=1)
    source = page.values("img", "src")[0]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("L"), float)
    best = max(fake.scores, key=lambda name: fake.scores[name])
    original = np.asarray(Image.open(fake.pictures / best), float)
    assert shown.shape == original.shape
    # Grey levels of 255: what JPEG loses.
    assert np.abs(shown - original).mean() < 3


@pytest.mark.parametrize("resize", ["stretch", "pad"])
def test_the_heatmap_lies_on_the_defect(tmp_path, resize):
    fake = fake_run.make(tmp_path, resize=resize, input_size=(64, 64))
    page = page_of(fake, top=1)
    heat = Image.open(io.BytesIO(base64.b64decode(page.values("img", "src")[1].partition(",")[2])))
    alpha = np.asarray(heat.resize((120, 90), Image.Resampling.BILINEAR))[..., 3]
    best = max(fake.scores, key=lambda name: fake.scores[name])
    y, x = np.unravel_index(alpha.argmax(), alpha.shape)
    rows, columns = np.nonzero(fake.masks[best])
    assert abs(y - rows.mean()) < 10
    assert abs(x - columns.mean()) < 10


def test_gone_and_changed_originals_are_told_not_shown(fake):
    gone, changed = sorted(fake.scores, key=lambda name: -fake.scores[name])[:2]
    (fake.pictures / gone).unlink()
    (fake.pictures / changed).write_bytes(b"another picture")
    page = page_of(fake, top=2)
    assert "The original is gone from the archive." in page.text
    assert "The original has changed since the scan, so it is not shown." in page.text
    assert [source.partition(";")[0] for source in page.values("img", "src")] == ["data:image/png"] * 2


def test_neither_heatmap_nor_original(tmp_path):
    fake = fake_run.make(tmp_path, normal=0, anomalous=1, keep_heatmaps=False)
    (fake.pictures / "defect 000.png").unlink()
    page = page_of(fake)
    assert page.values("img", "src") == []
    assert "No heatmap was kept for this image." in page.text


def test_hashed_identifiers_are_followed_by_who_names_the_manifest_and_stay_hashed(tmp_path):
    fake = fake_run.make(tmp_path, normal=1, anomalous=2)
    with pytest.raises(UsageError, match=r"hashed identifiers.*Leave it out"):
        page_of(fake, manifest=str(tmp_path / "other"))
    manifest = hide(fake.uri, str(fake.pictures))
    text = page_of(fake).text
    assert text.count("Identifiers are hashed, so the original is not shown; `report --manifest` with the run's") == 3
    page = page_of(fake, manifest=manifest)
    kinds = [source.partition(";")[0] for source in page.values("img", "src")]
    assert kinds == ["data:image/jpeg", "data:image/png"] * 3
    # What cannot be fetched is told without its name.
    (fake.pictures / "defect 001.png").unlink()
    (fake.pictures / "defect 001.png").mkdir()
    page = page_of(fake, manifest=manifest)
    assert len(page.values("img", "src")) == 5
    for shown in (text, page.text, Path(fake.uri, "report", "index.html").read_text(encoding="utf-8")):
        assert not [name for name in ("defect 0", "good 0", str(fake.pictures)) if name in shown]
    shutil.rmtree(manifest)
    index(source=str(fake.labels.parent / "masks"), out=manifest)
    with pytest.raises(UsageError, match="the manifest that it was made from"):
        page_of(fake, manifest=manifest)


def write_rows(fake: fake_run.FakeRun, rows: pd.DataFrame) -> None:
    """In place of those of the run."""
    pq.write_table(pa.Table.from_pandas(rows, SCORES, preserve_index=False), f"{fake.uri}/scores/part-00000.parquet")


def test_side_by_side_shows_one_frame_under_every_model_in_the_order_of_their_common_rank(tmp_path):
    fake = fake_run.make(tmp_path, models=(fake_run.MODEL, fake_run.SECOND_MODEL))
    rows = read_scores(fake.uri)
    second = rows["model_id"] == fake_run.SECOND_MODEL
    # Under the second model's own scale, and with its last frame before all others.
    rows.loc[second, "score"] = 100 * rows.loc[second, "score"]
    last = rows.loc[second, "score"].idxmin()
    rows.loc[last, "score"] = 1e6
    ranks = rows.assign(rank=rows.groupby("model_id")["score"].rank(ascending=False))
    expected = ranks.groupby("uri")["rank"].mean().sort_values(kind="stable").index[:4].tolist()
    record = read_record(fake.uri)
    models = record.models
    write_rows(fake, rows)
    compared = gallery.side_by_side(gallery.Gallery(ScoreTable(fake.uri, record), Limits(), Pictures()), 4)
    assert [[card.uri for card in cards] for cards in compared] == [[uri, uri] for uri in expected]
    by_model = {model: part.set_index("uri") for model, part in ranks.groupby("model_id")}
    for cards in compared:
        for model, card in zip(models, cards, strict=True):
            row = by_model[model.model_id].loc[card.uri]
            assert (card.score, card.rank) == (pytest.approx(row["score"]), row["rank"])
    # A frame that one model could not score is not compared.
    rows.loc[rows["uri"] == expected[0], "status"] = ["scored", "failed"]
    write_rows(fake, rows)
    again = gallery.side_by_side(gallery.Gallery(ScoreTable(fake.uri, record), Limits(), Pictures()), 4)
    assert expected[0] not in [cards[0].uri for cards in again]
