"""Labels as the learner reads them: the same as the export's, and nothing is left behind."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from installation import Installation, annotate

from backend.label_studio import LabelStudioClient
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
