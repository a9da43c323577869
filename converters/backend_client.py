"""The ML backend as the command line asks it: ready, sorted, status."""

from dataclasses import dataclass
from typing import Any

import httpx

from converters.errors import BackendUnreachableError, CellAIError, ConfigurationError
from converters.project import BackendAddress

TIMEOUT_S = 30
# States of a backend with which all is well: before it answers, and while its model is loaded.
STARTING = ("", "loading the model")
# What the backend says of an event.
MARKED, UNKNOWN = "marked", "unknown project"
PROJECT_KEYS = ("project_id", "model_version", "wanted_version", "versions", "jobs", "waiting")
CHANGE_KEYS = ("project_id", "from", "to")
DIAGNOSIS_KEYS = ("label_studio", "runner", "machine", "disks", "projects")
FOREIGN_HINT = "Is that address the backend's? A proxy before it may have answered instead."


@dataclass(frozen=True, slots=True)
class QueueState:
    """How far a project's queue is.

    Attributes:
        is_idle: nothing is under way or waits.
        is_sorted: idle, and a version orders the whole queue.
        model_version: the version in service; None before the first.
        n_labels: labels it has learned from.
        stage: what the running job does, '' without one.
        last_job: number of the newest job, 0 before the first.
        failures: jobs that failed since the last success, in earlier runs of the backend too.
        error: of the last failed job.
    """

    is_idle: bool
    is_sorted: bool
    model_version: str | None
    n_labels: int
    stage: str
    last_job: int
    failures: int
    error: str


class BackendClient:
    """HTTP client of one backend.

    Attributes:
        state: what `is_ready` was told last, in the backend's words; '' before it answers.
    """

    def __init__(self, address: BackendAddress) -> None:
        auth = httpx.BasicAuth(address.user, address.password) if address.password else None
        self.state = ""
        self._address = address
        self._http = httpx.Client(base_url=address.url, auth=auth, timeout=TIMEOUT_S)

    def close(self) -> None:
        """Close the sockets."""
        self._http.close()

    def is_ready(self) -> bool:
        """Whether the job runner has its model, and nothing keeps it from work.

        Raises:
            CellAIError: it never will, and the backend says why.
        """
        try:
            answer = self._http.get("/ready")
        except httpx.HTTPError:
            self.state = ""
            return False
        self.state = f"it answers {answer.status_code}"
        body = _json(answer)
        if answer.status_code == 503 and _has(body, "state", "failed"):
            self.state = str(body["state"])
            if body["failed"]:
                raise CellAIError("The backend cannot load its model.", hint=self.state)
        return answer.is_success

    def announce_tasks(self, project_id: int) -> None:
        """Say that tasks were imported, so that they are scored at once.

        Raises:
            BackendUnreachableError: the backend does not answer.
            CellAIError: it refuses, or something else answers.
        """
        self._tell("TASKS_CREATED", project_id)

    def status(self) -> list[dict[str, Any]]:
        """Per project: serving version, versions with metrics, jobs.

        Raises:
            CellAIError: the backend does not answer, or something else does.
        """
        rows = _json(self._request("GET", "/status"))
        if not isinstance(rows, list) or not all(_has(row, *PROJECT_KEYS) for row in rows):
            raise self._foreign("/status")
        return rows

    def report(self, project_id: int) -> str:
        """The project's progress report as a page to be kept, HTML.

        Raises:
            CellAIError: the backend does not answer, or does not know the project; or something
                else answers.
        """
        path = f"/report/{project_id}"
        page = self._request("GET", f"{path}?saved").text
        if f'<body data-project="{project_id}"' not in page:
            raise self._foreign(path)
        return page

    def diagnosis(self) -> dict[str, Any]:
        """Facts for `cellai doctor` that only the backend sees.

        Raises:
            CellAIError: the backend does not answer, or something else does.
        """
        return self._object("GET", "/diagnosis", keys=DIAGNOSIS_KEYS)

    def public_url(self) -> str:
        """The backend's address as browsers reach it (its setting CELLAI_PUBLIC_URL).

        Raises:
            CellAIError: the backend does not answer.
        """
        return str(self.diagnosis().get("public_url") or self._address.url)

    def train(self, project_id: int) -> None:
        """Ask for a new version, even if no label is new.

        Raises:
            ConfigurationError: the backend does not know the project.
            CellAIError: it does not answer, or something else does.
        """
        if self._tell("START_TRAINING", project_id) == UNKNOWN:
            raise ConfigurationError(
                f"The backend knows no project {project_id}.",
                hint="`cellai status` lists the projects.",
            )

    def promote(self, project_id: int, version: str) -> dict[str, Any]:
        """Ask for a stored version to be served."""
        path = f"/projects/{project_id}/promote"
        return self._object("POST", path, {"version": version}, keys=CHANGE_KEYS)

    def rollback(self, project_id: int) -> dict[str, Any]:
        """Ask for the version before the serving one to be served."""
        return self._object("POST", f"/projects/{project_id}/rollback", {}, keys=CHANGE_KEYS)

    def prune(self, project_id: int, *, keep: int) -> list[str]:
        """Delete the oldest versions; returns their names."""
        path = f"/projects/{project_id}/prune"
        return list(self._object("POST", path, {"keep": keep}, keys=("deleted",))["deleted"])

    def queue_state(self, project_id: int) -> QueueState:
        """How far the project's queue is."""
        project = next((p for p in self.status() if p["project_id"] == project_id), None)
        if project is None:
            return QueueState(
                is_idle=False,
                is_sorted=False,
                model_version=None,
                n_labels=0,
                stage="waiting for the backend",
                last_job=0,
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
        is_idle = not project["waiting"] and not running
        return QueueState(
            is_idle=is_idle,
            is_sorted=version is not None and is_idle,
            model_version=version,
            n_labels=n_labels,
            stage=jobs[0]["stage"] if running else "",
            last_job=jobs[0]["id"] if jobs else 0,
            failures=failed,
            error=str(jobs[0]["error"]) if failed else "",
        )

    def _tell(self, event: str, project_id: int) -> str:
        """Announce an event of a project; returns MARKED or UNKNOWN."""
        body = {"action": event, "project": {"id": project_id}}
        status = self._object("POST", "/webhook", body, keys=("status",))["status"]
        if status not in (MARKED, UNKNOWN):
            raise self._foreign("/webhook")
        return str(status)

    def _object(
        self, method: str, path: str, payload: object = None, *, keys: tuple[str, ...]
    ) -> dict[str, Any]:
        """The JSON object of an answer that has these keys, as every answer of the backend has."""
        body = _json(self._request(method, path, payload))
        if not _has(body, *keys):
            raise self._foreign(path)
        return dict(body)

    def _foreign(self, path: str) -> CellAIError:
        return CellAIError(
            f"{self._address.url} answered {path} with something that is not the backend's.",
            hint=FOREIGN_HINT,
        )

    def _request(self, method: str, path: str, payload: object = None) -> httpx.Response:
        try:
            answer = self._http.request(method, path, json=payload)
            answer.raise_for_status()
        except httpx.HTTPStatusError as error:
            explained = _explained(error.response)
            if explained is not None:
                raise explained from error
            raise CellAIError(
                f"The backend at {self._address.url} answered {error.response.status_code} to"
                f" {path}.",
                hint=_hint(error.response.status_code),
            ) from error
        except httpx.HTTPError as error:
            raise BackendUnreachableError(
                f"The backend at {self._address.url} does not answer ({type(error).__name__}).",
                hint="Start it with `cellai up`, or correct the address.",
            ) from error
        return answer


def _explained(answer: httpx.Response) -> CellAIError | None:
    """The backend's own sentence about what was asked of it."""
    if answer.status_code == 401 or "json" not in answer.headers.get("content-type", ""):
        return None
    body = _json(answer)
    if not _has(body, "error", "hint") or not body["hint"]:
        return None
    return CellAIError(str(body["error"]), hint=str(body["hint"]))


def _hint(status: int) -> str:
    """What to do about an answer that explains nothing."""
    if status in {401, 403}:
        return "Check user and password; its log says more."
    return FOREIGN_HINT if status < 500 else "Its log says more, or that of a proxy before it."


def _json(answer: httpx.Response) -> Any:
    """The answer's JSON; None where it is none, such as a page of something else."""
    try:
        return answer.json()
    except ValueError:
        return None


def _has(body: object, *keys: str) -> bool:
    return isinstance(body, dict) and all(key in body for key in keys)
