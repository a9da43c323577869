"""Names with HTML and scripts in card, report and labelling page, in Debian's chromium."""

import shutil
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from installation import Installation
from labelling_page import next_task, open_queue, predict, screenshot
from made_up_report import report_of
from playwright.sync_api import Browser, Page

from backend.cards import render_card
from backend.report_page import ListedProject, render_list, render_report
from converters.crops import ReadOptions
from converters.importing import ImportOptions, import_sources
from converters.label_config import read_label_config, write_label_config
from converters.placeholder import render_placeholder
from converters.project import create_project

pytestmark = pytest.mark.browser

HOSTILE = (
    '"><script>window.ran = 1</script><img src=x onerror="window.ran = 2">',
    "'><svg onload='window.ran = 3'>",
    "</style><script>window.ran = 4</script><style>",
    "</title></textarea><iframe srcdoc='<script>parent.ran = 5</script>'>",
    '{{ 7 * 7 }} ${window.ran = 6} <a href="javascript:window.ran = 7">x</a>',
    "&lt;b&gt; \u202e right to left \x00",
)


# What these names would put into a page if one of them became markup.
PLANTED = "iframe[srcdoc], img[src=x], svg[onload], a[href^=javascript]"
# Label Studio stores no `$` in a class and no slash can stand in a file's name.
CLASS_NAMES = HOSTILE[:4]
FILE_NAME = HOSTILE[0].replace("/", "") + ".seg"


@pytest.fixture(scope="module")
def blank_page(browser: Browser) -> Page:
    return browser.new_page()


def shown(page: Page, html: str) -> str:
    """Text of a page, once everything in it had its chance to run."""
    asked: list[str] = []
    page.evaluate("delete window.ran")  # set_content keeps the window
    page.on("request", lambda request: asked.append(request.url))
    page.set_content(html, wait_until="load")
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    assert page.locator(PLANTED).count() == 0
    assert not [url for url in asked if not url.startswith(("data:", "about:", "blob:"))]
    return page.locator("body").inner_text()


def test_harness_notices_a_script(blank_page: Page) -> None:
    with pytest.raises(AssertionError):
        shown(blank_page, f"<p>{HOSTILE[0]}</p>")


@pytest.mark.parametrize("name", HOSTILE)
def test_card(blank_page: Page, name: str) -> None:
    card = render_card(
        cell=np.zeros((96, 96, 3), np.uint8),
        heat=np.zeros((6, 6), np.float32),
        classes=[name, "other"],
        probabilities=np.array([0.9, 0.1], np.float32),
        uncertainty=0.2,
        model_version=name,
        n_labels=3,
    )
    text = shown(blank_page, card)
    assert text.count(name.replace("\x00", "\ufffd")[:20]) == 2


@pytest.mark.parametrize("name", HOSTILE)
def test_card_before_the_first_version(blank_page: Page, name: str) -> None:
    assert name[:20] in shown(blank_page, render_placeholder(name, model_version=name))


@pytest.mark.parametrize("name", HOSTILE)
def test_list_of_reports(blank_page: Page, name: str) -> None:
    assert name[:20] in shown(blank_page, render_list([ListedProject(3, name, 7, 0.5)]))


@pytest.mark.parametrize("name", HOSTILE)
def test_report(blank_page: Page, name: str) -> None:
    text = shown(blank_page, render_report(report_of(name), is_live=False))
    assert text.count(name.replace("\x00", "\ufffd")[:20]) > 5


@pytest.mark.label_studio
def test_labelling_page(demo: Installation, page: Page, sample_file: Path, tmp_path: Path) -> None:
    """Classes and the file are named so; the page shows the names and runs nothing."""
    source = tmp_path / FILE_NAME
    shutil.copy(sample_file, source)
    xml = write_label_config(CLASS_NAMES)
    connection = demo.label_studio
    project_id = create_project(connection, title=HOSTILE[1], label_config=xml)
    import_sources(
        connection,
        project_id,
        [source],
        files_dir=demo.data_dir / "files",
        options=ImportOptions(read=ReadOptions(limit=3), use_labels=False),
        on_progress=lambda _: None,
    )
    tasks = connection.get("api/tasks/", project=project_id, fields="all")["tasks"]
    labelled = predict(demo, project_id, read_label_config(xml), tasks)

    asked: list[str] = []
    page.on("request", lambda request: asked.append(urlsplit(request.url).path))
    first = open_queue(page, labelled)
    page.wait_for_timeout(500)
    text = page.locator("body").inner_text()
    screenshot(page, "hostile-names")
    page.keyboard.press("Enter")
    next_task(page, after=first)

    assert FILE_NAME in text
    assert all(text.count(name) >= 1 for name in CLASS_NAMES)
    assert [frame.evaluate("window.ran") for frame in page.frames] == [None] * len(page.frames)
    assert page.locator(PLANTED).count() == 0
    assert "x" not in {path.rpartition("/")[2] for path in asked}
    assert labelled.choices(first) == [labelled.predicted[first]]
