"""`cellai up` says what it waits for, and keeps Label Studio running where that is the way out."""

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from installation import Installation, start_installation, wait_until

from backend import runner_record
from converters.backend_client import STARTING, BackendClient
from converters.errors import CellAIError
from converters.launcher import wait_for_backend
from converters.project import BackendAddress

FULL = "The data directory cannot be written (No space left on device)."
SECOND_QUESTION = '<Choices name="other" toName="card"><Choice value="x"/></Choices></View>'


class Ready(BaseHTTPRequestHandler):
    """Answers `/ready` as a backend does, one state after the other, the last one for ever."""

    states: list[str]

    def do_GET(self) -> None:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        is_ready = state == "ready"
        body = json.dumps({"ready": is_ready, "failed": False, "state": state}).encode()
        self.send_response(200 if is_ready else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Stay quiet."""


@pytest.fixture
def client() -> Iterator[BackendClient]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ready)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = BackendClient(BackendAddress(f"http://127.0.0.1:{server.server_port}"))
    yield client
    client.close()
    server.shutdown()
    server.server_close()


def test_wait_shows_what_the_backend_waits_for(client: BackendClient) -> None:
    Ready.states = [STARTING[1], FULL, "ready"]
    shown: list[str] = []
    wait_for_backend(client, check=list, on_state=shown.append)
    assert shown == [STARTING[1], FULL]


def test_lasting_trouble_ends_the_wait_with_its_sentence(client: BackendClient) -> None:
    Ready.states = [FULL]
    shown: list[str] = []
    with pytest.raises(CellAIError, match=r"does not become ready: The data .* left on device"):
        wait_for_backend(client, check=list, on_state=shown.append, patience_s=0.5)
    assert set(shown) == {FULL}


def test_loading_the_model_may_take_long(client: BackendClient) -> None:
    Ready.states = [*[STARTING[1]] * 4, FULL, "ready"]
    shown: list[str] = []
    wait_for_backend(client, check=list, on_state=shown.append, patience_s=0.5)
    assert shown == [*[STARTING[1]] * 4, FULL]


def test_loading_is_what_the_backend_calls_it() -> None:
    assert runner_record.STARTING in STARTING


@pytest.mark.label_studio
def test_project_that_cannot_be_sorted_stays_open_for_correction(
    demo: Installation, weights: Path, tmp_path: Path
) -> None:
    """Somebody added a second question; only a running Label Studio lets it be taken away."""
    data_dir = tmp_path / "data"
    demo.copy_data(data_dir)
    right = str(demo.project()["label_config"])
    wrong = right.replace("</View>", SECOND_QUESTION)
    with closing(sqlite3.connect(data_dir / "label-studio" / "label_studio.sqlite3")) as database:
        database.execute(
            "UPDATE project SET label_config = ? WHERE id = ?", (wrong, demo.project_id)
        )
        database.commit()

    with closing(start_installation(data_dir, "--weights", weights)) as installation:
        said = installation.log.read_text()
        assert "The queue cannot be sorted: " in said
        assert "The queue is sorted" not in said
        project = f"api/projects/{installation.project_id}/"
        installation.label_studio.patch(project, {"label_config": right})
        wait_until(
            lambda: installation.status()["jobs"][0]["state"] == "done",
            deadline_s=120,
            what="order after the correction",
        )
        installation.stop()
    assert installation.process.returncode == 0
