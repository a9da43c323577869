"""Commands for who keeps an installation running."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from converters.backend_client import BackendClient
from converters.check import Verdict
from converters.cli_options import (
    ApiKey,
    BackendPassword,
    BackendUrl,
    BackendUser,
    DataDir,
    ProjectId,
    Url,
    backend_address,
    connect,
    console,
    label_studio_address,
    needed_api_key,
    needed_backend,
    needed_project,
    out,
    stored_connection,
)
from converters.connection_file import read_connection
from converters.doctor import Patient, examine
from converters.errors import ConfigurationError, ProjectNotFoundError
from converters.label_studio import Connection
from converters.tables import status_table, version_table
from converters.terminal import plain

# Where `cellai up` lets Label Studio keep its data.
SQLITE_FILE = Path("label-studio") / "label_studio.sqlite3"
STYLES = {Verdict.OK: "", Verdict.ADVICE: "yellow", Verdict.PROBLEM: "bold red"}

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
    """Version in service, labels, newest job and open tasks of every project."""
    stored = stored_connection(data_dir, url)
    backend = needed_backend(stored, backend_url, backend_user, backend_password)
    connection = connect(stored, url, api_key)
    client = BackendClient(backend)
    served = client.status() if project is None else [_served(client, project)]
    rows = [row | {"open_tasks": _open_tasks(connection, row["project_id"])} for row in served]
    if as_json:
        out.print_json(json.dumps(rows))
    else:
        out.print(status_table(rows))


@operator.command()
def doctor(
    *,
    data_dir: DataDir = None,
    url: Url = "",
    api_key: ApiKey = "",
    project: ProjectId = None,
    backend_url: BackendUrl = "",
    backend_user: BackendUser = "",
    backend_password: BackendPassword = "",
) -> None:
    """Check everything, one line each, with the fix; exit code 1 if there is a problem."""
    stored = stored_connection(data_dir, url)
    patient = Patient(
        label_studio_url=label_studio_address(stored, url),
        api_key=needed_api_key(stored, api_key),
        backend=backend_address(stored, backend_url, backend_user, backend_password),
        project_id=project or (stored.project_id if stored else None),
        uses_sqlite=data_dir is not None and (data_dir / SQLITE_FILE).exists(),
    )
    problems = 0
    for check in examine(patient):
        problems += check.verdict is Verdict.PROBLEM
        out.print(str(check), markup=False, highlight=False, style=STYLES[check.verdict])
    out.print(f"{problems} problem{'s' * (problems > 1)}" if problems else "healthy")
    raise typer.Exit(1 if problems else 0)


@operator.command()
def train(
    *,
    data_dir: DataDir = None,
    project: ProjectId = None,
    backend_url: BackendUrl = "",
    backend_user: BackendUser = "",
    backend_password: BackendPassword = "",
) -> None:
    """Train a new version now, even if no label is new."""
    backend, number = _addressed(data_dir, project, backend_url, backend_user, backend_password)
    backend.train(number)
    console.print(f"Project {number} is trained next; `cellai status` shows how far it is.")


models = typer.Typer(help="Model versions of a project.", no_args_is_help=True)
operator.add_typer(models, name="models")


@models.command("list")
def list_models(
    *,
    data_dir: DataDir = None,
    project: ProjectId = None,
    backend_url: BackendUrl = "",
    backend_user: BackendUser = "",
    backend_password: BackendPassword = "",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Stored versions, oldest first."""
    backend, number = _addressed(data_dir, project, backend_url, backend_user, backend_password)
    row = _served(backend, number)
    if as_json:
        out.print_json(json.dumps(row["versions"]))
    else:
        out.print(version_table(row))


@models.command()
def promote(
    version: Annotated[str, typer.Argument(help="Name as in `cellai models list`.")],
    *,
    data_dir: DataDir = None,
    project: ProjectId = None,
    backend_url: BackendUrl = "",
    backend_user: BackendUser = "",
    backend_password: BackendPassword = "",
) -> None:
    """Serve a stored version again, until a label changes."""
    backend, number = _addressed(data_dir, project, backend_url, backend_user, backend_password)
    _told(backend.promote(number, version))


@models.command()
def rollback(
    *,
    data_dir: DataDir = None,
    project: ProjectId = None,
    backend_url: BackendUrl = "",
    backend_user: BackendUser = "",
    backend_password: BackendPassword = "",
) -> None:
    """Serve the version before the serving one, until a label changes."""
    backend, number = _addressed(data_dir, project, backend_url, backend_user, backend_password)
    _told(backend.rollback(number))


@models.command()
def prune(
    *,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Number of versions to keep.")],
    data_dir: DataDir = None,
    project: ProjectId = None,
    backend_url: BackendUrl = "",
    backend_user: BackendUser = "",
    backend_password: BackendPassword = "",
) -> None:
    """Delete the oldest versions; the serving and the newest one always stay."""
    backend, number = _addressed(data_dir, project, backend_url, backend_user, backend_password)
    deleted = backend.prune(number, keep=keep)
    console.print(plain(f"Deleted: {', '.join(deleted) or 'none'}"))


def _addressed(
    data_dir: Path | None, project: int | None, url: str, user: str, password: str
) -> tuple[BackendClient, int]:
    """The backend and the project that the options name."""
    stored = None if data_dir is None else read_connection(data_dir)
    address = needed_backend(stored, url, user, password)
    return BackendClient(address), needed_project(stored, project)


def _served(backend: BackendClient, project_id: int) -> dict[str, Any]:
    """One project of the backend's status."""
    row = next((row for row in backend.status() if row["project_id"] == project_id), None)
    if row is None:
        raise ConfigurationError(
            f"The backend knows no project {project_id}.",
            hint="`cellai status` lists the projects.",
        )
    return row


def _told(change: dict[str, Any]) -> None:
    console.print(
        plain(
            f"Project {change['project_id']}: {change['to']} follows {change['from']} in a moment;"
            " `cellai status` shows it."
        )
    )


def _open_tasks(connection: Connection, project_id: int) -> int | None:
    """Number of tasks without a label; None for a project that Label Studio no longer has."""
    try:
        project = connection.get(f"api/projects/{project_id}/")
    except ProjectNotFoundError:
        return None
    return int(project["task_number"]) - int(project["finished_task_number"])
