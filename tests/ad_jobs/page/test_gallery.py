"""The gallery of several models: the same frames under each of them."""

import fake_run
import pytest

from ad_jobs.images.policy import Limits
from ad_jobs.page import gallery
from ad_jobs.results.read import read_scores
from ad_jobs.results.run import read_record


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
    models = read_record(fake.uri).models
    compared = gallery.side_by_side(fake.uri, rows, models, Limits(), 4)
    assert [[card.uri for card in cards] for cards in compared] == [[uri, uri] for uri in expected]
    by_model = {model: part.set_index("uri") for model, part in ranks.groupby("model_id")}
    for cards in compared:
        for model, card in zip(models, cards, strict=True):
            row = by_model[model.model_id].loc[card.uri]
            assert (card.score, card.rank) == (pytest.approx(row["score"]), row["rank"])
    # A frame that one model could not score is not compared.
    rows.loc[rows["uri"] == expected[0], "status"] = ["scored", "failed"]
    again = gallery.side_by_side(fake.uri, rows, models, Limits(), 4)
    assert expected[0] not in [cards[0].uri for cards in again]
