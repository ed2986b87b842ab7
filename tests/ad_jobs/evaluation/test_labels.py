"""Labels that cannot be used: the rule, the line, and a path of either side."""

from pathlib import Path

import fake_run
import pytest

from ad_jobs.errors import UsageError
from ad_jobs.evaluation.labels import join, labelled_rows, read_labels
from ad_jobs.results.read import read_scores
from ad_jobs.results.run import read_record
from ad_jobs.results.score_table import ScoreTable


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "must be a CSV"),
        ("image,label\na.png,1\n", "column anomalous"),
        ("path,anomalous\na.png,1\n", "column image"),
        ("image,anomalous\n", "at least one"),
        ("image,anomalous\na.png,maybe\n", "'maybe' in line 2"),
        ("image,anomalous\na.png,1\n,0\n", "must not be empty.*line 3"),
        ("image,anomalous,frame\na.png,1,-1\n", "'-1' in line 2"),
        ("image,anomalous\na.png,1\na.png,1\n", "labelled once"),
    ],
)
def test_a_file_that_cannot_be_used_names_the_rule_and_the_line(tmp_path: Path, text: str, match: str):
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=match):
        read_labels(str(path))


def test_no_such_file(tmp_path: Path):
    with pytest.raises(UsageError, match="can be read"):
        read_labels(str(tmp_path / "none.csv"))


def test_labels_of_other_images_show_a_path_of_either_side(tmp_path: Path):
    fake = fake_run.make(tmp_path, normal=1, anomalous=1)
    fake.labels.write_text("image,anomalous\nelsewhere/a.png,1\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"none of 1 is among.*elsewhere/a.png; run: .*good 000.png"):
        labelled_rows(ScoreTable(fake.uri, read_record(fake.uri)), read_labels(str(fake.labels)))


def test_a_hash_is_a_name_and_a_name_may_have_two_lines(tmp_path: Path):
    path = tmp_path / "labels.csv"
    path.write_text('image,anomalous\nhmac:0123,1\n"two\nlines #,%.png",0\n', encoding="utf-8")
    assert read_labels(str(path)).table["uri"].tolist() == ["hmac:0123", f"{tmp_path}/two\nlines #,%.png"]


def test_labels_join_a_run_with_hashed_names(tmp_path: Path):
    fake = fake_run.make(tmp_path, normal=1, anomalous=1, uris="hmac:")
    rows = read_scores(fake.uri)
    fake.labels.write_text(f"image,anomalous\n{rows['uri'].iloc[0]},1\n", encoding="utf-8")
    assert join(read_labels(str(fake.labels)), rows, 1).table["status"].tolist() == ["scored"]
