"""Commands for who keeps an installation running."""

import json
from typing import Annotated

import typer

from converters.backend_client import BackendClient
from converters.cli_options import (
    ApiKey,
    BackendPassword,
    BackendUrl,
    BackendUser,
    DataDir,
    ProjectId,
    Url,
    connect,
    needed_backend,
    out,
    stored_connection,
)
from converters.label_studio import Connection
from converters.tables import status_table

operator = typer.Typer()


@operator.command()
def status(
    *,
    data_dir: DataDir = None,
    url: Url = "",
    api_key: ApiKey = "",
    project: ProjectId = None,
    backend_url: BackendUrl = "",
    backend_user: BackendUser = "",
    backend_password: BackendPassword = "",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Versions with metrics, labels, jobs and open tasks of every project."""
    stored = stored_connection(data_dir, url)
    backend = needed_backend(stored, backend_url, backend_user, backend_password)
    connection = connect(stored, url, api_key)
    rows = [
        row | {"open_tasks": _open_tasks(connection, row["project_id"])}
        for row in BackendClient(backend).status()
        if project is None or row["project_id"] == project
    ]
    if as_json:
        out.print_json(json.dumps(rows))
    else:
        out.print(status_table(rows))


def _open_tasks(connection: Connection, project_id: int) -> int:
    project = connection.get(f"api/projects/{project_id}/")
    return int(project["task_number"]) - int(project["finished_task_number"])
