"""What `cellai doctor` looks at in one project: order of the queue, webhook, pictures."""

import base64
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from converters.check import Check, advice, ok, problem
from converters.errors import LabelStudioError
from converters.label_studio import Connection
from converters.picture_store import SCHEME as BUCKET_SCHEME
from converters.project import SAMPLING, WEBHOOK_ACTIONS

# Above so many tasks SQLite makes annotators wait: it locks the whole database while the
# predictions of a version are written (10,000 rows: 14-17 s, measured on 1.23.2).
LARGE_POOL = 10_000
WEBHOOK_TIMEOUT_S = 5
BUCKET_TIMEOUT_S = 10
PICTURE_KEYS = ("phase", "amplitude", "image", "model_input")
# An event that the backend answers and does nothing about.
PROBE_EVENT = "CELLAI_DOCTOR"


def check_project(
    connection: Connection, project_id: int, *, serving: str | None, uses_sqlite: bool
) -> Iterator[Check]:
    """Checks of one project.

    Args:
        connection: to Label Studio.
        project_id: of the project.
        serving: the version that the backend says it serves; None when it did not say.
        uses_sqlite: whether Label Studio is known to keep its data in SQLite.
    """
    try:
        project = connection.get(f"api/projects/{project_id}/")
    except LabelStudioError as error:
        yield problem(f"Project {project_id}", error.message, error.hint)
        return
    yield ok(f"Project {project_id}", f"{project['title']!r}, {project['task_number']} tasks")
    yield _sampling(project)
    yield _model_version(connection, project, serving)
    yield from _webhook(connection, project_id)
    yield _pictures(connection, project_id)
    yield _database(project, uses_sqlite=uses_sqlite)


def _sampling(project: Mapping[str, Any]) -> Check:
    if project["sampling"] == SAMPLING:
        return ok("Sampling", SAMPLING)
    return problem(
        "Sampling",
        f"The project uses {project['sampling']!r}, which ignores the scores.",
        f'Send PATCH /api/projects/{project["id"]}/ {{"sampling": "{SAMPLING}"}} to Label Studio'
        " (its settings page cannot).",
    )


def _model_version(
    connection: Connection, project: Mapping[str, Any], serving: str | None
) -> Check:
    """The queue is sorted only by predictions whose version is the project's."""
    chosen = project["model_version"]
    n_predicted = connection.get(f"api/projects/{project['id']}/model-versions/").get(chosen, 0)
    if not n_predicted:
        return problem(
            "Model version",
            f"No prediction carries the project's version {chosen!r}: the queue is random.",
            "Wait two minutes, the job runner sets it again; else see the backend's checks.",
        )
    if serving is not None and serving != chosen:
        return problem(
            "Model version",
            f"The project sorts by {chosen}, the backend serves {serving}.",
            "Wait two minutes, the job runner sets it again; else see the backend's checks.",
        )
    if n_predicted < project["task_number"]:
        return problem(
            "Model version",
            f"{chosen} has scored {n_predicted} of {project['task_number']} tasks; the others"
            " come last.",
            "Wait for the job that `cellai status` shows, or run `cellai train`.",
        )
    return ok("Model version", f"{chosen} has scored all {n_predicted} tasks")


def _webhook(connection: Connection, project_id: int) -> Iterator[Check]:
    """Present, narrowed to what the backend needs, and answered."""
    connect_again = (
        "Run `cellai up` again, or `cellai import` with --project and --backend-url but without"
        " a source: it connects anew."
    )
    webhooks = [
        row
        for row in connection.get("api/webhooks/", project=project_id)
        if row["url"].endswith("/webhook") and row["is_active"]
    ]
    if not webhooks:
        yield problem("Webhook", "Label Studio does not tell the backend of labels.", connect_again)
        return
    webhook = webhooks[0]
    yield ok("Webhook", webhook["url"])
    missing = sorted(set(WEBHOOK_ACTIONS) - set(webhook["actions"]))
    if webhook["send_for_all_actions"]:
        yield problem(
            "Webhook actions",
            "Every action is sent, which makes imports slow and annotators wait.",
            connect_again,
        )
    elif missing:
        yield problem("Webhook actions", f"{', '.join(missing)} are not sent.", connect_again)
    else:
        yield ok("Webhook actions", "annotations only")
    yield _answer(webhook, project_id, connect_again)


def _answer(webhook: Mapping[str, Any], project_id: int, fix: str) -> Check:
    try:
        answer = httpx.post(
            webhook["url"],
            json={"action": PROBE_EVENT, "project": {"id": project_id}},
            headers=webhook["headers"],
            timeout=WEBHOOK_TIMEOUT_S,
        )
    except httpx.HTTPError as error:
        return problem(
            "Webhook answer",
            f"{webhook['url']} does not answer from here ({type(error).__name__}).",
            "Start the backend, or correct the address.",
        )
    if answer.status_code == 401:
        return problem("Webhook answer", "The backend refuses the webhook's password.", fix)
    if not answer.is_success:
        return problem("Webhook answer", f"It is {answer.status_code}.", "See the backend's log.")
    return ok("Webhook answer", f"{answer.elapsed.total_seconds():.3f} s")


def _pictures(connection: Connection, project_id: int) -> Check:
    tasks = connection.get(
        "api/tasks/",
        project=project_id,
        page_size=1,
        fields="task_only",
        include="id,data",
        resolve_uri=False,
    )["tasks"]
    data = tasks[0]["data"] if tasks else {}
    path = next((str(data[key]) for key in PICTURE_KEYS if data.get(key)), "")
    if path.startswith(BUCKET_SCHEME):
        return _bucket_picture(connection, tasks[0]["id"], path)
    if not path.startswith("/"):
        return ok("Pictures", "none that Label Studio itself serves")
    answer = connection.request("GET", path.removeprefix("/"), accept=(403, 404, 500))
    if answer.is_success and answer.headers["content-type"].startswith("image/"):
        return ok("Pictures", f"task {tasks[0]['id']} shows {path}")
    return problem(
        "Pictures",
        f"Label Studio answers {answer.status_code} to {path} of task {tasks[0]['id']}.",
        "Import again (the storage may be gone), and start Label Studio with"
        " LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and the right"
        " LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.",
    )


def _bucket_picture(connection: Connection, task_id: int, uri: str) -> Check:
    """A picture in a bucket, by the two steps in which a browser gets it."""
    fix = (
        "Add the bucket to the project's cloud storages (`cellai import --bucket` does), and let"
        " Label Studio's role or keys read it."
    )
    answer = connection.request(
        "GET",
        f"tasks/{task_id}/resolve/",
        params={"fileuri": base64.urlsafe_b64encode(uri.encode()).decode()},
        accept=(303, 403, 404, 424, 500),
    )
    where = "Label Studio"
    if answer.has_redirect_location:
        where = urlsplit(answer.headers["location"]).netloc
        try:
            answer = httpx.get(answer.headers["location"], timeout=BUCKET_TIMEOUT_S)
        except httpx.HTTPError as error:
            return problem(
                "Pictures",
                f"The bucket at {where} does not answer from here ({type(error).__name__}).",
                "Look whether it answers from the annotators' machines and from the backend's.",
            )
    if answer.is_success and answer.headers["content-type"].startswith("image/"):
        return ok("Pictures", f"task {task_id} shows {uri} from {where}")
    return problem(
        "Pictures", f"{where} answers {answer.status_code} to {uri} of task {task_id}.", fix
    )


def _database(project: Mapping[str, Any], *, uses_sqlite: bool) -> Check:
    n_tasks = project["task_number"]
    if n_tasks <= LARGE_POOL:
        kind = "SQLite" if uses_sqlite else "unknown kind"
        return ok("Database", f"{kind}, {n_tasks} tasks")
    doubt = "" if uses_sqlite else " (if it is SQLite; over the network that cannot be seen)"
    return advice(
        "Database",
        f"{n_tasks} tasks in SQLite{doubt}: it is locked while predictions are written, and"
        " annotators wait.",
        "Run Label Studio on PostgreSQL, see docs/operations.md.",
    )
