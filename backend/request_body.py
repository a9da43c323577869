"""The JSON body of a request, which may hold anything."""

from typing import Any

from flask import request
from werkzeug.exceptions import RequestEntityTooLarge


def json_object() -> dict[str, Any] | None:
    """The body as a JSON object; None when it is no JSON, no object, or nested without end.

    Raises:
        RequestEntityTooLarge: it reaches `MAX_CONTENT_LENGTH`.
    """
    if request.is_json and request.content_length is None:
        _check_whole()
    try:
        body = request.get_json(silent=True)
    except RecursionError:
        return None
    return body if isinstance(body, dict) else None


def _check_whole() -> None:
    """Werkzeug 3.1.9 reads a body in chunks up to the limit, and passes over the rest in silence.

    Raises:
        RequestEntityTooLarge: that many bytes came.
    """
    limit = request.max_content_length
    if limit is not None and len(request.get_data()) >= limit:
        raise RequestEntityTooLarge
