"""The labelling page in Debian's chromium, on a project of its own without a backend."""

import itertools
import re
from io import BytesIO

import numpy as np
import pytest
from installation import Installation
from labelling_page import (
    VERSION,
    Labelled,
    local_path,
    marked,
    next_task,
    open_queue,
    screenshot,
)
from PIL import Image
from playwright.sync_api import Page, Response, expect

from converters.project import show_predictions

pytestmark = [pytest.mark.browser, pytest.mark.label_studio]

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
        task_id = next_task(page, after=task_id)

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
    assert next_task(page, after=task_id) == labelled.queue[1]
    assert labelled.choices(task_id) == ["wbc"]


def test_skipped_cell_stays_unlabelled_and_the_next_comes(page: Page, labelled: Labelled) -> None:
    task_id = open_queue(page, labelled)
    page.keyboard.press("Control+Space")
    assert next_task(page, after=task_id) == labelled.queue[1]
    task = labelled.label_studio.get(f"api/tasks/{task_id}/")
    assert (task["cancelled_annotations"], task["total_annotations"]) == (1, 0)


def test_blind_mode_marks_nothing_and_keeps_the_order(page: Page, labelled: Labelled) -> None:
    show_predictions(labelled.label_studio, labelled.project_id, shown=False)
    first = open_queue(page, labelled)
    assert marked(page) == []
    page.keyboard.press("p")
    page.keyboard.press("Enter")
    second = next_task(page, after=first)
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


def test_picture_that_is_gone_says_so_in_its_place(
    page: Page, labelled: Labelled, demo: Installation
) -> None:
    task = labelled.label_studio.get(f"api/tasks/{labelled.queue[0]}/")
    local_path(demo, task["data"]["phase"]).unlink()
    open_queue(page, labelled)
    screenshot(page, "missing-picture")
    (shown, gone) = (
        np.asarray(Image.open(BytesIO(page.get_by_alt_text(name).screenshot())).convert("RGB"))
        for name in ("Amplitude", "Phase")
    )
    notice = np.array([0xDD] * 3, np.uint8)
    assert (gone[8:40, 8:-8] == notice).all()
    assert (gone[gone.shape[0] // 2 - 40 : gone.shape[0] // 2 + 40] < 0x60).any()  # its text
    assert not (shown[8:40, 8:-8] == notice).all()


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
    for title in ["Uncertain first", "Second look", *labelled.config.titles, "Skipped"]:
        expect(page.get_by_text(title).first).to_be_visible()
