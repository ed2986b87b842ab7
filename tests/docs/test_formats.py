"""docs/formats.md is what the decoder does, kind by kind and form by form."""

from __future__ import annotations

from benchmarks import formats


def test_the_page_of_formats_is_current() -> None:
    page = formats.page()
    assert "| wrong" not in page
    assert ", wrong" not in page
    assert formats.PAGE.read_text() == page, "python benchmarks/formats.py writes it anew"
