"""The backend asks for a password, and Label Studio gives it with every label it announces.

Label Studio sends the connection's user and password to /setup and /predict, but none with a
webhook; `cellai import` puts them there as a header.
"""

import base64
from pathlib import Path
from typing import Any

import pytest
from installation import Installation, OwnBackend, annotate, run_cellai, wait_until

from converters.backend_client import BackendClient
from converters.label_studio import Connection
from converters.project import BackendAddress

pytestmark = pytest.mark.label_studio

N_CELLS = 12


def webhook(label_studio: Connection, project_id: int) -> dict[str, Any]:
    (row,) = label_studio.get("api/webhooks/", project=project_id)
    return dict(row)


def header(address: BackendAddress) -> dict[str, str]:
    token = base64.b64encode(f"{address.user}:{address.password}".encode()).decode()
    return {"Authorization": f"Basic {token}"}


def test_label_is_announced_with_the_password(
    demo: Installation, backend: OwnBackend, tmp_path: Path
) -> None:
    """Neither the search for missed labels nor a count of new ones may cause the training."""
    source = tmp_path / "cells.seg"
    run_cellai("sample", source, "--cells", N_CELLS, "--labelled", 0)
    client = BackendClient(backend.address)
    label_studio = demo.label_studio

    def marks() -> int:
        """Changes that the backend was told of, handled or waiting."""
        project = next(p for p in client.status() if p["project_id"] == number)
        return len(project["jobs"]) + int(project["waiting"])

    with backend.running(CELLAI_RECONCILE_SECONDS="3600"):
        number = backend.import_source(source)
        wait_until(lambda: client.queue_state(number).is_sorted, deadline_s=120, what="order")
        assert webhook(label_studio, number)["headers"] == header(backend.address)

        first, second = (task["id"] for task in _tasks(label_studio, number)[:2])
        before = marks()
        annotate(label_studio, first, "wbc")
        wait_until(lambda: marks() > before, deadline_s=20, what="announced label")
        wait_until(lambda: client.queue_state(number).is_sorted, deadline_s=120, what="order")

        # The same label without the header stays unheard, so the header it was that was heard.
        row = webhook(label_studio, number)
        kept = {name: row[name] for name in ("url", "send_payload", "send_for_all_actions")}
        changed = kept | {"actions": row["actions"], "headers": {}, "is_active": True}
        label_studio.patch(f"api/webhooks/{row['id']}/", changed)
        before = marks()
        annotate(label_studio, second, "wbc")
        with pytest.raises(pytest.fail.Exception, match="no announced label"):
            wait_until(lambda: marks() > before, deadline_s=8, what="announced label")

        # What the documents advise after a change of the password puts it right.
        backend.connect(number)
        assert webhook(label_studio, number)["headers"] == header(backend.address)
    client.close()


def _tasks(label_studio: Connection, project_id: int) -> list[dict[str, Any]]:
    answer = label_studio.get(
        "api/tasks/", project=project_id, page_size=N_CELLS, fields="task_only"
    )
    return list(answer["tasks"])
