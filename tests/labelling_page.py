"""The labelling page as the browser tests drive it, and the project that it shows."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from installation import Installation
from PIL import Image
from playwright.sync_api import Page

from backend.cards import render_card
from converters.label_config import LabelConfig
from converters.label_studio import Connection
from converters.placeholder import write_card

VERSION = "page-test-v1"


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

    def author(self, task_id: int) -> int:
        """The user whose annotation a task has."""
        (annotation,) = self.label_studio.get(f"api/tasks/{task_id}/annotations/")
        return int(annotation["completed_by"])


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


def card_file(demo: Installation, task: dict[str, Any]) -> Path:
    """The file of a task's card."""
    return local_path(demo, task["data"]["card"])


def local_path(demo: Installation, url: str) -> Path:
    """The file behind a local-files URL."""
    (name,) = parse_qs(urlsplit(url).query)["d"]
    return Path(demo.data_dir, "files", name)


def open_queue(page: Page, labelled: Labelled) -> int:
    """Open the label stream as a link does, without a click; returns the task on the page."""
    page.goto(f"{labelled.url}/projects/{labelled.project_id}/data?labeling=1")
    return next_task(page, after=0)


def label_all_tasks(page: Page, labelled: Labelled) -> int:
    """Press the button above the table; returns the task on the page."""
    page.goto(f"{labelled.url}/projects/{labelled.project_id}/data")
    page.get_by_role("button", name="Label All Tasks").click()
    return next_task(page, after=0)


def next_task(page: Page, *, after: int) -> int:
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
