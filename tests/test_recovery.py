"""A backend killed in the middle of a training loses no label and finishes by itself."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from installation import Installation, annotate, free_port, run_cellai, wait_until

from converters.backend_client import BackendClient
from converters.project import BackendAddress

pytestmark = pytest.mark.label_studio


@dataclass
class OwnBackend:
    """A backend beside the installation's own, on its Label Studio."""

    demo: Installation
    data_dir: Path
    weights: Path
    address: BackendAddress

    @contextmanager
    def running(self, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
        """Served by gunicorn, with the container's command, until the block ends."""
        connection = self.demo.connection_file
        process = subprocess.Popen(
            [
                Path(sys.executable).with_name("gunicorn"),
                "--config",
                "python:backend.gunicorn_conf",
                "backend._wsgi:app",
            ],
            env=os.environ
            | {
                "CELLAI_LABEL_STUDIO_URL": connection.label_studio_url,
                "CELLAI_LABEL_STUDIO_API_KEY": connection.api_key,
                "CELLAI_DATA_DIR": str(self.data_dir),
                "CELLAI_FILES_DIR": str(self.demo.data_dir / "files"),
                "CELLAI_PORT": self.address.url.rpartition(":")[2],
                "CELLAI_BASIC_AUTH_USER": self.address.user,
                "CELLAI_BASIC_AUTH_PASSWORD": self.address.password,
                "CELLAI_WEIGHTS": str(self.weights),
                "CELLAI_QUIET_SECONDS": "1",
            }
            | settings,
            start_new_session=True,
        )
        client = BackendClient(self.address)
        try:
            wait_until(client.is_ready, deadline_s=120, what="ready backend")
            yield process
        finally:
            client.close()
            if process.poll() is None:
                process.terminate()
            process.wait(60)


@pytest.fixture
def backend(demo: Installation, weights: Path, tmp_path: Path) -> OwnBackend:
    address = BackendAddress(f"http://127.0.0.1:{free_port()}", "tester", "a secret")
    return OwnBackend(demo, tmp_path / "backend", weights, address)


def test_kill_in_training_loses_no_label(
    backend: OwnBackend, demo: Installation, sample_file: Path, sample_labels: list[str]
) -> None:
    label_studio = demo.label_studio
    client = BackendClient(backend.address)
    with backend.running(CELLAI_EPOCHS="10000") as process:
        project_id = _import(backend, sample_file)
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


def test_backend_asks_for_its_password_everywhere_but_health(backend: OwnBackend) -> None:
    with backend.running():
        url = backend.address.url
        assert httpx.get(f"{url}/health").json() == {"status": "UP"}
        for method, path in (
            ("POST", "/setup"),
            ("POST", "/predict"),
            ("POST", "/webhook"),
            ("GET", "/versions"),
            ("GET", "/status"),
            ("GET", "/ready"),
        ):
            assert httpx.request(method, url + path, json={}).status_code == 401
            wrong = httpx.request(method, url + path, json={}, auth=("tester", "guess"))
            assert wrong.status_code == 401


@pytest.mark.parametrize("path", ["/setup", "/predict", "/webhook"])
def test_malformed_bodies_get_one_sentence(backend: OwnBackend, path: str) -> None:
    auth = (backend.address.user, backend.address.password)
    with backend.running():
        for body in (b"", b"[]", b"{", b'{"project": {}}', b'{"project": "x.1", "tasks": 3}'):
            answer = httpx.post(
                backend.address.url + path,
                content=body,
                headers={"Content-Type": "application/json"},
                auth=auth,
            )
            assert answer.status_code == 400
            assert set(answer.json()) == {"error", "hint"}
            assert "Traceback" not in answer.text


def _import(backend: OwnBackend, sample_file: Path) -> int:
    connection = backend.demo.connection_file
    answer = run_cellai(
        "import",
        sample_file,
        "--no-labels",
        "--url",
        connection.label_studio_url,
        "--files-dir",
        backend.demo.data_dir / "files",
        "--backend-url",
        backend.address.url,
        LABEL_STUDIO_API_KEY=connection.api_key,
        CELLAI_BASIC_AUTH_USER=backend.address.user,
        CELLAI_BASIC_AUTH_PASSWORD=backend.address.password,
    )
    assert answer.returncode == 0, answer.stderr
    return int(answer.stdout)
