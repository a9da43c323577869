"""What comes of answers that are not Label Studio's, and of addresses that are none."""

import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from converters.errors import LabelStudioError
from converters.label_studio import Connection

PAGE = b"<!doctype html><title>Please log in</title>"


class Proxy(BaseHTTPRequestHandler):
    """Answers everything with a page."""

    def do_any(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Stay quiet."""

    do_GET = do_POST = do_PATCH = do_any  # noqa: N815


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    connection = Connection(url, "0" * 40)
    yield connection
    connection.close()


def personal_token() -> str:
    """Has the form of one; nobody checks the signature before it is exchanged."""
    parts = ({"alg": "HS256"}, {"exp": int(time.time()) + 3600, "token_type": "refresh"})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts]
    return ".".join([*(part.rstrip("=") for part in encoded), "c2lnbmF0dXJl"])


def test_page_instead_of_json(connection: Connection) -> None:
    with pytest.raises(LabelStudioError, match=r"answered /api/projects/ with .* not JSON"):
        connection.get("api/projects/")
    with pytest.raises(LabelStudioError, match="not JSON"):
        connection.post("api/projects/", {})
    with pytest.raises(LabelStudioError, match="not JSON"):
        connection.patch("api/projects/1/", {})


def test_page_instead_of_an_access_token(url: str) -> None:
    connection = Connection(url, personal_token())
    try:
        with pytest.raises(LabelStudioError, match="does not exchange the personal access token"):
            connection.get("api/projects/")
    finally:
        connection.close()


@pytest.mark.parametrize("name", ["a\x01.png", "a\x7f.png", "a" * 70_000])
def test_path_that_is_no_address(connection: Connection, name: str) -> None:
    with pytest.raises(LabelStudioError, match="is no address") as caught:
        connection.request("GET", f"data/upload/1/{name}")
    assert len(str(caught.value)) < 500


def test_first_request_does_not_import_all_of_the_sdk(url: str) -> None:
    """With pandas and three cloud storages every command would start seconds later."""
    program = (
        "import sys\n"
        "from converters.label_studio import Connection\n"
        f"Connection({url!r}, '0' * 40).request('GET', 'api/projects/')\n"
        "print(*{'httpx', 'pandas', 'boto3', 'azure'} & sys.modules.keys())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.split() == ["httpx"]
