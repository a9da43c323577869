"""What `cellai doctor` looks at in Label Studio itself: version, token, blocked addresses.

Everything is found out over the API, and nothing is left behind there.
"""

from collections.abc import Iterator
from typing import Any

import httpx

from converters.check import Check, Verdict, advice, ok, problem
from converters.errors import LabelStudioError, TokenError
from converters.label_studio import ADDRESS_SETTINGS, Connection

TESTED_VERSION = "1.23.2"
LEGACY_DISABLED = "legacy token authentication has been disabled"
BLOCKED = "reserved network address"


def check_access(connection: Connection, api_key: str) -> Iterator[Check]:
    """Whether Label Studio answers and takes the token; ends at the first problem.

    Args:
        connection: to Label Studio.
        api_key: the token of the connection, whose kind is reported.
    """
    try:
        yield _version(connection)
    except TokenError:  # a personal access token that cannot be renewed is refused everywhere
        yield ok("Label Studio", f"answers at {connection.url}")
    except LabelStudioError as error:  # nothing answers, or something else does
        yield problem("Label Studio", error.message, error.hint)
        return
    try:
        token = _token(connection, api_key)
        yield token
        if token.verdict is Verdict.OK:
            yield _legacy_setting(connection, api_key)
    except LabelStudioError as error:
        yield problem("API key", error.message, error.hint)


def check_addresses(connection: Connection, backend_url: str) -> Iterator[Check]:
    """Whether Label Studio takes the backend's address, and sends events to it.

    Two settings decide: one for predictions, the other for webhooks.

    Args:
        connection: to Label Studio.
        backend_url: the backend as Label Studio reaches it.
    """
    yield _address(connection, "Backend address", "api/ml/", backend_url)
    yield _address(connection, "Webhook address", "api/webhooks/", f"{backend_url}/webhook")


def is_personal_token(api_key: str) -> bool:
    """Whether the token has the form of a personal access token (a JWT)."""
    return api_key.count(".") == 2


def _version(connection: Connection) -> Check:
    answer = connection.request("GET", "api/version", accept=(401, 403))
    version = str(_object(connection, answer, "release")["release"]) if answer.is_success else ""
    if version == TESTED_VERSION:
        return ok("Label Studio", f"{version} at {connection.url}")
    return advice(
        "Label Studio",
        f"{connection.url} runs version {version or 'unknown'}, CellAI is tested with"
        f" {TESTED_VERSION}.",
        f"Install label-studio=={TESTED_VERSION} if anything misbehaves.",
    )


def _token(connection: Connection, api_key: str) -> Check:
    kind = "personal access token" if is_personal_token(api_key) else "legacy token"
    try:
        answer = connection.request("GET", "api/current-user/whoami", accept=(401,))
    except TokenError as error:
        return problem("API key", error.message, error.hint)
    if answer.is_success:
        return ok("API key", f"{kind} of {_object(connection, answer, 'email')['email']}")
    if LEGACY_DISABLED in answer.text:
        return problem(
            "API key",
            "It is a legacy token, and legacy tokens are switched off in Label Studio.",
            "Use a personal access token (Account & Settings), or switch legacy tokens on"
            " (Organization, API Tokens Settings).",
        )
    return problem(
        "API key",
        f"Label Studio refuses the {kind} (401).",
        "Copy a token of an account of this Label Studio from its Account & Settings page.",
    )


def _legacy_setting(connection: Connection, api_key: str) -> Check:
    answer = connection.request("GET", "api/jwt/settings", accept=(403,))
    if not answer.is_success:
        return ok("Legacy tokens", "only an administrator may see the setting")
    settings = _object(connection, answer, "legacy_api_tokens_enabled")
    state = "on" if settings["legacy_api_tokens_enabled"] else "off"
    use = "not needed" if is_personal_token(api_key) else "needed by this API key"
    return ok("Legacy tokens", f"{state} ({use})")


def _object(connection: Connection, answer: httpx.Response, key: str) -> dict[str, Any]:
    """The JSON object of an answer that has this key, as Label Studio's has."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or key not in body:
        raise LabelStudioError(
            f"{connection.url} answered {answer.url.path} with something that is not Label"
            " Studio's.",
            hint="Is that address Label Studio's? A proxy before it may have answered instead.",
        )
    return body


def _address(connection: Connection, name: str, path: str, url: str) -> Check:
    """Whether Label Studio takes the address; the request names no project, so it stores nothing.

    Label Studio 1.23.2 looks at the address first (403), then misses the project (400 or 404).
    """
    answer = connection.request("POST", path, payload={"url": url}, accept=(400, 403, 404))
    if answer.status_code == 403 and BLOCKED in answer.text:
        return problem(
            name,
            f"Label Studio refuses {url} because it is a private address.",
            f"Start Label Studio with {ADDRESS_SETTINGS}.",
        )
    return ok(name, f"Label Studio accepts {url}")
