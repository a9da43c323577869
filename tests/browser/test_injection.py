"""Names with HTML and scripts in card, report and list of reports, in Debian's chromium."""

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from playwright.sync_api import Page, sync_playwright

from backend.cards import render_card
from backend.report_page import ListedProject, render_list
from converters.placeholder import render_placeholder

pytestmark = pytest.mark.browser

HOSTILE = (
    '"><script>window.ran = 1</script><img src=x onerror="window.ran = 2">',
    "'><svg onload='window.ran = 3'>",
    "</style><script>window.ran = 4</script><style>",
    "</title></textarea><iframe srcdoc='<script>parent.ran = 5</script>'>",
    '{{ 7 * 7 }} ${window.ran = 6} <a href="javascript:window.ran = 7">x</a>',
    "&lt;b&gt; \u202e right to left \x00",
)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Debian's chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser.new_page()
        browser.close()


def shown(page: Page, html: str) -> str:
    """Text of a page, once everything in it had its chance to run."""
    asked: list[str] = []
    page.evaluate("delete window.ran")  # set_content keeps the window
    page.on("request", lambda request: asked.append(request.url))
    page.set_content(html, wait_until="load")
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    assert page.locator("iframe, img[src=x], svg[onload], a[href^=javascript]").count() == 0
    assert not [url for url in asked if not url.startswith(("data:", "about:", "blob:"))]
    return page.locator("body").inner_text()


def test_harness_notices_a_script(page: Page) -> None:
    with pytest.raises(AssertionError):
        shown(page, f"<p>{HOSTILE[0]}</p>")


@pytest.mark.parametrize("name", HOSTILE)
def test_card(page: Page, name: str) -> None:
    card = render_card(
        cell=np.zeros((96, 96, 3), np.uint8),
        heat=np.zeros((6, 6), np.float32),
        classes=[name, "other"],
        probabilities=np.array([0.9, 0.1], np.float32),
        uncertainty=0.2,
        model_version=name,
        n_labels=3,
    )
    text = shown(page, card)
    assert text.count(name.replace("\x00", "\ufffd")[:20]) == 2


@pytest.mark.parametrize("name", HOSTILE)
def test_card_before_the_first_version(page: Page, name: str) -> None:
    assert name[:20] in shown(page, render_placeholder(name, model_version=name))


@pytest.mark.parametrize("name", HOSTILE)
def test_list_of_reports(page: Page, name: str) -> None:
    assert name[:20] in shown(page, render_list([ListedProject(3, name, 7, 0.5)]))
