"""Versions in an operator's hands: trained on demand, rolled back, pruned; a clean stop."""

import json
import signal
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from installation import Installation, OwnBackend, annotate, run_cellai, wait_until

from backend.jobs import JobStore
from converters.backend_client import BackendClient
from converters.project import BackendAddress

pytestmark = pytest.mark.label_studio

N_CELLS = 40
N_LABELLED = 20


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("versions") / "cells.seg"
    assert run_cellai("sample", path, "--cells", N_CELLS, "--labelled", 1).returncode == 0
    return path


class Operator:
    """One project of one backend, as an operator sees it."""

    def __init__(self, backend: OwnBackend, demo: Installation, cells: Path) -> None:
        self._backend = backend
        self._label_studio = demo.label_studio
        self.client = BackendClient(backend.address)
        self.project_id = backend.import_source(cells)
        self.wait_for("cellai-0001")

    def run(self, *arguments: object) -> Any:
        """`cellai` for this project."""
        return run_cellai(
            *arguments,
            "--project",
            self.project_id,
            "--backend-url",
            self._backend.address.url,
            CELLAI_BASIC_AUTH_USER=self._backend.address.user,
            CELLAI_BASIC_AUTH_PASSWORD=self._backend.address.password,
        )

    def wait_for(self, version: str) -> None:
        """Wait until the backend and Label Studio both sort by the version."""

        def is_served() -> bool:
            state = self.client.queue_state(self.project_id)
            return state.is_sorted and state.model_version == version

        wait_until(is_served, deadline_s=120, what=version)
        project = self._label_studio.get(f"api/projects/{self.project_id}/")
        assert project["model_version"] == version
        counts = self._label_studio.get(f"api/projects/{self.project_id}/model-versions/")
        assert counts[version] == N_CELLS

    def tasks(self) -> list[dict[str, Any]]:
        answer = self._label_studio.get(
            "api/tasks/", project=self.project_id, page_size=N_CELLS, fields="task_only"
        )
        return list(answer["tasks"])

    def label(self, start: int, stop: int) -> None:
        """The last label alone is of a second class, before which there is nothing to learn.

        So all make one version, however slowly they come.
        """
        *others, last = self.tasks()[start:stop]
        for task in others:
            annotate(self._label_studio, task["id"], "rbc")
        annotate(self._label_studio, last["id"], "wbc")

    def versions(self) -> list[str]:
        answer = self.run("models", "list", "--json")
        assert answer.returncode == 0, answer.stderr
        return [row["version"] for row in json.loads(answer.stdout)]


def test_versions(backend: OwnBackend, demo: Installation, cells: Path) -> None:
    with backend.running(CELLAI_RECONCILE_SECONDS="2", CELLAI_MAX_NEW_LABELS="100"):
        operator = Operator(backend, demo, cells)
        operator.label(0, N_LABELLED)
        operator.wait_for("cellai-0002")

        answer = operator.run("train")
        assert answer.returncode == 0, answer.stderr
        operator.wait_for("cellai-0003")

        answer = operator.run("models", "rollback")
        assert "cellai-0002 follows cellai-0003" in answer.stderr
        operator.wait_for("cellai-0002")
        time.sleep(6)  # three looks at the unchanged labels
        operator.wait_for("cellai-0002")

        assert operator.run("models", "promote", "cellai-0001").returncode == 0
        operator.wait_for("cellai-0001")
        answer = operator.run("models", "rollback")
        assert answer.returncode == 1
        assert "no version before cellai-0001" in answer.stderr
        answer = operator.run("models", "promote", "cellai-0099")
        assert answer.returncode == 1
        assert "has no model version 'cellai-0099'" in answer.stderr

        operator.label(N_LABELLED, N_LABELLED + 1)  # a new label trains a new version as usual
        operator.wait_for("cellai-0004")

        assert operator.run("models", "promote", "cellai-0002").returncode == 0
        operator.wait_for("cellai-0002")
        answer = operator.run("models", "prune", "--keep", "2")
        assert "Deleted: cellai-0001, cellai-0003" in answer.stderr
        assert operator.versions() == ["cellai-0002", "cellai-0004"]
        table = operator.run("models", "list").stdout
        assert "serving" in table.partition("cellai-0002")[2].splitlines()[0]

        url = f"{backend.address.url}/metrics"
        assert httpx.get(url).status_code == 401
        text = httpx.get(url, auth=(backend.address.user, backend.address.password)).text
        assert f'cellai_pool_tasks{{project="{operator.project_id}"}} {N_CELLS}\n' in text
        assert f'cellai_labels{{project="{operator.project_id}"}} {N_LABELLED + 1}\n' in text
        assert "cellai_runner_up 1\n" in text
        operator.client.close()


def test_stop_ends_running_requests_and_resumes_the_job(
    backend: OwnBackend, demo: Installation, cells: Path, tmp_path: Path
) -> None:
    log = tmp_path / "backend.log"
    store = JobStore(backend.data_dir / "jobs.sqlite")
    with backend.running(log=log, CELLAI_EPOCHS="10000", CELLAI_LOG_FORMAT="json") as process:
        operator = Operator(backend, demo, cells)
        operator.label(0, N_LABELLED)
        wait_until(
            lambda: operator.client.queue_state(operator.project_id).stage.startswith("training"),
            deadline_s=60,
            what="training",
        )
        project = demo.label_studio.get(f"api/projects/{operator.project_id}/")

        body = {
            "project": f"{operator.project_id}.1",
            "label_config": project["label_config"],
            "tasks": operator.tasks(),
        }
        finish = begin_predict(backend.address, json.dumps(body).encode())
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert process.poll() is None
        assert finish() == 200
        assert process.wait(60) == 0
    assert store.jobs(operator.project_id)[0].state == "running"  # cut off in the middle
    check_log(log, operator.project_id, backend)
    with backend.running():
        operator.wait_for("cellai-0002")
    states = [job.state for job in store.jobs(operator.project_id)]
    assert states[:2] == ["done", "interrupted"]
    operator.client.close()


def begin_predict(address: BackendAddress, body: bytes) -> Callable[[], int]:
    """Send a request but for its last byte; what is returned sends that and gives the status."""
    connection = HTTPConnection(address.url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/predict")
    for name, value in address.headers.items():
        connection.putheader(name, value)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(body)))
    connection.putheader("X-Request-Id", "the-slow-one")
    connection.endheaders(body[:-1])
    time.sleep(3)  # the backend has accepted it and waits

    def finish() -> int:
        connection.send(body[-1:])
        status = connection.getresponse().status
        connection.close()
        return status

    return finish


def check_log(log: Path, project_id: int, backend: OwnBackend) -> None:
    """Every line is one JSON record, gunicorn's and the job runner's too; none has a secret."""
    text = log.read_text()
    records = [json.loads(line) for line in text.splitlines()]
    loggers = {record["logger"] for record in records}
    assert {"gunicorn.error", "backend.routes", "backend.retraining"} <= loggers
    slow = [r for r in records if r.get("request_id") == "the-slow-one"]
    assert any(r["message"].startswith("POST /predict: 200") for r in slow)
    assert {r["project_id"] for r in slow} == {project_id}
    assert any(
        r["project_id"] == project_id for r in records if r["logger"] == "backend.retraining"
    )
    assert backend.address.password not in text
    assert backend.api_key not in text
