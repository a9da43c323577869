"""A server that answers by a table, in the place of Label Studio, a backend, or neither."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = "<!doctype html><title>Please log in</title>"


@dataclass
class StandIn:
    """A running server.

    Attributes:
        url: its address.
        requests: method and path of each request so far.
    """

    url: str = ""
    requests: list[str] = field(default_factory=list)


@contextmanager
def stand_in(
    answers: Mapping[str, object] | None = None, *, otherwise: object = PAGE, status: int = 200
) -> Iterator[StandIn]:
    """Serve until the end of the block.

    Args:
        answers: body by method and path; text is sent as a page, all else as JSON.
        otherwise: body for every other request.
        status: of every other request.
    """
    server = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_any(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = f"{self.command} {self.path.partition('?')[0]}"
            server.requests.append(asked)
            known = asked in (answers or {})
            body = (answers or {})[asked] if known else otherwise
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            kind = "text/html" if isinstance(body, str) else "application/json"
            self.send_response(200 if known else status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Stay quiet."""

        do_GET = do_POST = do_PATCH = do_any  # noqa: N815

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{running.server_port}"
    try:
        yield server
    finally:
        running.shutdown()
        running.server_close()
