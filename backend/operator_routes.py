"""Routes for who keeps the backend running: diagnosis, metrics, versions."""

import re
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, jsonify

from backend.diagnosis import diagnose
from backend.errors import ParametersError
from backend.operation import Operation
from backend.prometheus import CONTENT_TYPE, render_metrics
from backend.request_body import json_object
from backend.service import Service

# cellai-0001 and the like; a longer one may be no file's name.
VERSION_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")


def install_operator_routes(app: Flask, service: Service) -> None:
    """Add the operator's routes; they ask for the same password as all others."""
    operation = Operation(service.store, service.registry)
    rules: list[tuple[str, str, Callable[..., Any], str]] = [
        (
            "/diagnosis",
            "diagnosis",
            lambda: jsonify(diagnose(service.settings, service.store)),
            "GET",
        ),
        (
            "/projects/<int:project_id>/promote",
            "promote",
            lambda project_id: jsonify(operation.promote(project_id, _version())),
            "POST",
        ),
        (
            "/projects/<int:project_id>/rollback",
            "rollback",
            lambda project_id: jsonify(operation.rollback(project_id)),
            "POST",
        ),
        (
            "/projects/<int:project_id>/prune",
            "prune",
            lambda project_id: jsonify(operation.prune(project_id, _keep())),
            "POST",
        ),
    ]
    for rule, endpoint, view, method in rules:
        app.add_url_rule(rule, endpoint, view, methods=[method])
    app.view_functions["metrics"] = lambda: metrics(service)


def metrics(service: Service) -> Response:
    """Metrics for Prometheus."""
    text = render_metrics(service.settings, service.store, service.registry)
    return Response(text, content_type=CONTENT_TYPE)


def _version() -> str:
    version = (json_object() or {}).get("version")
    if not isinstance(version, str) or not VERSION_NAME.fullmatch(version):
        raise ParametersError(
            f"`version` is {str(version)[:50]!r}, not a version's name.",
            hint='Send JSON such as {"version": "cellai-0003"}.',
        )
    return version


def _keep() -> int:
    keep = (json_object() or {}).get("keep")
    if not isinstance(keep, int) or isinstance(keep, bool) or keep < 1:
        raise ParametersError(
            f"`keep` is {str(keep)[:50]!r}, not a positive number.", hint='Send {"keep": 5}.'
        )
    return keep
