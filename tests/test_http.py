"""The backend over HTTP: who may ask, and what a malformed question gets."""

import httpx
import pytest
from installation import Installation

pytestmark = pytest.mark.label_studio

PROTECTED = (
    ("POST", "/setup"),
    ("POST", "/predict"),
    ("POST", "/webhook"),
    ("POST", "/train"),
    ("GET", "/versions"),
    ("GET", "/status"),
    ("GET", "/ready"),
    ("GET", "/nothing"),
)


def test_health_is_open(demo: Installation) -> None:
    answer = httpx.get(f"{demo.connection_file.backend_url}/health")
    assert answer.json() == {"status": "UP", "problem": ""}


@pytest.mark.parametrize(("method", "path"), PROTECTED)
def test_all_else_asks_for_the_password(demo: Installation, method: str, path: str) -> None:
    url = demo.connection_file.backend_url + path
    user = demo.connection_file.backend_user
    assert httpx.request(method, url, json={}).status_code == 401
    guess = httpx.request(method, url, json={}, auth=(user, "guess"))
    assert guess.status_code in {401, 429}  # other tests guess, too


@pytest.mark.parametrize("path", ["/setup", "/predict", "/webhook"])
@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"project": {}}', b'{"project": "x.1", "tasks": [1]}', b"\xff"]
)
def test_malformed_bodies_get_one_sentence(demo: Installation, path: str, body: bytes) -> None:
    connection = demo.connection_file
    answer = httpx.post(
        connection.backend_url + path,
        content=body,
        headers={"Content-Type": "application/json"},
        auth=(connection.backend_user, connection.backend_password),
    )
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "hint"}
    assert "Traceback" not in answer.text


def test_task_addresses_that_lead_elsewhere_are_not_followed(demo: Installation) -> None:
    """A prediction without a class each, and no request to anywhere."""
    connection = demo.connection_file
    addresses = [
        "file:///etc/hostname",
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:1/picture.png",
        "//example.org/picture.png",
        "/data/local-files/?d=../connection.json",
        "/data/local-files/?d=/etc/hostname",
        "/api/users/",
        "data:image/png;base64,AAAA",
    ]
    answer = httpx.post(
        f"{connection.backend_url}/predict",
        json={
            "project": f"{demo.project_id}.1",
            "label_config": demo.project()["label_config"],
            "tasks": [{"id": 1, "data": {"image": address}} for address in addresses],
        },
        auth=(connection.backend_user, connection.backend_password),
        timeout=120,
    )
    assert answer.status_code == 200
    assert [row["result"] for row in answer.json()["results"]] == [[]] * len(addresses)
