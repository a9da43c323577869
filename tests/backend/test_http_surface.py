"""Every route of the application, asked everything: never a 500, never a traceback, never unasked.

In the process, over the real application without Label Studio: what needs it is answered as out of
reach. One project has a version in service, over a trunk of made-up weights. tests/test_http.py
asks a few of the same over real HTTP.
"""

import io
import json
import os
import sqlite3
import subprocess
import sys
import warnings
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from installation import free_port, wait_until
from made_up import version
from PIL import Image
from safetensors.torch import save_file
from seeded_networks import seeded_tensors
from werkzeug.test import TestResponse

from backend.features import load_trunk
from backend.head import fresh_head
from backend.jobs import JobStore
from backend.label_studio import LabelStudioClient
from backend.networks import build_network
from backend.registry import Registry
from converters.errors import CellAIError
from converters.label_config import write_label_config

USER, PASSWORD, TOKEN = "tester", "a secret password", "a-secret-token-0123456789"
SERVED = 8  # a project with a version in service
CONFIG = write_label_config(("a", "b"))
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "NONSENSE")
# 503 is Label Studio out of reach.
EXPECTED = {200, 204, 301, 308, 400, 404, 405, 409, 413, 414, 415, 503}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of a backend that serves a version of project SERVED."""
    folder = tmp_path_factory.mktemp("http")
    (folder / "files").mkdir()
    weights = folder / "trunk.safetensors"
    save_file(seeded_tensors(build_network("vgg16")), weights)
    serve_version(folder / "backend", weights)
    return {
        "CELLAI_LABEL_STUDIO_URL": "http://127.0.0.1:1",
        "CELLAI_LABEL_STUDIO_API_KEY": TOKEN,
        "CELLAI_DATA_DIR": str(folder / "backend"),
        "CELLAI_FILES_DIR": str(folder / "files"),
        "CELLAI_WEIGHTS": str(weights),
        "CELLAI_MC_PASSES": "2",  # the least: each costs time
        "CELLAI_BASIC_AUTH_USER": USER,
        "CELLAI_BASIC_AUTH_PASSWORD": PASSWORD,
    }


def serve_version(data_dir: Path, weights: Path) -> None:
    """Publish an untrained head and put it into service."""
    trunk = load_trunk(weights)
    head = fresh_head(
        torch.zeros(trunk.feature_dim),
        torch.ones(trunk.feature_dim),
        n_classes=2,
        rng=np.random.default_rng(0),
    )
    made = version(1, project_id=SERVED, trunk_id=trunk.trunk_id)
    Registry(data_dir / "models").publish(made, head.to_tensors())
    store = JobStore(data_dir / "jobs.sqlite")
    store.set_up(SERVED, extra_params="")
    store.serve(SERVED, made.version)


@pytest.fixture(scope="module")
def app(environment: dict[str, str]) -> Iterator[Flask]:
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
        assert answer.status_code == 413, path
        check(answer)


def test_oversized_body_of_unknown_length_is_refused(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Over real HTTP in chunks, to the real server, whose limit is lowered to a mebibyte."""
    port, limit = free_port(), 2**20
    serve = (
        "import sys; from backend import routes; from gunicorn.app.wsgiapp import run;"
        f"routes.MAX_BODY_BYTES = {limit};"
        f"sys.argv[1:] = ['--bind', '127.0.0.1:{port}', '--no-control-socket', '--worker-class',"
        " 'gthread', 'backend._wsgi:app'];"
        "sys.exit(run())"
    )
    address = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", serve], env=os.environ | environment, stderr=log
        )

    def is_up() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        try:
            return httpx.get(f"{address}/health").is_success
        except httpx.TransportError:
            return False

    def status(n_bytes: int) -> int:
        """Of an event of so many bytes, a few kilobytes at a time."""
        text = json.dumps({"action": "TASKS_CREATED", "project": 7, "more": ""}).encode()
        body = text[:-2] + b"x" * (n_bytes - len(text)) + text[-2:]
        pieces = (body[at : at + 2**14] for at in range(0, n_bytes, 2**14))
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(
            f"{address}/webhook", content=pieces, headers=headers, auth=(USER, PASSWORD)
        )
        assert answer.request.headers["Transfer-Encoding"] == "chunked"
        return answer.status_code

    try:
        wait_until(is_up, deadline_s=60, what="backend")
        assert status(limit - 1) == 200
        assert status(limit + 2**14) == 413
    finally:
        process.terminate()
        process.wait(30)


def test_every_route_with_every_method(app: Flask, client: FlaskClient) -> None:
    for path in paths(app):
        for method in METHODS:
            check(client.open(path, method=method, headers=basic(USER, PASSWORD)))


WRONG_VALUES: tuple[object, ...] = (None, True, -1, 1.5, "x", [[]], {"id": {}})
WRONG_BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "text": b"tasks=1&project=7",
    "no UTF-8": b"\xff\xfe\x00",
    "NUL": b"\x00",
    "a list": b"[]",
    "a word": b'"x"',
    "a number": b"3",
    "null": b"null",
    "not finite": b'{"project": NaN, "tasks": Infinity, "keep": -Infinity, "version": NaN}',
    "many digits": b'{"project": ' + b"9" * 5000 + b"}",
    "deep lists": b'{"project": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "endless lists": b"[" * 100_000,
    "half a pair": rb'{"project": "\ud800", "action": "\ud800", "version": "\ud800"}',
    "empty object": b"{}",
    **{
        f"each a {type(value).__name__}": json.dumps(
            dict.fromkeys(
                ("project", "tasks", "label_config", "extra_params", "action", "version", "keep"),
                value,
            )
        ).encode()
        for value in WRONG_VALUES
    },
    "a multipart": b'--x\r\nContent-Disposition: form-data; name="project"\r\n\r\n7\r\n--x--\r\n',
}


@pytest.mark.parametrize("body", WRONG_BODIES.values(), ids=WRONG_BODIES)
def test_every_route_with_every_wrong_body(app: Flask, client: FlaskClient, body: bytes) -> None:
    for path in paths(app):
        for content_type in ("application/json", "", "multipart/form-data; boundary=x"):
            answer = client.post(
                path, data=body, content_type=content_type, headers=basic(USER, PASSWORD)
            )
            check(answer)
            if path in {"/predict", "/setup", "/webhook"}:
                assert answer.status_code == 400, (path, content_type)
    for path in paths(app):
        check(client.get(path, data=body, headers=basic(USER, PASSWORD)))


@pytest.mark.parametrize("depth", range(850, 1001, 5))
def test_json_as_deep_as_it_can_just_be_read(client: FlaskClient, depth: int) -> None:
    lists = b"[" * depth + b"]" * depth
    for path in ("/predict", "/webhook", "/setup", f"/projects/{SERVED}/promote"):
        for name in (b"project", b"tasks", b"version", b"extra_params", b"label_config"):
            body = b'{"project": %d, "tasks": [], "%s": %s}' % (SERVED, name, lists)
            headers = basic(USER, PASSWORD)
            answer = client.post(path, data=body, content_type="application/json", headers=headers)
            check(answer)


def picture() -> str:
    """A data address of a small picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)).save(
        buffer, "PNG"
    )
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"


def ask_for_predictions(client: FlaskClient, **changes: Any) -> TestResponse:
    body = {
        "project": f"{SERVED}.1",
        "label_config": CONFIG,
        "tasks": [{"id": 1, "data": {"image": picture()}}],
    }
    # Not `json=`: Flask's own client would refuse what is no JSON, such as NaN.
    return client.post(
        "/predict",
        data=json.dumps(body | changes),
        content_type="application/json",
        headers=basic(USER, PASSWORD),
    )


def test_project_with_a_version_gets_classes(client: FlaskClient) -> None:
    """What the next tests rely on: these bodies get past all that answers without a head."""
    answer = ask_for_predictions(client)
    assert answer.status_code == 200
    (row,) = json.loads(answer.text)["results"]
    assert row["task"] == 1
    assert row["result"][0]["value"]["choices"][0] in {"a", "b"}
    assert json.loads(ask_for_predictions(client, tasks=[]).text)["results"] == []


WRONG_IDS: tuple[object, ...] = (
    *("x", "1" * 5000, [], {}, True, 1.5),
    *(float("inf"), float("nan")),
)
WRONG_DATA: tuple[object, ...] = ("x", 3, [1], [["a", 1]], True)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        *(({"id": given, "data": {}}, "id") for given in WRONG_IDS),
        *(({"id": 1, "data": given}, "data") for given in WRONG_DATA),
    ],
)
def test_task_of_wrong_types_is_named(client: FlaskClient, task: object, words: str) -> None:
    answer = ask_for_predictions(client, tasks=[{"id": 1, "data": {}}, task])
    assert answer.status_code == 400, answer.text
    assert f"`{words}` of task 2" in json.loads(answer.text)["error"]
    check(answer)


def test_address_that_is_no_text_costs_only_its_own_task(client: FlaskClient) -> None:
    """JSON can hold half a surrogate pair, which is no character."""
    tasks = [
        {"id": number, "data": {"image": address}}
        for number, address in enumerate((picture(), "\ud800", "s3://a/\udfff", "\ud83d\ude00"))
    ]
    answer = ask_for_predictions(client, tasks=[*tasks, {"id": 4}, {"data": None}, {}])
    assert answer.status_code == 200, answer.text
    rows = json.loads(answer.text)["results"]
    assert [len(row["result"]) for row in rows] == [1] + 6 * [0]


@pytest.mark.parametrize(
    ("label_config", "status", "words"),
    [
        (None, 409, "not XML"),
        ("", 409, "not XML"),
        ("<View", 409, "not XML"),
        ("<View/>", 409, "no Choices"),
        ("<!DOCTYPE x [<!ENTITY a 'b'>]><View/>", 409, "DOCTYPE"),
        ("\ud800", 409, "not XML"),
        ("<a>" * 100_000, 409, "not XML"),
        ("<a>" * 100_000 + "</a>" * 100_000, 409, "no Choices"),
        (3, 400, "not text"),
        (["<View/>"], 400, "not text"),
        ({"a": 1}, 400, "not text"),
    ],
    ids=lambda value: str(value)[:20].encode("ascii", "backslashreplace").decode(),
)
def test_unusable_label_config_is_explained(
    client: FlaskClient, label_config: object, status: int, words: str
) -> None:
    answer = ask_for_predictions(client, label_config=label_config)
    assert (answer.status_code, words in json.loads(answer.text)["error"]) == (status, True)
    check(answer)


def test_report_of_a_project_without_classes_is_explained(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = {"label_config": "<View/>", "title": "Cells", "task_number": 0}
    monkeypatch.setattr(LabelStudioClient, "project", lambda *_: described)
    answer = client.get(f"/report/{SERVED}", headers=basic(USER, PASSWORD))
    assert answer.status_code == 409
    assert "no Choices" in json.loads(answer.text)["error"]
    check(answer)


@pytest.mark.parametrize(
    "extra_params",
    [
        "[" * 100_000,
        "9" * 5000,
        '{"epochs": ' + "9" * 5000 + "}",
        '{"mode": "\ud800"}',
        '{"\ud800": 1}',
        '{"learning_rate": NaN}',
        '{"mc_passes": 1e999}',
        "NaN",
        "\ufeff{}",
        "\x00",
    ],
    ids=lambda text: text[:20].encode("ascii", "backslashreplace").decode(),
)
def test_extra_params_that_cannot_be_read_are_refused(
    client: FlaskClient, extra_params: str
) -> None:
    body = {"project": "7.1", "extra_params": extra_params}
    answer = client.post("/setup", json=body, headers=basic(USER, PASSWORD))
    assert answer.status_code == 400, answer.text[:300]
    assert "extra parameters" in json.loads(answer.text)["error"]
    check(answer)


@pytest.mark.parametrize(
    "name",
    ["a" * 256, "a" * 100_000, "a\0", "é" * 200, "..", "/etc", "", "cellai-0001\n", "\ud800"],
)
def test_name_that_no_version_has_is_refused(client: FlaskClient, name: str) -> None:
    answer = client.post(
        f"/projects/{SERVED}/promote", json={"version": name}, headers=basic(USER, PASSWORD)
    )
    assert answer.status_code == 400, answer.text[:300]
    check(answer)


def test_version_in_service_can_be_promoted_rolled_back_and_pruned(client: FlaskClient) -> None:
    """The bodies that are right, lest the wrong ones be refused for another reason."""
    for verb, body, status in (
        ("promote", {"version": "cellai-0001"}, 200),
        ("promote", {"version": "a" * 64}, 404),
        ("rollback", {}, 404),
        ("prune", {"keep": 10**1000}, 200),
    ):
        answer = client.post(f"/projects/{SERVED}/{verb}", json=body, headers=basic(USER, PASSWORD))
        assert answer.status_code == status, (verb, answer.text)
        check(answer)


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
    + ["/", "/health", "/ready", "/diagnosis", "/metrics", "/report"]
    + [
        f"/projects/{number}/{verb}"
        for number in (7, SERVED, 10**30)
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


_address = st.sampled_from(
    [
        picture(),
        "data:image/png;base64,AAAA",
        "/data/local-files/?d=x.png",
        "/data/local-files/?d=\0",
        "/data/local-files/?d=" + "a" * 5000,
        "/data/upload/1/x.png",
        "http://[",
        "//x",
        "s3://cells/x.png",
        "\ud800",
    ]
)
_data = st.dictionaries(
    st.sampled_from(["image", "model_input", "phase", "amplitude", "card"]),
    _address | st.text(max_size=20) | _json,
    max_size=3,
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tasks=st.lists(
        st.fixed_dictionaries({}, optional={"id": st.integers() | _json, "data": _data | _json})
        | st.fixed_dictionaries({"id": st.integers(), "data": _data}),
        max_size=4,
    ),
    label_config=st.sampled_from([CONFIG] * 8 + [CONFIG.replace('"a"', '"c"'), "<View/>", "", 3]),
)
def test_no_task_breaks_a_prediction(
    *, client: FlaskClient, tasks: list[object], label_config: object
) -> None:
    """Of a project with a version in service: tasks reach the picture reader and the head."""
    answer = ask_for_predictions(client, tasks=tasks, label_config=label_config)
    check(answer)
    if answer.status_code == 200:
        assert len(json.loads(answer.text)["results"]) == len(tasks)


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


def test_sentence_of_several_lines_is_one_status_line(app: Flask) -> None:
    """A proxy's error page, which the sentence quotes, may hold a carriage return."""
    explain = app.error_handler_spec[None][None][CellAIError]
    with app.test_request_context():
        answer = app.make_response(
            app.ensure_sync(explain)(CellAIError("502:\r\n<html>\x7f", hint=""))
        )
    assert answer.status == "500 502:  <html>"


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
