"""The report: complete, escaped, self-contained, and written even where originals are gone."""

import base64
import hashlib
import json
import re
from pathlib import Path

import fake_run
import pytest
from pagekit import page_of

from ad_jobs.errors import UsageError
from ad_jobs.evaluate import evaluate
from ad_jobs.page import texts
from ad_jobs.report import report

NASTY = "a <script>alert(\"1\")<\\script> & 'b'.png"


@pytest.fixture
def fake(tmp_path) -> fake_run.FakeRun:
    made = fake_run.make(tmp_path, failed=("corrupt", "corrupt", "truncated"), skipped=2, names={16: "a <b> & 'c'.png"})
    evaluate(made.uri, str(made.labels), bootstrap=20)
    return made


def test_asks_nobody_for_anything(fake):
    page = page_of(fake)
    addresses = [
        attrs[name] or ""
        for _, attrs in page.tags
        for name in ("src", "href", "srcset", "action", "data")
        if name in attrs
    ]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    text = Path(fake.uri, "report/index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|//cdn|@import|url\(", text)
    assert {"iframe", "object", "embed"}.isdisjoint(tag for tag, _ in page.tags)


def test_its_policy_allows_its_own_script_and_nothing_else(fake):
    page = page_of(fake)
    policy = page.values("meta", "content")[0]
    assert policy.startswith("default-src 'none'; img-src data:;")
    text = Path(fake.uri, "report/index.html").read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


def test_counts_balance_in_words(fake):
    text = page_of(fake).text
    assert "18 scored + 3 failed + 2 skipped = 23 in the manifest" in text
    assert "Every object is accounted for" in text
    flagged = sum(score > 0.55 for score in fake.scores.values())
    assert f"{flagged} of 18 scored images flagged" in text


def test_an_imbalance_is_not_hidden(fake):
    record = json.loads(Path(fake.uri, "run.json").read_text())
    record["manifest"]["objects"] += 1
    Path(fake.uri, "run.json").write_text(json.dumps(record))
    text = page_of(fake).text
    assert "18 scored + 3 failed + 2 skipped ≠ 24 in the manifest" in text
    assert "do not rely on it" in text


@pytest.mark.parametrize("undecided", [0, 11])
def test_a_selection_is_told_beside_the_whole_archive(fake, undecided: int):
    record = json.loads(Path(fake.uri, "run.json").read_text())
    record["manifest"] |= {"where": "modality = 'MR'", "listed": 347, "undecided": undecided}
    Path(fake.uri, "run.json").write_text(json.dumps(record))
    text = page_of(fake).text
    assert "18 scored + 3 failed + 2 skipped = 23 selected" in text
    assert "23 of the archive's 347 objects were selected by modality = 'MR'" in text
    assert f"{347 - 23 - undecided} were not" in text
    assert ("for 11 the condition is NULL" in text) == (undecided == 11)


def test_says_what_it_was_run_with_and_what_for(fake):
    text = page_of(fake).text
    for words in (
        "not for diagnosis",
        "run-20250304-093000",
        fake_run.MODEL,
        "d1" * 32,
        "ca" * 32,
        "fe" * 32,
        "s3://archive/brain <MR> & more/",
        "2025-03-04 09:30:00 UTC",
        "22 min",
        "resize=stretch",
        '"batch_size": 32',
        "scores/part-00000.parquet",
    ):
        assert words in text


def test_says_how_auto_chose_the_model(fake):
    record = json.loads(Path(fake.uri, "run.json").read_text())
    assert "chosen by auto" not in page_of(fake).text
    rows = [
        {"detector": "linear", "found": 0.8125, "auroc": {"blob": 0.75, "line": 0.875}, "why": "another was kept"},
        {"detector": "mkd", "found": 0.9, "auroc": {"blob": 0.9, "line": 0.9}, "why": "kept"},
        {"detector": "ssm", "why": "not tried: 9.0 min expected, 1.0 min left"},
    ]
    record["models"][0]["auto"] = {
        "rule": "the best",
        "judged_on": 40,
        "kept": "mkd",
        "kinds": ["blob", "line"],
        "candidates": rows,
    }
    Path(fake.uri, "run.json").write_text(json.dumps(record))
    text = page_of(fake).text
    assert "chosen by auto: the best. AUROC on synthetic defects in 40 held-out images:" in text
    assert "Detector Mean blob line Why linear 0.8125 0.75 0.875 another was kept mkd 0.9 0.9 0.9 kept" in text
    assert "ssm not tried: 9.0 min expected, 1.0 min left" in text


def test_failures_by_reason_with_examples(fake):
    text = page_of(fake).text
    assert "corrupt the decoder rejects it failed 2" in text
    assert "truncated ends before its pixels do failed 1" in text
    assert "not_an_image a DICOM object without an image, left out on purpose skipped 2" in text
    assert "failed 000.dcm" in text


def test_metrics_with_intervals(fake):
    evaluation = json.loads(Path(fake.uri, "evaluation.json").read_text())
    text = page_of(fake).text
    for key, metric in texts.METRICS.items():
        value = evaluation[key]
        assert f"{value['value']:.4f} {value['low']:.4f} to {value['high']:.4f}" in text
        assert metric.name in text
    # What labels chose is for who asks `evaluate --oracle`.
    assert "Best F1" not in text
    assert "none missed" not in text


def test_what_has_no_value_is_no_row(fake):
    path = Path(fake.uri, "evaluation.json")
    nothing = {"value": None, "low": None, "high": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pixel_auroc": nothing}))
    text = page_of(fake).text
    assert "Pixel AUROC over all" not in text
    assert "AUPRO" in text


def test_the_evaluation_of_another_run_is_not_shown(fake):
    path = Path(fake.uri, "evaluation.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"run_id": "another"}))
    text = page_of(fake).text
    assert "Image AUROC" not in text
    assert "about another run" in text


def test_without_labels(tmp_path):
    fake = fake_run.make(tmp_path)
    text = page_of(fake).text
    assert "Image AUROC" not in text
    assert "Every object was scored." in text


@pytest.mark.parametrize("name", [NASTY, '"><img src=x onerror=alert(1)>.png', "{{ 7 * 7 }} ünï.png"])
def test_names_are_escaped(tmp_path, name):
    fake = fake_run.make(tmp_path, normal=1, anomalous=1, names={1: name})
    page = page_of(fake)
    assert name in page.text
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert "x" not in page.values("img", "src")
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


def test_a_run_in_which_nothing_was_scored(tmp_path):
    fake = fake_run.make(tmp_path, normal=0, anomalous=0, failed=("corrupt",))
    text = page_of(fake).text
    assert "0 scored + 1 failed + 0 skipped = 1 in the manifest" in text
    assert "No image was scored." in text


def test_several_models_each_have_their_section(tmp_path):
    fake = fake_run.make(tmp_path, models=(fake_run.MODEL, fake_run.SECOND_MODEL))
    found = evaluate(fake.uri, str(fake.labels), bootstrap=10)
    page = page_of(fake, top=3)
    # A picture and a heatmap each.
    side_by_side, cards = 2 * 5 * 2, 2 * 3 * 2
    missed = sum(one["at_threshold"]["false_negative"] for one in (found, *found["models"].values()))
    assert len(page.values("img", "src")) == side_by_side + cards + 2 * missed
    assert page.text.count("Image AUROC") == 2
    assert "Side by side" in page.text


def test_an_unfinished_run_has_no_report(tmp_path):
    fake = fake_run.make(tmp_path, finish=False)
    with pytest.raises(UsageError, match="finished"):
        report(fake.uri)
