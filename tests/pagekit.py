"""A report read back: its tags, its visible text, its pictures."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fake_run

from ad_jobs.report import report

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


def page_of(fake: fake_run.FakeRun, *, decision: str | None = None, **options: Any) -> Page:
    """The page of a run or of a decision, every tag of it closed."""
    uri = report(fake.uri, decision=decision, **options)
    assert uri == f"{fake.uri}/report/{'' if decision is None else f'{decision}/'}index.html"
    page = Page(Path(uri).read_text(encoding="utf-8"))
    assert page.open == []
    return page
