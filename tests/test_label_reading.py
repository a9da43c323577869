"""Labels as the learner reads them: the same as the export's, and nothing is left behind."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from installation import Installation, annotate

from backend.label_studio import LabelStudioClient
from converters.label_studio import Connection
from converters.labels import chosen_label

pytestmark = pytest.mark.label_studio

CONTROL = "cell_class"


@pytest.fixture(scope="module")
def labelled(demo: Installation, sample_file: Path) -> Iterator[Installation]:
    """A project with tasks of one label, of several that disagree, and skipped ones."""
    project = demo.new_project(sample_file, "Labels read")
    ids = [task["id"] for task in project.tasks()]
    for number, task_id in enumerate(ids[:12]):
        for label in ("rbc", "wbc", "rbc")[: number % 3 + 1]:
            annotate(project.label_studio, task_id, label)
    for task_id in ids[8:16]:
        project.label_studio.post(
            f"api/tasks/{task_id}/annotations/", {"result": [], "was_cancelled": True}
        )
    yield project
    project.close()


@pytest.fixture
def client(labelled: Installation) -> Iterator[LabelStudioClient]:
    connection = labelled.connection_file
    with closing(LabelStudioClient(connection.label_studio_url, connection.api_key)) as client:
        yield client


def test_labels_are_those_of_the_export(labelled: Installation, client: LabelStudioClient) -> None:
    read, exported = (
        {task["id"]: chosen_label(task["annotations"], from_name=CONTROL) for task in tasks}
        for tasks in (
            client.annotated_tasks(labelled.project_id),
            client.exported_tasks(labelled.project_id),
        )
    )
    votes = {
        task_id: chosen and (chosen.label, chosen.n_annotations, chosen.n_agreeing)
        for task_id, chosen in read.items()
    }
    assert votes == {
        task_id: chosen and (chosen.label, chosen.n_annotations, chosen.n_agreeing)
        for task_id, chosen in exported.items()
    }
    assert sum(vote is not None for vote in votes.values()) == 12
    assert ("rbc", 3, 2) in votes.values()


def test_all_are_read_page_by_page(
    labelled: Installation, client: LabelStudioClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(client.annotated_tasks(labelled.project_id))
    monkeypatch.setattr("backend.label_studio.ANNOTATED_PAGE", 2)
    assert list(client.annotated_tasks(labelled.project_id)) == whole
    assert len(whole) == 16


def test_a_server_that_sends_smaller_pages_loses_no_task(
    labelled: Installation, client: LabelStudioClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TASK_API_PAGE_SIZE_MAX of Label Studio makes it do, which cuts what was asked for."""
    tasks = list(client.tasks(labelled.project_id))
    annotated = list(client.annotated_tasks(labelled.project_id))
    get = Connection.get

    def get_less(self: Connection, path: str, **params: object) -> Any:
        return get(self, path, **params | {"page_size": 7})

    monkeypatch.setattr(Connection, "get", get_less)
    assert list(client.tasks(labelled.project_id)) == tasks
    assert list(client.annotated_tasks(labelled.project_id)) == annotated


def test_report_reads_the_same_with_the_labels_as_from_the_export(
    labelled: Installation, client: LabelStudioClient
) -> None:
    names = ("id", "created_at", "completed_by", "ground_truth", "was_cancelled")
    read, exported = (
        [
            [[annotation[name] for name in names] for annotation in task["annotations"]]
            for task in sorted(tasks, key=lambda task: int(task["id"]))
        ]
        for tasks in (
            client.annotated_tasks(labelled.project_id),
            client.exported_tasks(labelled.project_id),
        )
    )
    assert read == exported
    first = next(client.annotated_tasks(labelled.project_id))["id"]
    (only,) = client.exported_tasks(labelled.project_id, task_ids=[first])
    assert only["id"] == first


def test_reading_leaves_no_file_in_label_studio(
    labelled: Installation, client: LabelStudioClient
) -> None:
    """Label Studio keeps a file of each export, named after its minute and content."""
    folder = labelled.data_dir / "label-studio" / "export"
    before = set(folder.glob(f"project-{labelled.project_id}-*"))
    annotate(labelled.label_studio, labelled.tasks()[-1]["id"], "plt")
    assert list(client.annotated_tasks(labelled.project_id))
    assert set(folder.glob(f"project-{labelled.project_id}-*")) == before
    client.exported_tasks(labelled.project_id)
    assert set(folder.glob(f"project-{labelled.project_id}-*")) > before
