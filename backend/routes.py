"""What the backend answers over HTTP.

label-studio-ml 1.0.9 brings the application and its routes; the answers are ours, because
the library's own put tracebacks into responses, train inside the webhook and share one model
among all projects. No request works: webhooks only mark a project, predictions excepted.
"""

import logging
import re
import sqlite3
import time
import uuid
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from backend.access import Doorkeeper
from backend.diagnosis import label_studio_problem, storage_problem
from backend.errors import (
    ModelCorruptError,
    ModelIncompatibleError,
    ModelNotFoundError,
    ParametersError,
    UnknownProjectError,
    WeightsError,
)
from backend.logs import add_context, start_context
from backend.model import CellClassifier
from backend.operator_routes import install_operator_routes
from backend.request_body import json_object
from backend.runner_record import READY, STARTING, read_state, read_trouble
from backend.service import Service
from backend.settings import Settings
from converters.errors import (
    CellAIError,
    LabelConfigError,
    LabelStudioError,
    ProjectNotFoundError,
)

# Label Studio's own names; ANNOTATIONS_DELETED is plural there.
NEW_LABEL_EVENTS = {"ANNOTATION_CREATED", "ANNOTATIONS_CREATED"}
CHANGE_EVENTS = {
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_DELETED",
    "TASKS_DELETED",
    "PROJECT_UPDATED",
}
NEW_TASKS_EVENT = "TASKS_CREATED"
DEMAND_EVENT = "START_TRAINING"
STATUS_OF: dict[type[CellAIError], int] = {
    ParametersError: 400,
    ModelNotFoundError: 404,
    UnknownProjectError: 404,
    ModelIncompatibleError: 409,
    LabelConfigError: 409,  # the project's, as Label Studio has it
    ModelCorruptError: 503,
    WeightsError: 503,
    ProjectNotFoundError: 404,
    LabelStudioError: 503,  # it is out of reach or refuses: not this server's failure
}
MAX_BODY_BYTES = 256 * 1024 * 1024  # Label Studio sends whole selections to /predict

MAX_ID_DIGITS = 18
REQUEST_ID = "X-Request-Id"
POLLED = {"health", "ready", "status", "metrics"}

_log = logging.getLogger(__name__)


def install_routes(app: Flask, service: Service) -> None:
    """Replace the library's views by ours and add the missing ones.

    Args:
        app: the application of `label_studio_ml.api.init_app`.
        service: what the views answer from.
    """
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    # The library's own read and keep every body, before anybody was asked for a password.
    app.before_request_funcs[None] = []
    app.after_request_funcs[None] = []
    doorkeeper = Doorkeeper(
        service.settings.basic_auth_user, service.settings.basic_auth_password.get_secret_value()
    )
    views: dict[str, Callable[[], Any]] = {
        "_predict": lambda: predict(service),
        "_setup": lambda: set_up(service),
        "webhook": lambda: webhook(service),
        "health": lambda: health(service),
        "_train": _gone,
        "_is_training": _gone,
        "get_version": lambda: versions(service),
    }
    app.view_functions.update(views)
    app.add_url_rule("/versions", "versions", views["get_version"], methods=["GET"])
    app.add_url_rule("/ready", "ready", lambda: ready(service))
    app.add_url_rule("/status", "status", lambda: jsonify(service.status()))
    install_operator_routes(app, service)
    app.before_request(_begin)
    app.before_request(lambda: _authenticate(doorkeeper))
    app.before_request(_check_project_id)
    app.after_request(_log_request)
    app.register_error_handler(CellAIError, _explain)
    app.register_error_handler(HTTPException, _describe)
    app.register_error_handler(
        sqlite3.OperationalError, lambda error: _unusable(service.settings, error)
    )
    # The library answers the last three with the error's own text.
    for kind in (Exception, FileNotFoundError, AssertionError, IndexError):
        app.register_error_handler(kind, _hide)


def health(service: Service) -> Response:
    """Liveness: the process answers, and says whether anything can be stored and trained."""
    problem = storage_problem(service.settings) or read_trouble(service.settings.data_dir)
    return jsonify({"status": "UP", "problem": problem})


def ready(service: Service) -> tuple[Response, int]:
    """Readiness: weights are loaded, Label Studio answers, memory and disk suffice; else 503."""
    settings = service.settings
    state = read_state(settings.data_dir)
    failed = state not in {READY, STARTING}
    if not failed:
        state = storage_problem(settings) or read_trouble(settings.data_dir) or state
    if state == READY:
        state = label_studio_problem(settings) or READY
    body = {"ready": state == READY, "failed": failed, "state": state}
    return jsonify(body), 200 if state == READY else 503


def set_up(service: Service) -> Response:
    """Remember the project; answer which version its predictions carry."""
    body = _body()
    project_id = _project_id(body.get("project"))
    extra_params = body.get("extra_params") or ""
    service.set_up(project_id, extra_params=_text(extra_params))
    return jsonify({"model_version": service.model_version(project_id)})


def predict(service: Service) -> Response:
    """Predict tasks with the version in service; one result per task, in order."""
    body = _body()
    tasks = body.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise ParametersError("`tasks` is not a list of tasks.", hint="Send Label Studio's body.")
    label_config = body.get("label_config") or ""
    if not isinstance(label_config, str):
        raise ParametersError("`label_config` is not text.", hint="Send Label Studio's body.")
    project_id = _project_id(body.get("project"))
    model = CellClassifier(label_config, project_id=project_id, service=service)
    return jsonify({"results": model.predict(tasks), "model_version": model.model_version})


def webhook(service: Service) -> Response:
    """Mark the project; the job runner reads Label Studio itself."""
    body = _body()
    event = body.get("action")
    if not isinstance(event, str):
        raise ParametersError("`action` names no event.", hint="Send Label Studio's body.")
    project = body.get("project")
    project_id = _project_id(project.get("id") if isinstance(project, dict) else project)
    known = True
    if event in NEW_LABEL_EVENTS:
        announced = body.get("annotation")
        n_labels = len(announced) if isinstance(announced, list) else 1
        known = service.store.mark(project_id, new_labels=n_labels)
    elif event in CHANGE_EVENTS:
        known = service.store.mark(project_id)
    elif event == NEW_TASKS_EVENT:
        known = service.store.mark(project_id, at_once=True)
    elif event == DEMAND_EVENT:
        known = service.store.mark(project_id, demanded=True)
    return jsonify({"status": "marked" if known else "unknown project"})


def versions(service: Service) -> Response:
    """Names of all stored versions, for Label Studio's model page."""
    return jsonify({"versions": service.version_names()})


def _gone() -> tuple[Response, int]:
    return jsonify({"error": "This route is not served.", "hint": "Use /webhook."}), 404


def _body() -> dict[str, Any]:
    body = json_object()
    if body is None:
        raise ParametersError("The request's body is not a JSON object.", hint="Send JSON.")
    return body


def _project_id(value: object) -> int:
    """Id from Label Studio's `17.1795372940` (id.created), or a plain number."""
    number = str(value).partition(".")[0]
    if (
        isinstance(value, bool)
        or not number.isascii()
        or not number.isdigit()
        or len(number) > MAX_ID_DIGITS
    ):
        raise ParametersError(
            f"`project` is {str(value)[:50]!r}, not a project id.", hint="Send Label Studio's body."
        )
    add_context(project_id=int(number))
    return int(number)


def _text(extra_params: object) -> str:
    if not isinstance(extra_params, str):
        raise ParametersError(
            "The extra parameters are not text.", hint='Write JSON such as {"mode": "both"}.'
        )
    return extra_params


def _begin() -> None:
    """Give the request an id for the log: the caller's own if it is a plain word, else ours."""
    given = request.headers.get(REQUEST_ID, "")
    g.began = time.monotonic()
    g.request_id = given if re.fullmatch(r"[\w.-]{1,64}", given) else uuid.uuid4().hex
    start_context(request_id=g.request_id, **(request.view_args or {}))


def _check_project_id() -> None:
    """SQLite holds numbers up to 64 bits, a path may name larger ones."""
    project_id = (request.view_args or {}).get("project_id", 0)
    if project_id >= 10**MAX_ID_DIGITS:
        raise UnknownProjectError(
            "No project has so large a number.", hint="`cellai status` lists the projects."
        )


def _log_request(response: Response) -> Response:
    """One record per request; those that poll the backend are left out unless asked for."""
    response.headers[REQUEST_ID] = g.request_id
    _log.log(
        logging.DEBUG if request.endpoint in POLLED else logging.INFO,
        "%s %s: %d in %.3f s",
        request.method,
        request.path,
        response.status_code,
        time.monotonic() - g.began,
    )
    return response


def _authenticate(doorkeeper: Doorkeeper) -> Response | None:
    """Ask for user and password on every path but /health, if a password is set."""
    if not doorkeeper.asks or request.path == "/health":
        return None
    given = request.authorization
    user = (given.username or "") if given is not None else ""
    secret = (given.password or "") if given is not None else ""
    verdict = doorkeeper.judge(request.remote_addr or "", user, secret)
    if verdict.is_admitted:
        return None
    if verdict.retry_after_s:
        response = jsonify({"error": "Too many wrong passwords.", "hint": "Wait a minute."})
        response.status_code = 429
        response.headers["Retry-After"] = str(verdict.retry_after_s)
        return response
    response = jsonify({"error": "User and password are needed.", "hint": "See connection.json."})
    response.status_code = 401
    response.headers["WWW-Authenticate"] = 'Basic realm="CellAI"'
    return response


def _explain(error: CellAIError) -> Response:
    response = jsonify({"error": error.message, "hint": error.hint})
    # Of a failed /setup Label Studio 1.23.2 shows the status line only, so the sentence is there.
    text = error.message.encode("ascii", "ignore").decode()[:200]
    reason = "".join(letter if letter.isprintable() else " " for letter in text)
    status = next((s for kind, s in STATUS_OF.items() if isinstance(error, kind)), 500)
    response.status = f"{status} {reason}"
    return response


def _describe(error: HTTPException) -> tuple[Response, int]:
    return jsonify({"error": error.description, "hint": ""}), error.code or 500


def _unusable(settings: Settings, error: sqlite3.OperationalError) -> tuple[Response, int]:
    """The job store cannot be opened or written; what a webhook missed is found afterwards."""
    _log.error("%s %s: the job store cannot be used: %s", request.method, request.path, error)
    problem = storage_problem(settings) or f"The data directory {settings.data_dir} cannot be used."
    return jsonify({"error": problem, "hint": "cellai doctor says more."}), 503


def _hide(error: Exception) -> tuple[Response, int]:
    """The edge: the log gets the traceback, the caller one sentence."""
    _log.error("%s %s failed", request.method, request.path, exc_info=error)
    return jsonify({"error": "Internal error.", "hint": "The backend's log says more."}), 500
