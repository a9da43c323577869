"""One log format for gunicorn, web processes and the job runner, on standard error.

As text for people, or as one JSON object per line for a log collector. Records carry the
request, project and task they belong to, where these are known.
"""

import json
import logging
import logging.config
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from backend.settings import Settings

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
CONTEXT = ("request_id", "project_id", "task_id")
# label_studio_ml writes bodies and access tokens at DEBUG, httpx every URL at INFO.
QUIET = ("label_studio_ml", "httpx", "httpcore", "werkzeug", "urllib3")

_context: ContextVar[dict[str, object] | None] = ContextVar("log_context", default=None)


def start_context(**ids: object) -> None:
    """Begin a request: only these ids are known; its thread has served others before."""
    _context.set(ids)


def add_context(**ids: object) -> None:
    """Let every further record of this request or job carry these ids."""
    _context.set({**(_context.get() or {}), **ids})


@contextmanager
def log_context(**ids: object) -> Iterator[None]:
    """Let every record of the block carry these ids."""
    token = _context.set({**(_context.get() or {}), **ids})
    try:
        yield
    finally:
        _context.reset(token)


class RedactingFormatter(logging.Formatter):
    """Text, with every secret that this process knows replaced.

    Args:
        fmt: as of `logging.Formatter`.
        secrets: what must not appear.
    """

    def __init__(self, fmt: str = TEXT_FORMAT, *, secrets: Sequence[str] = ()) -> None:
        super().__init__(fmt)
        # Also as a dumped configuration and a JSON log write them, with backslashes.
        forms = {f for s in secrets if s for f in (s, repr(s)[1:-1], json.dumps(s)[1:-1])}
        self._secrets = sorted(forms, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        """The record, without secrets."""
        return self._hide(self._render(record))

    def _hide(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _render(self, record: logging.LogRecord) -> str:
        return super().format(record)


class JsonFormatter(RedactingFormatter):
    """One JSON object per line: time, level, logger, message, ids, traceback."""

    def _render(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": self._hide(record.getMessage()),
            **(_context.get() or {}),
            **{name: getattr(record, name) for name in CONTEXT if hasattr(record, name)},
        }
        if record.exc_info:
            fields["traceback"] = self._hide(self.formatException(record.exc_info))
        return json.dumps(fields, default=str)


def logging_config(settings: Settings) -> dict[str, Any]:
    """Configuration for `logging.config.dictConfig`, which gunicorn uses too."""
    secrets = [
        settings.label_studio_api_key.get_secret_value(),
        settings.basic_auth_password.get_secret_value(),
    ]
    formatter = JsonFormatter if settings.log_format == "json" else RedactingFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"cellai": {"()": formatter, "secrets": secrets}},
        "handlers": {"cellai": {"class": "logging.StreamHandler", "formatter": "cellai"}},
        "root": {"level": settings.log_level, "handlers": ["cellai"]},
        "loggers": {
            **{name: {"level": "WARNING"} for name in QUIET},
            "gunicorn.error": {"level": settings.log_level, "handlers": [], "propagate": True},
            "gunicorn.access": {"level": "WARNING", "handlers": [], "propagate": True},
        },
    }


def configure_logging(settings: Settings) -> None:
    """Log in the settings' format and from their level on."""
    logging.config.dictConfig(logging_config(settings))
