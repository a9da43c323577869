"""The ML backend as the command line asks it: ready, sorted, status."""

from dataclasses import dataclass
from typing import Any

import httpx

from converters.errors import CellAIError
from converters.project import BackendAddress

TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class QueueState:
    """How far a project's queue is.

    Attributes:
        is_sorted: a version orders the whole queue and nothing is under way.
        model_version: the version in service; None before the first.
        n_labels: labels it has learned from.
        stage: what the running job does, '' without one.
        failures: jobs that failed since the last success.
        error: of the last failed job.
    """

    is_sorted: bool
    model_version: str | None
    n_labels: int
    stage: str
    failures: int
    error: str


class BackendClient:
    """HTTP client of one backend."""

    def __init__(self, address: BackendAddress) -> None:
        auth = httpx.BasicAuth(address.user, address.password) if address.password else None
        self._address = address
        self._http = httpx.Client(base_url=address.url, auth=auth, timeout=TIMEOUT_S)

    def close(self) -> None:
        """Close the sockets."""
        self._http.close()

    def is_ready(self) -> bool:
        """Whether the job runner has its model.

        Raises:
            CellAIError: it never will, and the backend says why.
        """
        try:
            answer = self._http.get("/ready")
        except httpx.HTTPError:
            return False
        if answer.status_code == 503 and answer.json().get("failed"):
            raise CellAIError(
                "The backend cannot load its model.", hint=str(answer.json()["state"])
            )
        return answer.is_success

    def announce_tasks(self, project_id: int) -> None:
        """Say that tasks were imported, so that they are scored at once."""
        self._post("/webhook", {"action": "TASKS_CREATED", "project": {"id": project_id}})

    def status(self) -> list[dict[str, Any]]:
        """Per project: serving version, versions with metrics, jobs.

        Raises:
            CellAIError: the backend does not answer.
        """
        return list(self._request("GET", "/status").json())

    def queue_state(self, project_id: int) -> QueueState:
        """How far the project's queue is."""
        project = next((p for p in self.status() if p["project_id"] == project_id), None)
        if project is None:
            return QueueState(
                is_sorted=False,
                model_version=None,
                n_labels=0,
                stage="waiting for the backend",
                failures=0,
                error="",
            )
        jobs = project["jobs"]
        failed = 0
        while failed < len(jobs) and jobs[failed]["state"] == "failed":
            failed += 1
        version = project["model_version"]
        n_labels = next((v["n_labels"] for v in project["versions"] if v["version"] == version), 0)
        running = bool(jobs) and jobs[0]["state"] == "running"
        return QueueState(
            is_sorted=version is not None and not project["waiting"] and not running,
            model_version=version,
            n_labels=n_labels,
            stage=jobs[0]["stage"] if running else "",
            failures=failed,
            error=str(jobs[0]["error"]) if failed else "",
        )

    def _post(self, path: str, payload: object) -> httpx.Response:
        return self._request("POST", path, payload)

    def _request(self, method: str, path: str, payload: object = None) -> httpx.Response:
        try:
            answer = self._http.request(method, path, json=payload)
            answer.raise_for_status()
        except httpx.HTTPStatusError as error:
            raise CellAIError(
                f"The backend at {self._address.url} answered {error.response.status_code} to"
                f" {path}.",
                hint="Check user and password; its log says more.",
            ) from error
        except httpx.HTTPError as error:
            raise CellAIError(
                f"The backend at {self._address.url} does not answer ({type(error).__name__}).",
                hint="Start it with `cellai up`, or correct the address.",
            ) from error
        return answer
