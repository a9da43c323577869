"""Pictures in a bucket: fetched where the operator's bucket is, and from nowhere else."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import pytest

from backend import bucket
from backend.bucket import BucketReader
from backend.errors import PredictionError
from backend.images import PictureReader
from backend.label_studio import LabelStudioClient, Task
from converters.errors import LabelStudioError

PICTURE = b"\x89PNG and so on"
URI = "s3://cells/a/b.png"


@dataclass
class Server:
    """An HTTP server that gives one answer to everything and remembers what was asked."""

    status: int = 200
    location: str = ""
    asked: list[str] = field(default_factory=list)
    url: str = ""


def serve(server: Server) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append(self.path)
            self.send_response(server.status)
            if server.location:
                self.send_header("Location", server.location)
            self.send_header("Content-Length", str(len(PICTURE)))
            self.end_headers()
            self.wfile.write(PICTURE)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Stay quiet."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{running.server_port}"
    return running


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """The bucket's server and another one on the loopback address."""
    found = [Server(), Server()]
    running = [serve(server) for server in found]
    threads = [Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01}) for one in running]
    for thread in threads:
        thread.start()
    yield found
    for one, thread in zip(running, threads, strict=True):
        one.shutdown()
        one.server_close()
        thread.join()


@pytest.fixture
def store(servers: list[Server]) -> Server:
    return servers[0]


@pytest.fixture
def elsewhere(servers: list[Server]) -> Server:
    return servers[1]


class Resolver(LabelStudioClient):
    """Answers every address with one presigned URL, or with the picture itself."""

    def __init__(self, answer: bytes | str) -> None:
        super().__init__("http://label-studio:8080", "token")
        self._answer = answer

    def resolve(self, task_id: int, uri: str) -> bytes | str:
        return self._answer


def read(bucket_url: str, answer: bytes | str, uri: str = URI) -> bytes:
    reader = BucketReader(bucket_url, Resolver(answer))
    try:
        return reader.read(7, uri)
    finally:
        reader.close()


@pytest.mark.parametrize("key", ["a/b.png", "b.png", "a b/ü+c&d=1.png", "a#1%20.png"])
def test_presigned_picture_is_fetched(store: Server, key: str) -> None:
    presigned = f"/cells/{quote(key)}?X-Amz-Signature=abc&X-Amz-Expires=60"
    assert read(f"{store.url}/cells", store.url + presigned, f"s3://cells/{key}") == PICTURE
    assert store.asked == [presigned]


def test_bucket_may_stand_in_the_host_name(store: Server) -> None:
    assert read(f"{store.url}/", f"{store.url}/a/b.png?X-Amz-Signature=abc") == PICTURE


def test_picture_that_label_studio_fetched_is_taken(store: Server) -> None:
    assert read("", PICTURE) == PICTURE
    assert store.asked == []


@pytest.mark.parametrize(
    "address",
    [
        "{bucket}/other/a/b.png?X-Amz-Signature=abc",
        "{bucket}/cells-of-others/a/b.png",
        "{bucket}/cells/a/c.png",
        "{bucket}/cells/../other/a/b.png",
        "{bucket}/cells/%2e%2e/other/a/b.png",
        "{bucket}/other/../cells/../a/b.png",
        "{bucket}//cells/a/b.png",
        "{elsewhere}/cells/a/b.png",
        "{user}/cells/a/b.png",
        "{named}/cells/a/b.png",
        "{secure}/cells/a/b.png",
        "http://169.254.169.254/cells/a/b.png",
        "http://example.org/cells/a/b.png",
        "//example.org/cells/a/b.png",
        "/cells/a/b.png",
        "file:///cells/a/b.png",
        "http://[/cells/a/b.png",
        "",
    ],
)
def test_other_addresses_are_not_followed(store: Server, elsewhere: Server, address: str) -> None:
    """Whatever Label Studio or a storage of the project makes of a task's address."""
    spelled = address.format(
        bucket=store.url,
        elsewhere=elsewhere.url,
        user=store.url.replace("http://", "http://user:password@"),
        named=store.url.replace("127.0.0.1", "localhost"),
        secure=store.url.replace("http://", "https://"),
    )
    with pytest.raises(PredictionError, match="not this picture in the bucket") as refused:
        read(f"{store.url}/cells", spelled)
    assert (store.asked, elsewhere.asked) == ([], [])
    assert "abc" not in str(refused.value)


@pytest.mark.parametrize("step", ["..", "%2e%2e", ".", "%2E"])
def test_key_that_steps_out_of_the_bucket_is_refused(store: Server, step: str) -> None:
    with pytest.raises(PredictionError, match="not this picture"):
        read(
            f"{store.url}/cells",
            f"{store.url}/cells/{step}/other/b.png",
            f"s3://cells/{step.lower().replace('%2e', '.')}/other/b.png",
        )
    assert store.asked == []


def test_without_a_bucket_nothing_is_followed(store: Server) -> None:
    with pytest.raises(PredictionError, match="CELLAI_BUCKET_URL"):
        read("", f"{store.url}/cells/a/b.png")
    assert store.asked == []


def test_redirect_of_the_bucket_is_not_followed(store: Server, elsewhere: Server) -> None:
    store.status, store.location = 307, f"{elsewhere.url}/cells/a/b.png"
    with pytest.raises(PredictionError, match="answers 307"):
        read(f"{store.url}/cells", f"{store.url}/cells/a/b.png")
    assert (len(store.asked), elsewhere.asked) == (1, [])


def test_refusal_is_told_without_the_signature(store: Server) -> None:
    store.status = 403
    with pytest.raises(PredictionError, match="answers 403 to 's3://cells/") as refused:
        read(f"{store.url}/cells", f"{store.url}/cells/a/b.png?X-Amz-Signature=abc")
    assert "abc" not in str(refused.value)


def test_silent_bucket_is_told() -> None:
    with pytest.raises(PredictionError, match=r"does not answer \(ConnectError\)"):
        read("http://127.0.0.1:1/cells", "http://127.0.0.1:1/cells/a/b.png")


def test_endless_picture_is_cut_off(store: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "MAX_BYTES", len(PICTURE) - 1)
    with pytest.raises(PredictionError, match="more than"):
        read(f"{store.url}/cells", f"{store.url}/cells/a/b.png")


@pytest.mark.parametrize("address", ["/data/upload/1/a.png", URI])
def test_label_studios_own_redirects_are_not_followed(
    store: Server, elsewhere: Server, tmp_path: Path, address: str
) -> None:
    """A picture whose address Label Studio answers with a redirect to the loopback address."""
    store.status, store.location = 303, f"{elsewhere.url}/secret?X-Amz-Signature=abc"
    client = LabelStudioClient(store.url, "0" * 40)
    reader = PictureReader(tmp_path, client, bucket_url=f"{store.url}/cells")
    try:
        with pytest.raises(PredictionError) as refused:
            reader.read(Task(7, {"image": address}))
    finally:
        client.close()
    assert (len(store.asked), elsewhere.asked) == (1, [])
    assert "abc" not in f"{refused.value} {refused.value.__cause__}"


def test_redirected_request_names_the_address(store: Server, elsewhere: Server) -> None:
    store.status, store.location = 301, f"{elsewhere.url}/api/projects/1/"
    client = LabelStudioClient(store.url, "0" * 40)
    try:
        with pytest.raises(LabelStudioError, match=f"redirects .* to {elsewhere.url}/api"):
            client.project(1)
    finally:
        client.close()
    assert elsewhere.asked == []


def test_resolving_asks_for_the_task_and_the_address(store: Server) -> None:
    store.status, store.location = 303, "http://bucket/cells/a/b.png?X-Amz-Signature=abc"
    client = LabelStudioClient(store.url, "0" * 40)
    try:
        found: Any = client.resolve(7, URI)
    finally:
        client.close()
    assert found == store.location
    assert store.asked == ["/tasks/7/resolve/?fileuri=czM6Ly9jZWxscy9hL2IucG5n"]
