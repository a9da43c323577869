"""The JSON body of a request, which may hold anything."""

from typing import Any

from flask import request


def json_object() -> dict[str, Any] | None:
    """The body as a JSON object; None when it is no JSON, no object, or nested without end."""
    try:
        body = request.get_json(silent=True)
    except RecursionError:
        return None
    return body if isinstance(body, dict) else None
