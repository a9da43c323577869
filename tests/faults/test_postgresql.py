"""Label Studio on PostgreSQL with the settings of Compose: the same holds."""

import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fault_table import note_seen
from installation import wait_until
from laboratory import Laboratory
from own_label_studio import LabelStudioOnPostgreSQL
from postgresql_server import PostgreSQLServer

from converters.backend_client import BackendClient

pytestmark = pytest.mark.label_studio

ANNOTATORS = 8


@pytest.fixture(scope="module")
def database() -> Iterator[PostgreSQLServer]:
    server = PostgreSQLServer()
    try:
        server.create_cluster()
        server.start()
        server.create_database()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def label_studio(
    database: PostgreSQLServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabelStudioOnPostgreSQL]:
    """In place of the one on SQLite, for all that the laboratory is made of."""
    folder = tmp_path_factory.mktemp("on-postgresql")
    server = LabelStudioOnPostgreSQL(folder, database, secrets.token_hex(20))
    try:
        server.start()
        yield server
    finally:
        server.stop()


def test_label_studio_uses_the_server(
    laboratory: Laboratory, label_studio: LabelStudioOnPostgreSQL
) -> None:
    with closing(label_studio.connect_database()) as connection:
        (n_tasks,) = connection.execute("SELECT count(*) FROM task").fetchone() or (0,)
    assert n_tasks == len(laboratory.truth)


def test_page_serves_the_tasks_in_the_order_of_their_scores(
    laboratory: Laboratory, fault_file: Path
) -> None:
    """The tasks of an unchanged queue come by their scores, on PostgreSQL."""
    with laboratory.paused_at("labels-read", fault_file):  # no newer version sorts meanwhile
        version = laboratory.project()["model_version"]
        scores = {
            row["task"]: row["score"]
            for row in laboratory.predictions()
            if row["model_version"] == version and row["task"] not in laboratory.submitted
        }
        n_before = len(laboratory.submitted)
        laboratory.annotate(5)
    served = laboratory.submitted[n_before:]
    assert served == sorted(scores, key=scores.__getitem__)[:5]
    laboratory.check()


def test_eight_annotators_as_fast_as_they_can(laboratory: Laboratory) -> None:
    """60 labels from 8 annotators as fast as they can, on PostgreSQL."""
    laboratory.annotate_at_once(60, annotators=ANNOTATORS)
    laboratory.check()


def test_database_crashes_before_the_import(
    laboratory: Laboratory, database: PostgreSQLServer, fault_file: Path
) -> None:
    """PostgreSQL crashes before predictions are imported, and comes back."""
    with laboratory.paused_at("import-begun", fault_file):
        database.crash()
    client = BackendClient(laboratory.backend.address)
    with closing(client):
        wait_until(
            lambda: client.queue_state(laboratory.project_id).failures,
            deadline_s=300,
            what="import that failed",
        )
        note_seen(str(client.queue_state(laboratory.project_id).error)[:60])
    database.start()
    laboratory.annotate(2)
    laboratory.check()
