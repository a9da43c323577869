"""Two people label one project at once, each in a browser of their own."""

from collections.abc import Iterator

import pytest
from installation import Installation
from labelling_page import Labelled, label_all_tasks, next_task, open_queue
from playwright.sync_api import Browser, BrowserContext, Page

from backend.label_studio import LabelStudioClient
from backend.training_set import SnapshotReader

pytestmark = [pytest.mark.browser, pytest.mark.label_studio]

TURNS = 8


@pytest.fixture(scope="module")
def annotators(demo: Installation, page: Page, browser: Browser) -> Iterator[list[Page]]:
    """The owner's page, and that of somebody who joined by the invitation link."""
    context = browser.new_context(viewport=page.viewport_size)
    yield [page, join(demo, context)]
    context.close()


def join(demo: Installation, context: BrowserContext) -> Page:
    """Sign up with the organisation's invitation link, as a new member of the team does."""
    page = context.new_page()
    invitation = demo.label_studio.get("api/invite")["invite_url"]
    page.goto(demo.connection_file.label_studio_url + invitation)
    page.fill("input[name=email]", "second@example.org")
    page.fill("input[name=password]", "correct horse battery")
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "signup" not in url)
    return page


def test_two_people_never_get_the_same_cell_and_both_the_top_of_the_queue(
    annotators: list[Page], labelled: Labelled
) -> None:
    """With "Label All Tasks" once; from then on the printed link does the same."""
    shown = [label_all_tasks(page, labelled) for page in annotators]
    assert shown == labelled.queue[:2]
    done: list[int] = []
    for _ in range(TURNS):
        for turn, page in enumerate(annotators):
            still_open = [task for task in labelled.queue if task not in done]
            assert shown[turn] in still_open[:2]
            page.keyboard.press("Enter")
            done.append(shown[turn])
            shown[turn] = next_task(page, after=shown[turn])
    assert len(set(done)) == 2 * TURNS
    assert set(done) == set(labelled.queue[: 2 * TURNS])
    authors = [labelled.author(task) for task in done]
    assert len(set(authors)) == 2
    assert authors == authors[:2] * TURNS

    assert [open_queue(page, labelled) for page in annotators] == shown
    assert shown[0] != shown[1]


def test_the_link_alone_gives_both_the_same_cell_and_one_label_counts(
    annotators: list[Page], labelled: Labelled, demo: Installation
) -> None:
    """Why docs/labelling.md tells teams to press "Label All Tasks" first."""
    for page in annotators:
        page.evaluate("localStorage.removeItem('dm:labelstream:mode')")
    assert [open_queue(page, labelled) for page in annotators] == [labelled.queue[0]] * 2
    task = labelled.queue[0]
    others = [name for name in labelled.config.classes if name != labelled.predicted[task]]
    for page, class_id in zip(annotators, others, strict=False):
        page.keyboard.press(class_id[0])
        page.keyboard.press("Enter")
        next_task(page, after=task)

    first, second = labelled.label_studio.get(f"api/tasks/{task}/annotations/")
    if first["id"] > second["id"]:
        first, second = second, first
    assert label_of(demo, labelled, task) == others[1]  # a tie goes to the latest
    labelled.label_studio.patch(f"api/annotations/{first['id']}/", {"ground_truth": True})
    assert label_of(demo, labelled, task) == others[0]


def label_of(demo: Installation, labelled: Labelled, task: int) -> str:
    """The label of a task as the training reads it from Label Studio."""
    connection = demo.connection_file
    client = LabelStudioClient(connection.label_studio_url, connection.api_key)
    try:
        snapshot = SnapshotReader(client).read(labelled.project_id)
    finally:
        client.close()
    return labelled.config.classes[snapshot.labels[task]]
