"""The labelling page in Debian's chromium, on a project of its own without a backend."""

import itertools
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from installation import Installation
from PIL import Image
from playwright.sync_api import Page, Response, expect, sync_playwright

from backend.cards import render_card
from converters.crops import ReadOptions
from converters.label_config import TEMPLATE_PATH, LabelConfig, read_label_config
from converters.label_studio import Connection
from converters.placeholder import write_card
from converters.project import ImportOptions, create_project, import_sources

pytestmark = [pytest.mark.browser, pytest.mark.label_studio]

CELLS = 26
VIEWPORT_PX = (1366, 768)
VERSION = "page-test-v1"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# What an annotator would see as missing or cut off, measured by the page itself.
PROBE = """async () => {
    const box = (node) => node.getBoundingClientRect();
    const visible = (node) => box(node).width > 0;
    const pictures = [...document.querySelectorAll('.cellai img')].filter(visible);
    const cam = document.querySelector('.cc-cam');
    let camWidth = 0;
    if (cam) {
        const picture = new Image();
        picture.src = getComputedStyle(cam).backgroundImage.slice(5, -2);
        await picture.decode();
        camWidth = picture.naturalWidth;
    }
    const bottom = box(document.querySelector('.lsf-bottombar')).top;
    const parts = [...document.querySelectorAll('.cellai *')].filter(visible);
    return {
        pictures: pictures.map((p) => [p.alt, p.naturalWidth, Math.round(box(p).width)]),
        camWidth,
        bars: [...document.querySelectorAll('.cc-bar > i')].map((bar) => box(bar).width),
        cut: parts.filter((part) => box(part).bottom > bottom + 1 || box(part).right > innerWidth
                || !part.children.length && part.scrollWidth > part.clientWidth + 1
                && part.clientWidth > 0 && part.textContent.trim())
            .map((part) => part.outerHTML.slice(0, 120)),
        scrolls: document.documentElement.scrollWidth > innerWidth,
    };
}"""


@dataclass(frozen=True)
class Labelled:
    """A project whose queue is known."""

    url: str
    label_studio: Connection
    project_id: int
    config: LabelConfig
    queue: list[int]  # task ids, lowest score first
    predicted: dict[int, str]

    def choices(self, task_id: int) -> list[str]:
        """Stored classes of a task's annotation."""
        (annotation,) = self.label_studio.get(f"api/tasks/{task_id}/annotations/")
        return [choice for row in annotation["result"] for choice in row["value"]["choices"]]


@pytest.fixture(scope="module")
def page(demo: Installation) -> Iterator[Page]:
    """A browser, logged in."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (apt install chromium): no browser test ran")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        width, height = VIEWPORT_PX
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(f"{demo.connection_file.label_studio_url}/user/login/")
        page.fill("input[name=email]", demo.connection_file.email)
        page.fill("input[name=password]", demo.connection_file.password)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "login" not in url)
        yield page
        browser.close()


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


def predict(
    demo: Installation, project_id: int, config: LabelConfig, tasks: list[dict[str, Any]]
) -> Labelled:
    """Give every task a made-up prediction with its card; the scores are in no order."""
    rng = np.random.default_rng(7)
    rows: list[dict[str, Any]] = []
    scores: dict[int, float] = {}
    predicted: dict[int, str] = {}
    for task in tasks:
        probabilities = rng.dirichlet([0.6] * len(config.classes)).astype(np.float32)
        entropy = -float((probabilities * np.log(probabilities + 1e-9)).sum())
        uncertainty = entropy / math.log(len(config.classes))
        predicted[task["id"]] = config.classes[int(probabilities.argmax())]
        scores[task["id"]] = 1 - uncertainty
        write_card(
            local_path(demo, task["data"]["card"]),
            render_card(
                cell=np.asarray(Image.open(local_path(demo, task["data"]["phase"])).convert("RGB")),
                heat=np.outer(np.hanning(9), np.hanning(9)).astype(np.float32),
                classes=config.titles,
                probabilities=probabilities,
                uncertainty=uncertainty,
                model_version=VERSION,
                n_labels=142,
            ),
        )
        rows.append(
            {
                "task": task["id"],
                "score": scores[task["id"]],
                "model_version": VERSION,
                "result": [choice(config, predicted[task["id"]])],
            }
        )
    connection = demo.label_studio
    answer = connection.post(f"api/projects/{project_id}/import/predictions", rows)
    assert answer["created"] == len(tasks)
    connection.patch(f"api/projects/{project_id}/", {"model_version": VERSION})
    return Labelled(
        demo.connection_file.label_studio_url,
        connection,
        project_id,
        config,
        sorted(scores, key=lambda task_id: scores[task_id]),
        predicted,
    )


def choice(config: LabelConfig, class_id: str) -> dict[str, Any]:
    return {
        "from_name": config.from_name,
        "to_name": config.to_name,
        "type": "choices",
        "value": {"choices": [class_id]},
    }


def local_path(demo: Installation, url: str) -> Path:
    """The file behind a local-files URL."""
    (name,) = parse_qs(urlsplit(url).query)["d"]
    return Path(demo.data_dir, "files", name)


def open_queue(page: Page, labelled: Labelled) -> int:
    """Open the label stream as a link does, without a click; returns the task on the page."""
    page.goto(f"{labelled.url}/projects/{labelled.project_id}/data?labeling=1")
    return settled(page, after=0)


def settled(page: Page, *, after: int) -> int:
    """Wait for a task other than `after` with its pictures; returns its id."""
    page.wait_for_function(
        """(after) => {
            const shown = document.querySelector('.lsf-current-task__task-id')?.firstChild;
            const pictures = [...document.querySelectorAll('.cellai img')];
            return shown && shown.textContent != after && document.querySelector('.cellai-card *')
                && pictures.every((picture) => !picture.getAttribute('src') || picture.complete)
                && document.querySelector('.lsf-choices');
        }""",
        arg=str(after),
    )
    text = page.locator(".lsf-current-task__task-id").evaluate(
        "node => node.firstChild.textContent"
    )
    return int(re.sub(r"\D", "", str(text)))


def marked(page: Page) -> list[str]:
    """Ids of the marked classes."""
    return [
        str(box.get_attribute("name"))
        for box in page.locator(".lsf-choices input").all()
        if box.is_checked()
    ]


def screenshot(page: Page, name: str) -> None:
    """Keep the picture where SCREENSHOTS says, for docs and for people."""
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        page.wait_for_timeout(500)
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_every_picture_and_the_card_show_and_nothing_is_cut_off(
    page: Page, labelled: Labelled
) -> None:
    answers: list[Response] = []
    page.on("response", lambda answer: answers.append(answer))  # noqa: PLW0108 - no builtins here
    open_queue(page, labelled)
    found = page.evaluate(PROBE)
    screenshot(page, "labelling-page")

    assert [name for name, *_ in found["pictures"]] == ["Phase", "Amplitude"]
    assert all(pixels > 0 and width > 400 for _, pixels, width in found["pictures"])
    assert found["camWidth"] > 0
    assert len(found["bars"]) == len(labelled.config.classes)
    assert max(found["bars"]) > 20
    assert found["cut"] == []
    assert not found["scrolls"]
    card = page.locator(".cc").inner_text()
    assert "uncertainty" in card
    assert f"Model {VERSION}, trained on 142 labels" in card
    for title in labelled.config.titles:
        expect(page.locator(".lsf-choices").get_by_text(title)).to_be_visible()
    files = [answer for answer in answers if "local-files" in answer.url]
    assert len(files) >= 3
    assert all(answer.ok or answer.status == 304 for answer in files)


def test_twenty_cells_by_keyboard_alone_come_in_the_order_of_the_queue(
    page: Page, labelled: Labelled
) -> None:
    keys = dict(zip(labelled.config.classes, "rwpao", strict=True))
    others = itertools.cycle(labelled.config.classes)
    shown: list[int] = []
    given: dict[int, str] = {}
    task_id = open_queue(page, labelled)
    for turn in range(20):
        predicted = labelled.predicted[task_id]
        assert marked(page) == [predicted]
        given[task_id] = predicted
        if turn % 2:  # correct every other cell
            given[task_id] = next(name for name in others if name != predicted)
            page.keyboard.press(keys[given[task_id]])
            assert marked(page) == [given[task_id]]
        shown.append(task_id)
        page.keyboard.press("Enter")
        task_id = settled(page, after=task_id)

    assert shown == labelled.queue[:20]
    assert task_id == labelled.queue[20]
    assert {task: labelled.choices(task) for task in shown} == {
        task: [class_id] for task, class_id in given.items()
    }


def test_label_all_tasks_follows_the_project_sampling(page: Page, labelled: Labelled) -> None:
    page.goto(f"{labelled.url}/projects/{labelled.project_id}/data")
    with page.expect_response(re.compile("id=next_task")) as answer:
        page.get_by_role("button", name="Label All Tasks").click()
    assert answer.value.json()["id"] == labelled.queue[0]
    assert answer.value.json()["queue"] == "Active learning or random queue"
    page.evaluate("localStorage.removeItem('dm:labelstream:mode')")


def test_key_of_the_marked_class_unmarks_it_and_nothing_empty_is_stored(
    page: Page, labelled: Labelled
) -> None:
    task_id = open_queue(page, labelled)
    keys = dict(zip(labelled.config.classes, "rwpao", strict=True))
    page.keyboard.press(keys[labelled.predicted[task_id]])
    assert marked(page) == []
    page.keyboard.press("Enter")
    expect(page.get_by_text("No class is marked.")).to_be_visible()
    assert labelled.label_studio.get(f"api/tasks/{task_id}/annotations/") == []

    page.keyboard.press("w")
    page.keyboard.press("Enter")
    assert settled(page, after=task_id) == labelled.queue[1]
    assert labelled.choices(task_id) == ["wbc"]


def test_skipped_cell_stays_unlabelled_and_the_next_comes(page: Page, labelled: Labelled) -> None:
    task_id = open_queue(page, labelled)
    page.keyboard.press("Control+Space")
    assert settled(page, after=task_id) == labelled.queue[1]
    task = labelled.label_studio.get(f"api/tasks/{task_id}/")
    assert (task["cancelled_annotations"], task["total_annotations"]) == (1, 0)


def test_blind_mode_marks_nothing_and_keeps_the_order(page: Page, labelled: Labelled) -> None:
    project = f"api/projects/{labelled.project_id}/"
    labelled.label_studio.patch(project, {"show_collab_predictions": False})
    labelled.label_studio.patch(project, {"model_version": VERSION})
    first = open_queue(page, labelled)
    assert marked(page) == []
    page.keyboard.press("p")
    page.keyboard.press("Enter")
    second = settled(page, after=first)
    assert [first, second] == labelled.queue[:2]
    assert labelled.choices(first) == ["plt"]


@pytest.mark.parametrize("kind", ["phase", "image"])
def test_source_without_a_picture_shows_no_broken_one(
    page: Page, labelled: Labelled, kind: str
) -> None:
    task = labelled.label_studio.get(f"api/tasks/{labelled.queue[0]}/")
    only = {"phase": "", "amplitude": "", "image": "", kind: task["data"]["phase"]}
    labelled.label_studio.patch(f"api/tasks/{task['id']}/", {"data": {**task["data"], **only}})
    assert open_queue(page, labelled) == task["id"]
    found = page.evaluate(PROBE)
    assert [(name, pixels > 0) for name, pixels, _ in found["pictures"]] == [(kind.title(), True)]
    assert page.locator(".cellai figure:visible").count() == 1
    assert found["cut"] == []


def test_data_manager_opens_on_the_uncertain_cells_with_thumbnails(
    page: Page, labelled: Labelled
) -> None:
    page.goto(f"{labelled.url}/projects/{labelled.project_id}/data")
    page.wait_for_function("() => [...document.images].filter((i) => i.width >= 40).length >= 8")
    screenshot(page, "data-manager")
    loaded = page.evaluate(
        "() => [...document.images].filter((i) => i.width >= 40).map((i) => i.naturalWidth)"
    )
    assert min(loaded) > 0
    text = page.locator("body").inner_text()
    scores = [float(score) for score in re.findall(r"^0\.\d{3}$", text, flags=re.MULTILINE)]
    assert len(scores) >= 5
    assert scores == sorted(scores)
    for title in ["Uncertain first", *labelled.config.titles, "Skipped"]:
        expect(page.get_by_text(title).first).to_be_visible()
