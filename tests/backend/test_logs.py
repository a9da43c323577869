"""Log records: one JSON object per line, with ids, without secrets."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from backend.logs import (
    JsonFormatter,
    RedactingFormatter,
    configure_logging,
    log_context,
    start_context,
)
from backend.settings import Settings

API_KEY = "f0" * 20
PASSWORD = "correct horse"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the JSON handler writes; the root logger is as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logging(
        Settings(
            label_studio_api_key=SecretStr(API_KEY),
            basic_auth_password=SecretStr(PASSWORD),
            data_dir=Path("unused"),
            log_format="json",
        )
    )
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    text = io.StringIO()
    handler.setStream(text)
    yield text
    root.handlers, root.level = handlers, level
    start_context()


def failure(text: str) -> ValueError:
    """An error with a traceback."""
    try:
        float(text)
    except ValueError as error:
        return error
    raise AssertionError(text)


def records(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def test_one_line_per_record(written: io.StringIO) -> None:
    log = logging.getLogger("backend.test")
    log.info("first\nsecond line")
    log.error("it failed", exc_info=failure("of this"))
    first, second = records(written)
    assert first["message"] == "first\nsecond line"
    assert first["level"] == "INFO"
    assert first["logger"] == "backend.test"
    assert first["time"].endswith("+00:00")
    assert "ValueError: could not convert" in second["traceback"]


def test_ids(written: io.StringIO) -> None:
    log = logging.getLogger("backend.test")
    start_context(request_id="abc")
    with log_context(project_id=3):
        log.warning("task %d", 5, extra={"task_id": 5})
    log.warning("outside")
    inside, outside = records(written)
    assert (inside["request_id"], inside["project_id"], inside["task_id"]) == ("abc", 3, 5)
    assert outside["request_id"] == "abc"
    assert "project_id" not in outside


def test_secrets_never_appear(written: io.StringIO) -> None:
    log = logging.getLogger("backend.test")
    log.error("header %s", {"Authorization": f"Token {API_KEY}"})
    log.error("it failed", exc_info=failure(PASSWORD))
    assert API_KEY not in written.getvalue()
    assert PASSWORD not in written.getvalue()
    assert len(records(written)) == 2


def test_libraries_that_log_bodies_stay_quiet(written: io.StringIO) -> None:
    logging.getLogger("label_studio_ml.api").info("access_token: x")
    logging.getLogger("httpx").info("GET http://...")
    assert written.getvalue() == ""


@pytest.mark.parametrize("secret", ['with"quote', "with\\backslash", "mit Umlaut ä", "both'\""])
@pytest.mark.parametrize("formatter", [JsonFormatter, RedactingFormatter])
def test_secrets_are_hidden_in_every_form(secret: str, formatter: type[RedactingFormatter]) -> None:
    record = logging.LogRecord("x", logging.DEBUG, "x", 0, "%s and %r", (secret, secret), None)
    text = formatter(secrets=[secret]).format(record)
    assert text.count("***") == 2
    assert not any(part in text for part in ("quote", "backslash", "Umlaut", "both"))
