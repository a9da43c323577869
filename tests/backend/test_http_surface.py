"""Every route of the application, asked everything: never a 500, never a traceback, never unasked.

In the process, over the real application without Label Studio: what needs it is answered as out of
reach. tests/test_http.py asks a few of the same over real HTTP.
"""

import json
import sqlite3
import warnings
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

USER, PASSWORD, TOKEN = "tester", "a secret password", "a-secret-token-0123456789"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "NONSENSE")
# 503 is Label Studio out of reach.
EXPECTED = {200, 204, 301, 308, 400, 404, 405, 409, 413, 414, 415, 503}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    folder = tmp_path_factory.mktemp("http")
    (folder / "files").mkdir()
    environment = {
        "CELLAI_LABEL_STUDIO_URL": "http://127.0.0.1:1",
        "CELLAI_LABEL_STUDIO_API_KEY": TOKEN,
        "CELLAI_DATA_DIR": str(folder / "backend"),
        "CELLAI_FILES_DIR": str(folder / "files"),
        "CELLAI_BASIC_AUTH_USER": USER,
        "CELLAI_BASIC_AUTH_PASSWORD": PASSWORD,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with warnings.catch_warnings():  # label_studio_ml imports modules with old escapes
            warnings.simplefilter("ignore")
            from backend._wsgi import app as real  # noqa: PLC0415  reads the environment

        real.testing = False
        yield real


@pytest.fixture(scope="module")
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


def paths(app: Flask) -> list[str]:
    """One path of every route."""
    found = sorted({rule.rule for rule in app.url_map.iter_rules()})
    return [
        path.replace("<int:project_id>", "7").replace("<path:filename>", "../secret.txt")
        for path in found
    ]


def check(answer: TestResponse) -> None:
    """No crash, no traceback, no secret."""
    text = answer.get_data(as_text=True)
    assert answer.status_code in EXPECTED, (answer.request.method, answer.request.path, text[:500])
    assert "Traceback" not in text
    assert 'File "' not in text
    assert PASSWORD not in text
    assert TOKEN not in text
    if answer.status_code >= 400 and answer.request.method != "HEAD":
        assert set(json.loads(text)) >= {"error", "hint"} or answer.status_code == 503


def test_routes_are_those_that_are_known(app: Flask) -> None:
    """A new route belongs into this list, and so into every test below."""
    assert {rule.rule for rule in app.url_map.iter_rules()} == {
        "/",
        "/diagnosis",
        "/health",
        "/is_training",
        "/metrics",
        "/predict",
        "/projects/<int:project_id>/promote",
        "/projects/<int:project_id>/prune",
        "/projects/<int:project_id>/rollback",
        "/ready",
        "/report",
        "/report/<int:project_id>",
        "/setup",
        "/static/<path:filename>",
        "/status",
        "/train",
        "/versions",
        "/webhook",
    }


def test_every_path_but_health_asks_for_the_password(app: Flask, client: FlaskClient) -> None:
    for path in [*paths(app), "/nothing", "/health/", "/HEALTH", "//health", "/health%00"]:
        for method in METHODS:
            answer = client.open(path, method=method, environ_base={"REMOTE_ADDR": "10.1.1.1"})
            assert (answer.status_code == 401) == (path != "/health"), (method, path)


def test_wrong_passwords_are_limited(client: FlaskClient) -> None:
    def ask(password: str, address: str = "10.2.2.2") -> TestResponse:
        base = {"REMOTE_ADDR": address}
        return client.get("/versions", headers=basic(USER, password), environ_base=base)

    assert [ask(f"guess {n}").status_code for n in range(12)] == [401] * 10 + [429] * 2
    refused = ask(PASSWORD)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert ask(PASSWORD, "10.2.2.3").status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic",
        "Basic !!!",
        "Basic " + "A" * 50_000,
        "Bearer x",
        "Digest username=a",
        "\xff\xfe",
    ],
)
def test_malformed_authorization_is_no_authorization(client: FlaskClient, header: str) -> None:
    answer = client.get(
        "/status", headers={"Authorization": header}, environ_base={"REMOTE_ADDR": "10.3.3.3"}
    )
    assert answer.status_code == 401


def test_a_body_is_not_read_before_the_password(client: FlaskClient) -> None:
    class Untouched:
        def read(self, *_: object) -> bytes:
            raise AssertionError("the body was read")

        readline = readlines = __iter__ = read

    answer = client.post(
        "/predict",
        environ_overrides={"wsgi.input": Untouched(), "CONTENT_LENGTH": "200000000"},
        content_type="application/json",
    )
    assert answer.status_code == 401


def test_oversized_body_is_refused(client: FlaskClient) -> None:
    for path in ("/predict", "/setup", "/webhook", "/projects/7/promote"):
        answer = client.post(
            path,
            headers=basic(USER, PASSWORD),
            content_type="application/json",
            environ_overrides={"CONTENT_LENGTH": str(300 * 2**20)},
        )
        assert answer.status_code in {400, 413}
        check(answer)


def test_every_route_with_every_method(app: Flask, client: FlaskClient) -> None:
    for path in paths(app):
        for method in METHODS:
            check(client.open(path, method=method, headers=basic(USER, PASSWORD)))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
_known = st.fixed_dictionaries(
    {},
    optional={
        "project": st.sampled_from(["7.1", 7, "7", "²", -1, 10**30, {"id": 7}, [], None]) | _json,
        "tasks": st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "id": st.sampled_from([1, "1", None, [], "x", 10**30, 1.5]) | _json,
                    "data": st.sampled_from([{"image": "/data/upload/1/x.png"}, [], "x", 3])
                    | _json,
                },
            ),
            max_size=3,
        )
        | _json,
        "label_config": st.sampled_from(["", "<View/>", "<View", "<!DOCTYPE x [<!ENTITY a 'b'>]>"])
        | _json,
        "extra_params": st.sampled_from(["", "{", "[]", '{"mode": 3}', '{"mode": "both"}']) | _json,
        "action": st.sampled_from(["ANNOTATION_CREATED", "START_TRAINING", "TASKS_CREATED"])
        | _json,
        "annotation": _json,
        "version": st.sampled_from(["cellai-0001", "../../x", "--"]) | _json,
        "keep": _json,
    },
)
_body = st.one_of(_known.map(json.dumps), _json.map(json.dumps), st.text(max_size=30)).map(
    lambda text: text.encode("utf-8", "replace")
) | st.binary(max_size=30)
_path = st.sampled_from(
    ["/setup", "/predict", "/webhook", "/train", "/is_training", "/versions", "/status"]
    + [
        f"/projects/{number}/{verb}"
        for number in (7, 10**30)
        for verb in ("promote", "rollback", "prune")
    ]
    + [f"/report/{number}" for number in (0, 7, 2**63, 10**30, "x", "-1", "%2e%2e", "7/..")]
)


@settings(
    max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    path=_path,
    method=st.sampled_from(["POST", "POST", "POST", "GET"]),
    body=_body,
    content_type=st.sampled_from(["application/json", "text/plain", "", "multipart/form-data"]),
    query=st.text(st.characters(codec="latin-1"), max_size=20),
)
def test_no_body_breaks_a_route(
    *, client: FlaskClient, path: str, method: str, body: bytes, content_type: str, query: str
) -> None:
    request: dict[str, Any] = {"data": body, "content_type": content_type, "query_string": query}
    check(client.open(path, method=method, headers=basic(USER, PASSWORD), **request))


@pytest.mark.parametrize(
    "path",
    [
        "/static/../backend/jobs.sqlite",
        "/static/%2e%2e/%2e%2e/etc/hostname",
        "/static//etc/hostname",
        "/report/7/../../status",
        "/report/" + "9" * 5000,
        "/%00",
        "/%ff%fe",
        "/report/7?saved=%ff&saved[]=1",
        "/" + "a/" * 2000,
    ],
)
def test_weird_paths(client: FlaskClient, path: str) -> None:
    check(client.get(path, headers=basic(USER, PASSWORD)))


def test_deeply_nested_json_is_refused(client: FlaskClient) -> None:
    for path in ("/predict", "/webhook", "/setup"):
        body = b'{"project": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        answer = client.post(
            path, data=body, content_type="application/json", headers=basic(USER, PASSWORD)
        )
        check(answer)


def test_store_that_cannot_be_opened_is_named(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a folder that became read-only: the webhook is answered 503, the diagnosis given."""

    def closed(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr("backend.jobs.JobStore.projects", closed)
    monkeypatch.setattr("backend.jobs.JobStore.mark", closed)
    event = {"action": "ANNOTATION_CREATED", "project": {"id": 1}}
    answer = client.post("/webhook", json=event, headers=basic(USER, PASSWORD))
    assert answer.status_code == 503
    assert "cannot be used" in json.loads(answer.text)["error"]
    assert "Traceback" not in answer.text
    diagnosis = client.get("/diagnosis", headers=basic(USER, PASSWORD))
    assert diagnosis.status_code == 200
    assert json.loads(diagnosis.text)["projects"] == []
