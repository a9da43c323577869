"""Fixtures: Debian's chromium, and a project of its own without a backend."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from installation import Installation
from labelling_page import Labelled, predict
from playwright.sync_api import Browser, Page, sync_playwright

from converters.crops import ReadOptions
from converters.importing import ImportOptions, import_sources
from converters.label_config import TEMPLATE_PATH, read_label_config
from converters.project import create_project

CELLS = 26
VIEWPORT_PX = (1366, 768)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (apt install chromium): no browser test ran")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(demo: Installation, browser: Browser) -> Page:
    """A page of the project's owner, logged in."""
    width, height = VIEWPORT_PX
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(f"{demo.connection_file.label_studio_url}/user/login/")
    page.fill("input[name=email]", demo.connection_file.email)
    page.fill("input[name=password]", demo.connection_file.password)
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "login" not in url)
    return page


@pytest.fixture
def labelled(demo: Installation, sample_file: Path) -> Labelled:
    """Cells of the sample with predictions and cards, imported without a backend."""
    connection = demo.label_studio
    xml = TEMPLATE_PATH.read_text(encoding="utf-8")
    project_id = create_project(connection, title="Labelling page", label_config=xml)
    config = read_label_config(xml)
    import_sources(
        connection,
        project_id,
        [sample_file],
        files_dir=demo.data_dir / "files",
        options=ImportOptions(read=ReadOptions(limit=CELLS), use_labels=False),
        on_progress=lambda _: None,
    )
    tasks = connection.get("api/tasks/", project=project_id, page_size=CELLS, fields="all")["tasks"]
    return predict(demo, project_id, config, tasks)
