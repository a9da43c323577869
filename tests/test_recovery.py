"""A backend killed in the middle of a training loses no label and finishes by itself."""

import os
import signal
from pathlib import Path

import pytest
from installation import Installation, OwnBackend, annotate, wait_until

from converters.backend_client import BackendClient

pytestmark = pytest.mark.label_studio


def test_kill_in_training_loses_no_label(
    backend: OwnBackend, demo: Installation, sample_file: Path, sample_labels: list[str]
) -> None:
    label_studio = demo.label_studio
    client = BackendClient(backend.address)
    with backend.running(CELLAI_EPOCHS="10000") as process:
        project_id = backend.import_source(sample_file)
        wait_until(
            lambda: client.queue_state(project_id).is_sorted, deadline_s=120, what="cold start"
        )
        tasks = label_studio.get(
            "api/tasks/", project=project_id, page_size=300, fields="task_only"
        )["tasks"]
        labels = {task["id"]: sample_labels[task["data"]["index"]] for task in tasks}
        queue = list(labels)
        for task_id in queue[:24]:
            annotate(label_studio, task_id, labels[task_id])
        wait_until(
            lambda: client.queue_state(project_id).stage.startswith("training"),
            deadline_s=60,
            what="training",
        )
        os.killpg(process.pid, signal.SIGKILL)
    for task_id in queue[24:34]:
        annotate(label_studio, task_id, labels[task_id])
    with backend.running():
        wait_until(
            lambda: client.queue_state(project_id).n_labels == 34,
            deadline_s=90,
            what="version with all 34 labels",
        )
        state = wait_until(
            lambda: state if (state := client.queue_state(project_id)).is_sorted else None,
            deadline_s=60,
            what="sorted queue",
        )
        project = label_studio.get(f"api/projects/{project_id}/")
        assert project["model_version"] == state.model_version
        rows = [
            row["task"]
            for row in label_studio.get("api/predictions/", project=project_id)
            if row["model_version"] == state.model_version
        ]
        assert sorted(rows) == sorted(labels)
    client.close()
