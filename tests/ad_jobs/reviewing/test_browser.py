"""A reviewer at work in Chromium: filters, keys, wheel, drag, verdicts, reload, two reviewers, nobody else asked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_run
import pytest
from axe_playwright_python.sync_playwright import Axe
from hiddenkit import hide
from playwright.sync_api import Browser, Page, expect, sync_playwright
from reviewkit import served

from ad_jobs.reviewing.verdicts import read_verdicts

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian's package chromium)")
# The machine may be busy.
TIMEOUT_MS = 60_000
expect.set_options(timeout=TIMEOUT_MS)
HOSTILE = '<img src=x onerror="document.title=1">.png'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def fake(tmp_path: Path) -> fake_run.FakeRun:
    models = (fake_run.MODEL, fake_run.SECOND_MODEL)
    return fake_run.make(tmp_path, normal=110, anomalous=5, failed=("corrupt",), models=models, names={114: HOSTILE})


@contextmanager
def opened(browser: Browser, address: str, **options: Any) -> Iterator[tuple[Page, list[str]]]:
    """A page, and what went wrong on it: errors on the console, and requests to anybody else."""
    context = browser.new_context(viewport={"width": 1366, "height": 768}, **options)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    own = address.partition("/?")[0] + "/"
    page.on("request", lambda asked: None if asked.url.startswith(own) else wrong.append(asked.url))
    page.goto(address)
    shown(page)
    yield page, wrong
    context.close()


def shown(page: Page) -> None:
    """Wait until the picture that is selected is on the canvas."""
    page.wait_for_function(
        """() => document.querySelector("canvas") && [...document.querySelectorAll("canvas")].every((canvas) => {
            const name = document.querySelector("#list [aria-selected=true] .name")?.textContent;
            if (!name || !canvas.getAttribute("aria-label")?.startsWith(name)) return false;
            const middle = canvas.getContext("2d").getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data;
            return middle[3] === 255;
        })"""
    )


def pixels(page: Page) -> list[int]:
    """Some pixels of the picture's canvas."""
    found: list[int] = page.evaluate(
        """async () => {
            await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
            const canvas = document.querySelector("canvas");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return [...Array(4001).keys()].map((n) => data[4 * Math.floor(n * data.length / 4 / 4002) + 1]);
        }"""
    )
    return found


def alike(some: list[int], others: list[int]) -> bool:
    """Whether they are of one picture: what is drawn again may be rounded otherwise."""
    return max(abs(one - other) for one, other in zip(some, others, strict=True)) <= 3


def test_a_reviewer_at_work(browser, fake):
    with served(fake.uri) as address, opened(browser, address) as (page, wrong):
        assert "token" not in page.url
        expect(page.locator("#count")).to_have_text("116 images")
        # Names are text.
        assert HOSTILE in page.locator("#list").inner_text()
        # Next and previous, beyond the first page of the list.
        page.keyboard.press("j")
        expect(page.locator("#row-1")).to_have_attribute("aria-selected", "true")
        page.keyboard.press("k")
        expect(page.locator("#row-0")).to_have_attribute("aria-selected", "true")
        # Window and level by a drag, zoom by the wheel with ctrl, and back.
        shown(page)
        before = pixels(page)
        box = page.locator("canvas").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 300, box["y"] + 200)
        page.mouse.down()
        page.mouse.move(box["x"] + 150, box["y"] + 320, steps=3)
        page.mouse.up()
        assert not alike(pixels(page), before)
        page.keyboard.press("0")
        assert alike(pixels(page), before)
        page.keyboard.press("+")
        expect(page.locator("#window-told")).to_contain_text("zoom 1.5")
        page.keyboard.press("0")
        # The heatmap is hidden while the space bar is held.
        page.keyboard.down(" ")
        assert not alike(pixels(page), before)
        page.keyboard.up(" ")
        assert alike(pixels(page), before)
        page.keyboard.press("b")
        assert not alike(pixels(page), before)
        page.keyboard.press("b")
        # Slices by the wheel.
        at = page.locator("#slice-told").inner_text()
        page.mouse.wheel(0, -100)
        expect(page.locator("#slice-told")).not_to_have_text(at)
        page.keyboard.press("]")
        expect(page.locator("#slice-told")).to_have_text(at)
        # Verdicts, of a picture that is there.
        shown(page)
        page.keyboard.press("a")
        expect(page.locator("[data-verdict=accepted]")).to_have_attribute("aria-pressed", "true")
        page.keyboard.press("r")
        expect(page.locator("[data-verdict=rejected]")).to_have_attribute("aria-pressed", "true")
        page.keyboard.press("u")
        expect(page.locator("[data-verdict=accepted]")).to_have_attribute("aria-pressed", "true")
        # A filter, by the keyboard.
        page.keyboard.press("/")
        page.locator("[name=verdict]").select_option("mine")
        expect(page.locator("#count")).to_have_text("1 image")
        # What was said is there after a reload.
        page.reload()
        shown(page)
        expect(page.locator("[data-verdict=accepted]")).to_have_attribute("aria-pressed", "true")
        # All models side by side.
        page.keyboard.press("c")
        expect(page.locator("canvas")).to_have_count(2)
        shown(page)
        page.keyboard.press("c")
        page.locator("#level").select_option("studies")
        expect(page.locator("#count")).to_have_text("1 folder")
        page.keyboard.press("?")
        expect(page.locator("#help")).to_be_visible()
        page.keyboard.press("Escape")
        assert page.title() == f"Review of {fake_run.RUN_ID}"
        assert wrong == []
    assert list(read_verdicts(fake.uri)["verdict"]) == ["accepted"]


def test_two_reviewers_one_of_them_blinded(browser, fake):
    with served(fake.uri) as address, opened(browser, address) as (page, wrong):
        page.keyboard.press("a")
        expect(page.locator("[data-verdict=accepted]")).to_have_attribute("aria-pressed", "true")
        with served(fake.uri, reviewer="Bob", blind=True) as other, opened(browser, other) as (second, also_wrong):
            second.keyboard.press("/")
            second.locator("[name=verdict]").select_option("others")
            expect(second.locator("#count")).to_have_text("1 image")
            shown(second)
            told = second.locator("#details")
            expect(told).to_contain_text("Blinded")
            expect(told).not_to_contain_text("Ada")
            blinded = pixels(second)
            second.locator("[data-verdict=rejected]").click()
            expect(told).to_contain_text("Ada")
            second.wait_for_function("() => document.querySelector('.hidden-told') === null")
            assert blinded
            second.locator("#open-agreement").click()
            expect(second.locator("#agreement")).to_contain_text("Read by two or more: 1 image.")
            assert also_wrong == []
        # A cookie of its own for each: the first is still let in.
        page.reload()
        shown(page)
        assert wrong == []
    assert sorted(read_verdicts(fake.uri)["reviewer"]) == ["Ada", "Bob"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_use_it(browser, fake, theme):
    with served(fake.uri) as address, opened(browser, address, color_scheme=theme) as (page, wrong):
        page.keyboard.press("/")
        page.keyboard.press("Escape")
        page.keyboard.press("a")
        expect(page.locator("[data-verdict=accepted]")).to_have_attribute("aria-pressed", "true")
        found = Axe().run(page).response["violations"]
        serious = [one["id"] for one in found if one["impact"] in ("serious", "critical")]
        assert serious == [], [(one["id"], one["nodes"][0]["html"]) for one in found]
        page.locator("#open-help").click()
        found = Axe().run(page).response["violations"]
        assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
        assert wrong == []


def test_without_a_picture_the_heatmap_stands_alone(browser, tmp_path):
    fake = fake_run.make(tmp_path, normal=3, anomalous=3)
    shutil.rmtree(hide(fake.uri, str(fake.pictures)))
    with served(fake.uri) as address, opened(browser, address) as (page, wrong):
        expect(page.locator("figure .note")).to_contain_text("start the review with --manifest MANIFEST")
        alone = pixels(page)
        # Hot somewhere, and nothing of it while it is hidden.
        page.keyboard.press("b")
        hidden = pixels(page)
        assert not alike(alone, hidden)
        assert len(set(hidden)) <= 3
        page.keyboard.press("b")
        page.keyboard.press("a")
        expect(page.locator("[data-verdict=accepted]")).to_have_attribute("aria-pressed", "true")
        # All that failed is the picture, which was refused.
        assert {text.partition("(")[2] for text in wrong} <= {"Not Found)"}
