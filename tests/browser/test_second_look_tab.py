"""Wrong labels stand at the top of the tab "Second look" once the model has learned."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from installation import Installation, run_cellai, scores_by_task, wait_until
from labelling_page import screenshot
from playwright.sync_api import Page

from converters.screen import DOUBTED_BELOW

pytestmark = pytest.mark.label_studio

CELLS = 150
WRONG = 6


@dataclass(frozen=True)
class Mislabelled:
    """A project of labelled cells, some of them wrongly."""

    demo: Installation
    project_id: int
    wrong: set[int]  # task ids

    def tab(self, title: str) -> dict[str, Any]:
        tabs = self.demo.label_studio.get("api/dm/views/", project=self.project_id)
        return next(tab for tab in tabs if tab["data"]["title"] == title)

    def listed(self, title: str) -> list[int]:
        """Task ids of a tab of the Data Manager, from the top."""
        rows = self.demo.label_studio.get(
            "api/tasks/", project=self.project_id, view=self.tab(title)["id"], page_size=CELLS
        )["tasks"]
        return [row["id"] for row in rows]


@pytest.fixture(scope="module")
def mislabelled(demo: Installation, sample_file: Path) -> Mislabelled:
    """The sample with its labels, of which every 25th is then changed to a common other one."""
    answer = run_cellai(
        *("import", sample_file, "--title", "second look", "--limit", CELLS),
        *("--data-dir", demo.data_dir),
    )
    assert answer.returncode == 0, answer.stderr
    project_id = int(answer.stdout)
    wait_until(
        lambda: demo.status(project_id).get("model_version"), deadline_s=90, what="first version"
    )
    rows = demo.label_studio.get(f"api/projects/{project_id}/export", exportType="JSON")
    assert len(rows) == CELLS
    right = {row["id"]: label_of(row["annotations"][0]) for row in rows}
    (first, _), (second, _) = Counter(right.values()).most_common(2)  # rare ones are not judged
    wrong = set(sorted(right)[:: CELLS // WRONG])
    for row in rows:
        if row["id"] in wrong:
            other = second if right[row["id"]] == first else first
            (annotation,) = row["annotations"]
            annotation["result"][0]["value"]["choices"] = [other]
            demo.label_studio.patch(
                f"api/annotations/{annotation['id']}/", {"result": annotation["result"]}
            )
    return Mislabelled(demo, project_id, wrong)


def label_of(annotation: dict[str, Any]) -> str:
    (region,) = annotation["result"]
    return str(region["value"]["choices"][0])


def test_wrong_labels_come_first(mislabelled: Mislabelled) -> None:
    wait_until(
        lambda: set(mislabelled.listed("Second look")[:WRONG]) == mislabelled.wrong,
        deadline_s=90,
        what="tab with the wrong labels at its top",
    )
    listed = mislabelled.listed("Second look")
    assert len(listed) < 2 * WRONG
    label_studio, project_id = mislabelled.demo.label_studio, mislabelled.project_id
    version = label_studio.get(f"api/projects/{project_id}/")["model_version"]
    scores = scores_by_task(label_studio, project_id, version)
    assert listed == sorted(
        (t for t in scores if scores[t] < DOUBTED_BELOW), key=scores.__getitem__
    )


@pytest.mark.browser
def test_tab_opens_with_pictures_and_the_least_believed_label_first(
    page: Page, mislabelled: Mislabelled
) -> None:
    url = mislabelled.demo.connection_file.label_studio_url
    tab = mislabelled.tab("Second look")["id"]
    page.goto(f"{url}/projects/{mislabelled.project_id}/data?tab={tab}")
    page.wait_for_function("() => [...document.images].filter((i) => i.width >= 40).length >= 5")
    screenshot(page, "second-look")
    text = page.locator("body").inner_text()
    scores = [float(score) for score in re.findall(r"^0\.\d{3}$", text, flags=re.MULTILINE)]
    assert len(scores) >= 5
    assert scores == sorted(scores)
    assert scores[-1] <= DOUBTED_BELOW
