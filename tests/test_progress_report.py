"""The progress report of a real project in Debian's chromium."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser_fixtures import ARGUMENTS
from installation import Installation, annotate, run_cellai, wait_until, walk_queue
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from converters.backend_client import BackendClient
from converters.project import BackendAddress, link_report

pytestmark = [pytest.mark.browser, pytest.mark.label_studio]

ROUNDS = 4
LABELS_PER_ROUND = 25
CHARTS = [
    "learning-curve",
    "calibration",
    "confusion",
    "precision-recall",
    "labels",
    "uncertainty",
    "labels-per-hour",
]
# What a reader would see as cut off or too small, measured by the page itself.
PROBE = """() => {
    const box = (node) => node.getBoundingClientRect();
    const texts = [...document.querySelectorAll('svg text')];
    return {
        scrolls: document.documentElement.scrollWidth > innerWidth,
        beyond: [...document.querySelectorAll('body *:not(script)')]
            .filter((node) => box(node).right > innerWidth + 1)
            .map((node) => node.outerHTML.slice(0, 100)),
        cut: texts.filter((text) => {
            const [inner, outer] = [box(text), box(text.closest('svg'))];
            return inner.left < outer.left - 1 || inner.right > outer.right + 1
                || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
        }).map((text) => text.textContent),
        smallest: Math.min(...texts.filter((text) => text.textContent)
            .map((text) => parseFloat(getComputedStyle(text).fontSize)
                * box(text.closest('svg')).width / text.closest('svg').viewBox.baseVal.width)),
        broken: [...document.images].filter((image) => !image.naturalWidth).length,
        pictures: document.images.length,
    };
}"""


@pytest.fixture(scope="module")
def labels(demo: Installation, sample_labels: list[str]) -> dict[int, str]:
    """The true class of every task."""
    return {task["id"]: sample_labels[task["data"]["index"]] for task in demo.tasks()}


@pytest.fixture(scope="module")
def learned(demo: Installation, labels: dict[int, str]) -> Iterator[int]:
    """The demo with several trained versions and one label that contradicts the last of them.

    Gives the task of that label, which is taken back in the end.
    """
    for _ in range(ROUNDS):
        n_labels = demo.serving().get("n_labels", 0)
        walk_queue(demo, n_tasks=LABELS_PER_ROUND, labels=labels)
        wait_for_labels(demo, n_labels + LABELS_PER_ROUND)
    task_id, predicted = most_confident(demo)
    classes = sorted(set(labels.values()))
    annotate(demo.label_studio, task_id, next(name for name in classes if name != predicted))
    wait_for_labels(demo, demo.serving()["n_labels"] + 1)
    wait_until(lambda: not demo.status()["waiting"], deadline_s=60, what="end of the job")
    yield task_id
    (annotation,) = demo.label_studio.get(f"api/tasks/{task_id}/annotations/")
    demo.label_studio.request("DELETE", f"api/annotations/{annotation['id']}/")


def wait_for_labels(demo: Installation, n_labels: int) -> None:
    wait_until(
        lambda: demo.serving().get("n_labels", 0) >= n_labels,
        deadline_s=120,
        what=f"version with {n_labels} labels",
    )


def most_confident(demo: Installation) -> tuple[int, str]:
    """The open task of whose class the serving version is most sure, and that class."""
    version = demo.project()["model_version"]
    is_open = {task["id"] for task in demo.tasks() if not task["is_labeled"]}
    rows = [
        row
        for row in demo.label_studio.get("api/predictions/", project=demo.project_id)
        if row["model_version"] == version and row["task"] in is_open
    ]

    def confidence(row: dict[str, Any]) -> float:
        return float(max(row["result"][0]["meta"]["probabilities"].values()))

    best = max(rows, key=confidence)
    return best["task"], best["result"][0]["value"]["choices"][0]


@contextmanager
def browser_page(demo: Installation, **options: Any) -> Iterator[Page]:
    """A page at 1366x768 that knows the backend's password."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (apt install chromium): no browser test ran")
    connection = demo.connection_file
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser.new_page(
            viewport={"width": 1366, "height": 768},
            http_credentials={
                "username": connection.backend_user,
                "password": connection.backend_password,
            },
            **options,
        )
        browser.close()


def report_url(demo: Installation) -> str:
    return f"{demo.connection_file.backend_url}/report/{demo.project_id}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_is_legible_and_fetches_nothing_else(
    demo: Installation, learned: int, scheme: str
) -> None:
    requested: list[str] = []
    complaints: list[str] = []
    with browser_page(demo, color_scheme=scheme) as page:
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(report_url(demo))
        found = page.evaluate(PROBE)
        keep_screenshot(page, f"report-{scheme}")
        for key in CHARTS:
            expect(page.locator(f"#{key} svg")).to_be_visible()
        contradicted = page.locator("#contradicted .cell").all_inner_texts()
        n_uncertain = page.locator("#uncertain .cell").count()

    assert found["beyond"] == []
    assert not found["scrolls"]
    assert found["cut"] == []
    assert found["smallest"] >= 12
    assert found["broken"] == 0
    assert n_uncertain == 8
    assert found["pictures"] >= 2 * n_uncertain
    assert any(f"task {learned}" in text for text in contradicted)
    served = {report_url(demo), f"{demo.connection_file.backend_url}/status"}
    assert {url for url in requested if not url.startswith("data:")} <= served
    assert complaints == []


def test_charts_and_tables_can_be_downloaded(
    demo: Installation, learned: int, tmp_path: Path
) -> None:
    with browser_page(demo, color_scheme="light") as page:
        for key in CHARTS:
            page.goto(report_url(demo))  # after ten downloads from one page Chromium asks
            with page.expect_download() as picture:
                page.click(f"[data-png={key}]")
            assert picture.value.suggested_filename == f"{key}.png"
            picture.value.save_as(tmp_path / f"{key}.png")
            with page.expect_download() as table:
                page.click(f"#{key} a[download]")
            table.value.save_as(tmp_path / f"{key}.csv")
    for key in CHARTS:
        with Image.open(tmp_path / f"{key}.png") as chart:
            assert chart.width == 1120
            assert len(chart.convert("RGB").getcolors(1 << 20) or []) > 20
        assert len((tmp_path / f"{key}.csv").read_text().splitlines()) >= 2
    versions = (tmp_path / "learning-curve.csv").read_text()
    assert demo.project()["model_version"] in versions


def test_open_report_shows_a_new_version_by_itself(
    demo: Installation, learned: int, labels: dict[int, str]
) -> None:
    before = demo.project()["model_version"]
    with browser_page(demo) as page:
        page.goto(report_url(demo))
        expect(page.locator("header")).to_contain_text(before)
        n_labels = demo.serving()["n_labels"] + 20
        walk_queue(demo, n_tasks=20, labels=labels)
        wait_for_labels(demo, n_labels)
        newest = demo.project()["model_version"]
        assert newest != before
        expect(page.locator("header")).to_contain_text(newest, timeout=30_000)


def test_report_is_kept_as_a_file(demo: Installation, learned: int, tmp_path: Path) -> None:
    kept = tmp_path / "report.html"
    answer = run_cellai("report", "--out", kept, "--data-dir", demo.data_dir)
    assert answer.returncode == 0, answer.stderr
    requested: list[str] = []
    with browser_page(demo) as page:
        page.on("request", lambda request: requested.append(request.url))
        page.goto(kept.as_uri())
        expect(page.locator("#learning-curve svg")).to_be_visible()
        found = page.evaluate(PROBE)
        page.set_viewport_size({"width": 720, "height": 1000})  # A4 less its margins
        page.emulate_media(media="print")
        printed = page.evaluate(PROBE)
    assert (found["broken"], found["beyond"]) == (0, [])
    assert (printed["broken"], printed["beyond"]) == (0, [])
    assert {url for url in requested if not url.startswith("data:")} == {kept.as_uri()}


def test_report_asks_for_the_password_and_names_unknown_projects(demo: Installation) -> None:
    connection = demo.connection_file
    assert httpx.get(report_url(demo)).status_code == 401
    assert httpx.get(f"{connection.backend_url}/report").status_code == 401
    auth = (connection.backend_user, connection.backend_password)
    listed = httpx.get(f"{connection.backend_url}/report", auth=auth)
    assert f'href="report/{demo.project_id}"' in listed.text
    missing = httpx.get(f"{connection.backend_url}/report/123456", auth=auth)
    assert missing.status_code == 404
    assert "123456" in missing.json()["error"]


def test_description_leads_to_the_report_and_keeps_what_a_user_wrote(demo: Installation) -> None:
    assert demo.project()["description"] == f"Progress report: {report_url(demo)}"
    backend = demo.connection_file.backend
    moved = BackendAddress("http://127.0.0.1:1", backend.user, backend.password)
    project = f"api/projects/{demo.project_id}/"
    version = demo.project()["model_version"]
    try:
        demo.label_studio.patch(project, {"description": "Smears of May"})
        link_report(demo.label_studio, demo.project_id, backend, public_url=backend.url)
        assert demo.project()["description"] == "Smears of May"

        other_port = f"Progress report: {moved.url}/report/{demo.project_id}"
        other_host = f"Progress report: http://lab.example/report/{demo.project_id}"
        demo.label_studio.patch(project, {"description": f"{other_port}\n{other_host}"})
        link_report(demo.label_studio, demo.project_id, backend, public_url=backend.url)
        assert demo.project()["description"] == (
            f"Progress report: {report_url(demo)}\n{other_host}"
        )

        public = "https://cells.example.org"
        link_report(demo.label_studio, demo.project_id, backend, public_url=public)
        assert demo.project()["description"] == (
            f"Progress report: {public}/report/{demo.project_id}\n{other_host}"
        )
    finally:
        demo.label_studio.patch(project, {"description": f"Progress report: {report_url(demo)}"})
    assert demo.project()["model_version"] == version


def test_client_reads_the_same_page(demo: Installation) -> None:
    client = BackendClient(demo.connection_file.backend)
    html = client.report(demo.project_id)
    client.close()
    assert demo.project()["title"] in html
    assert "data-live" not in html.partition("</head>")[2].partition(">")[0]


def keep_screenshot(page: Page, name: str) -> None:
    """Keep the whole page where SCREENSHOTS says, in 256 colours, for docs and for people."""
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        path = Path(folder) / f"{name}.png"
        page.screenshot(path=path, full_page=True)
        with Image.open(path) as picture:
            small = picture.convert("RGB").quantize(method=Image.Quantize.FASTOCTREE)
        small.save(path, optimize=True)
