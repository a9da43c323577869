"""A proxy before Label Studio or the backend that misbehaves."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

HOP_HEADERS = {"connection", "content-length", "host", "transfer-encoding", "content-encoding"}


class FaultyProxy:
    """Passes requests on to Label Studio or the backend, or fails them as `mode` says.

    Modes: "pass"; "slow" (10 s late); "401", "404", "429" and "500" (answered so, not passed on);
    "reset" (connection cut before the request is passed on); "lost" (passed on, the answer is
    lost); "twice" (passed on twice); "held" (passed on one after the other once `release` is
    called). `only` limits the fault to paths that contain it; `faults`
    counts the failed requests, `late` those that were passed on late.
    """

    def __init__(self, target: str) -> None:
        self.mode = "pass"
        self.only = ""
        self.faults = 0
        self.late = 0
        self._turn = threading.Condition()
        self._served = 0  # number of the held request whose turn it is; 0 before the release
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                mode = proxy.mode if proxy.only in self.path else "pass"
                proxy.faults += mode != "pass"
                if mode == "reset":
                    return self._cut()
                if mode in {"401", "404", "429", "500"}:
                    return self._answer(int(mode), {}, b"database is locked")
                if mode == "slow":
                    time.sleep(10)
                if mode == "held":
                    with proxy.in_turn(proxy.faults):
                        return self._answer_from(self._pass_on(body))
                answer = self._pass_on(body)
                if mode == "twice":
                    answer = self._pass_on(body)
                proxy.late += mode == "slow"
                if mode == "lost":
                    return self._cut()
                return self._answer_from(answer)

            def _answer_from(self, answer: httpx.Response) -> None:
                self._answer(answer.status_code, dict(answer.headers), answer.content)

            def _pass_on(self, body: bytes) -> httpx.Response:
                headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_HEADERS}
                return httpx.request(
                    self.command, target + self.path, content=body, headers=headers, timeout=120
                )

            def _cut(self) -> None:
                """Close with a reset instead of an orderly end."""
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.close_connection = True

            def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in HOP_HEADERS:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Stay quiet."""

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = handle_any  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @contextmanager
    def in_turn(self, number: int) -> Iterator[None]:
        """Waits until the held requests before this one were passed on."""
        with self._turn:
            self._turn.wait_for(lambda: self._served == number)
        try:
            yield
        finally:
            with self._turn:
                self._served += 1
                self._turn.notify_all()

    def release(self) -> None:
        """Pass on what is held."""
        with self._turn:
            self._served = 1
            self._turn.notify_all()

    @contextmanager
    def failing(self, mode: str, *, only: str = "") -> Iterator[None]:
        """Fail as `mode` says until the block ends."""
        self.mode, self.only, self.faults, self.late, self._served = mode, only, 0, 0, 0
        try:
            yield
        finally:
            self.mode = "pass"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
