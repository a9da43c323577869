"""Tables of the commands say what is known, in one line per project."""

from typing import Any

import pytest
from rich.console import Console

from converters.tables import status_table

ERROR = "Two questions of classes: 'a', 'b'. Leave one of them in the interface."


def shown(**differing: Any) -> str:
    project = {
        "project_id": 4,
        "model_version": "cellai-0002",
        "versions": [],
        "jobs": [],
        "open_tasks": 17,
    }
    console = Console(width=200)
    with console.capture() as capture:
        console.print(status_table([project | differing]))
    return capture.get()


@pytest.mark.parametrize(("open_tasks", "words"), [(17, " 17 "), (0, " 0 "), (None, " gone ")])
def test_open_tasks(open_tasks: int | None, words: str) -> None:
    assert words in shown(open_tasks=open_tasks)


def test_failed_job_says_why_in_a_sentence() -> None:
    table = shown(jobs=[{"state": "failed", "stage": "scoring", "error": ERROR}])
    assert "failed scoring: Two questions of classes: 'a', 'b'. " in table
    assert "Leave" not in table


def test_running_job_and_none() -> None:
    assert " running scoring " in shown(
        jobs=[{"state": "running", "stage": "scoring", "error": None}]
    )
    assert " none " in shown()
