"""A blind project: nobody sees what the model thinks, version after version."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from installation import Installation, annotate, run_cellai, scores_by_task, wait_until
from labelling_page import card_file, marked, next_task, screenshot
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.label_studio]

CELLS = 40
LABELS = ["rbc", "wbc"] * 3


@pytest.fixture
def blind(demo: Installation, sample_file: Path) -> Iterator[Installation]:
    """The installation, looking at a blind project on which the model has been trained."""
    answer = run_cellai(
        *("import", sample_file, "--no-labels", "--limit", CELLS, "--title", "blind", "--blind"),
        *("--data-dir", demo.data_dir),
    )
    assert answer.returncode == 0, answer.stderr
    own = demo.other_project(int(answer.stdout))
    wait_until(lambda: own.project()["model_version"], deadline_s=90, what="cold start")
    for task, label in zip(own.tasks(), LABELS, strict=False):
        annotate(own.label_studio, task["id"], label)
    wait_until(
        lambda: own.serving().get("n_labels") == len(LABELS), deadline_s=90, what="trained version"
    )
    yield own
    own.close()


def cards_say(installation: Installation, text: str) -> bool:
    cards = [card_file(installation, task).read_text() for task in installation.tasks()]
    return all(text in card for card in cards)


def test_new_version_keeps_a_blind_project_blind_until_it_is_told_otherwise(
    page: Page, blind: Installation, sample_file: Path
) -> None:
    project = blind.project()
    assert project["show_collab_predictions"] is False
    scores = scores_by_task(blind.label_studio, blind.project_id, project["model_version"])
    is_open = [task["id"] for task in blind.tasks() if not task["is_labeled"]]
    queue = sorted(is_open, key=scores.__getitem__)
    wait_until(lambda: cards_say(blind, "Blind labelling"), deadline_s=60, what="blind cards")
    assert not cards_say(blind, "uncertainty")

    url = f"{blind.connection_file.label_studio_url}/projects/{blind.project_id}/data?labeling=1"
    page.goto(url)
    assert next_task(page, after=0) == queue[0]
    assert marked(page) == []
    expect(page.get_by_text("Blind labelling")).to_be_visible()
    assert page.locator(".cc").count() == 0
    screenshot(page, "blind")
    page.keyboard.press("p")
    page.keyboard.press("Enter")
    assert next_task(page, after=queue[0]) == queue[1]

    answer = run_cellai(
        *("import", sample_file, "--no-labels", "--limit", CELLS, "--no-blind"),
        *("--data-dir", blind.data_dir, "--project", blind.project_id),
    )
    assert answer.returncode == 0, answer.stderr
    wait_until(lambda: cards_say(blind, "uncertainty"), deadline_s=90, what="cards with classes")
    page.goto(url)
    next_task(page, after=0)
    assert len(marked(page)) == 1
    expect(page.locator(".cc")).to_be_visible()
