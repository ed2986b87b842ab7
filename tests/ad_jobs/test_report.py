"""The report: complete, escaped, self-contained, and written even where originals are gone."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import fake_run
import numpy as np
import pytest
from PIL import Image

from ad_jobs.errors import UsageError
from ad_jobs.evaluate import evaluate
from ad_jobs.page import texts
from ad_jobs.report import report

NASTY = "a <script>alert(\"1\")<\\script> & 'b'.png"
VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """A page's tags, its visible text, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, tag: str, name: str) -> list[str]:
        return [attrs[name] or "" for found, attrs in self.tags if found == tag and name in attrs]


def page_of(fake: fake_run.FakeRun, **options: int) -> Page:
    uri = report(fake.uri, **options)
    assert uri == f"{fake.uri}/report/index.html"
    page = Page(Path(uri).read_text(encoding="utf-8"))
    assert page.open == []
    return page


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


class TestGallery:
    def test_highest_scores_first_each_with_picture_and_heatmap(self, fake):
        page = page_of(fake, top=5)
        best = sorted(fake.scores, key=lambda name: -fake.scores[name])[:5]
        pictures = [alt for alt in page.values("img", "alt") if alt]
        assert pictures == [f"{name}, score {fake.scores[name]:.4g}" for name in best]
        kinds = [source.partition(";")[0] for source in page.values("img", "src")]
        assert kinds == ["data:image/jpeg", "data:image/png"] * 5

    def test_pictures_show_the_original(self, fake):
        page = page_of(fake, top=1)
        source = page.values("img", "src")[0]
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("L"), float)
        best = max(fake.scores, key=lambda name: fake.scores[name])
        original = np.asarray(Image.open(fake.pictures / best), float)
        assert shown.shape == original.shape
        assert np.abs(shown - original).mean() < 3  # grey levels of 255: what JPEG loses

    @pytest.mark.parametrize("resize", ["stretch", "pad"])
    def test_the_heatmap_lies_on_the_defect(self, tmp_path, resize):
        fake = fake_run.make(tmp_path, resize=resize, input_size=(64, 64))
        page = page_of(fake, top=1)
        heat = Image.open(io.BytesIO(base64.b64decode(page.values("img", "src")[1].partition(",")[2])))
        alpha = np.asarray(heat.resize((120, 90), Image.Resampling.BILINEAR))[..., 3]
        best = max(fake.scores, key=lambda name: fake.scores[name])
        y, x = np.unravel_index(alpha.argmax(), alpha.shape)
        rows, columns = np.nonzero(fake.masks[best])
        assert abs(y - rows.mean()) < 10
        assert abs(x - columns.mean()) < 10

    def test_gone_and_changed_originals_are_told_not_shown(self, fake):
        gone, changed = sorted(fake.scores, key=lambda name: -fake.scores[name])[:2]
        (fake.pictures / gone).unlink()
        (fake.pictures / changed).write_bytes(b"another picture")
        page = page_of(fake, top=2)
        assert "The original is gone from the archive." in page.text
        assert "The original has changed since the scan, so it is not shown." in page.text
        assert [source.partition(";")[0] for source in page.values("img", "src")] == ["data:image/png"] * 2

    def test_neither_heatmap_nor_original(self, tmp_path):
        fake = fake_run.make(tmp_path, normal=0, anomalous=1, keep_heatmaps=False)
        (fake.pictures / "defect 000.png").unlink()
        page = page_of(fake)
        assert page.values("img", "src") == []
        assert "No heatmap was kept for this image." in page.text

    def test_hashed_identifiers_are_not_followed(self, tmp_path, monkeypatch):
        fake = fake_run.make(tmp_path, normal=1, anomalous=1, uris="hmac:")
        monkeypatch.chdir(tmp_path)
        text = page_of(fake).text
        assert "Identifiers are hashed, so the original is not shown." in text
        assert "defect" not in text


def test_a_run_in_which_nothing_was_scored(tmp_path):
    fake = fake_run.make(tmp_path, normal=0, anomalous=0, failed=("corrupt",))
    text = page_of(fake).text
    assert "0 scored + 1 failed + 0 skipped = 1 in the manifest" in text
    assert "No image was scored." in text


def test_several_models_each_have_their_section(tmp_path):
    fake = fake_run.make(tmp_path, models=(fake_run.MODEL, fake_run.SECOND_MODEL))
    evaluate(fake.uri, str(fake.labels), bootstrap=10)
    page = page_of(fake, top=3)
    side_by_side, cards = 2 * 5 * 2, 2 * 3 * 2  # a picture and a heatmap each
    assert len(page.values("img", "src")) == side_by_side + cards
    assert page.text.count("Image AUROC") == 2
    assert "Side by side" in page.text


def test_an_unfinished_run_has_no_report(tmp_path):
    fake = fake_run.make(tmp_path, finish=False)
    with pytest.raises(UsageError, match="finished"):
        report(fake.uri)
