"""What a reader clicks: every link of the pages leads to a file of the project, and every page is reached."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
# Where the project lies on the web; README stands on PyPI too, where relative links lead nowhere.
HOME = "https://git.example.org/retroscan"
IN_THE_TREE = re.compile(rf"{re.escape(HOME)}/(?:blob|raw)/main/")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def links(page: Path) -> list[str]:
    return LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))


def target(page: Path, link: str) -> tuple[Path, str] | None:
    """The file and the heading that a link leads to; None for a link out of the project."""
    path, _, heading = IN_THE_TREE.sub("", link).partition("#")
    if "://" in path:
        return None
    return ((ROOT if IN_THE_TREE.match(link) else page.parent) / path if path else page), heading


def headings(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    found = links(page)
    assert found or page.name == "thresholds.md"
    for link in found:
        led_to = target(page, link)
        if led_to is not None:
            path, heading = led_to
            assert path.exists(), link
            assert not heading or heading in headings(path), link


def test_the_readme_reaches_every_page_once_and_by_absolute_links() -> None:
    found = links(ROOT / "README.md")
    assert all(link.startswith("https://") for link in found)
    for page in (*DOCS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        assert found.count(f"{HOME}/blob/main/{page.relative_to(ROOT)}") == 1, page.name
    assert f"{HOME}/raw/main/docs/report.png" in found


def test_the_package_points_to_the_same_place() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert urls.keys() == {"Homepage", "Documentation", "Changelog", "Issues"}
    assert all(url.startswith(HOME) for url in urls.values())
    for url in urls.values():
        path = IN_THE_TREE.sub("", url)
        assert "://" in path or (ROOT / path).exists(), url


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_short_and_its_lines_are_too(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert len(lines) <= (130 if page.name == "README.md" else 220)
    # A row of a table, and a picture, cannot be wrapped.
    long = [line for line in lines if len(line) > 120 and not line.startswith(("|", "!["))]
    assert long == []
