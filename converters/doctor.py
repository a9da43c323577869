"""`cellai doctor`: is the installation healthy, and if not, what is to be done."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from converters.backend_checks import check_backend
from converters.backend_client import BackendClient
from converters.check import Check, Verdict, ok, problem
from converters.errors import CellAIError, ProjectNotFoundError
from converters.label_studio import Connection
from converters.label_studio_checks import check_access, check_addresses
from converters.project import BACKEND_TITLE, BackendAddress
from converters.project_checks import check_project

TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Patient:
    """The installation to look at.

    Attributes:
        label_studio_url: address of Label Studio.
        api_key: token for it.
        backend: the backend; None when only Label Studio is known.
        project_id: the project to look at; None for all that the backend serves.
        uses_sqlite: whether Label Studio is known to keep its data in SQLite.
    """

    label_studio_url: str
    api_key: str
    backend: BackendAddress | None
    project_id: int | None
    uses_sqlite: bool


def examine(patient: Patient) -> Iterator[Check]:
    """All checks, in the order in which one needs the other."""
    connection = Connection(patient.label_studio_url, patient.api_key, timeout_s=TIMEOUT_S)
    try:
        access = list(check_access(connection, patient.api_key))
        yield from access
        is_open = all(check.verdict is not Verdict.PROBLEM for check in access)
        address = patient.backend
        if address is None and is_open and patient.project_id is not None:
            address = _connected_backend(connection, patient.project_id)
        serving = yield from _backend(address, patient.project_id)
        if not is_open:
            return
        if address is not None:
            yield from check_addresses(connection, address.url)
        for project_id in [patient.project_id] if patient.project_id else sorted(serving):
            yield from check_project(
                connection,
                project_id,
                serving=serving.get(project_id),
                uses_sqlite=patient.uses_sqlite,
            )
    finally:
        connection.close()


def _connected_backend(connection: Connection, project_id: int) -> BackendAddress | None:
    """The backend that the project names; its password is known to the webhook only."""
    try:
        rows = connection.get("api/ml/", project=project_id)
    except ProjectNotFoundError:
        return None
    url = next((row["url"].rstrip("/") for row in rows if row["title"] == BACKEND_TITLE), "")
    return BackendAddress(url) if url else None


def _backend(
    address: BackendAddress | None, project_id: int | None
) -> Generator[Check, None, dict[int, str | None]]:
    """Checks of the backend; returns the version that it serves per project."""
    if address is None:
        yield problem(
            "Backend",
            "None is known.",
            "Name it with --backend-url; if none is connected yet, run `cellai import --project"
            " --backend-url`.",
        )
        return {}
    client = BackendClient(address)
    try:
        facts = client.diagnosis()
        serving = {row["project_id"]: row["model_version"] for row in client.status()}
    except CellAIError as error:
        yield problem("Backend", error.message, error.hint)
        return {}
    finally:
        client.close()
    yield ok("Backend", f"answers at {address.url}")
    yield from check_backend(facts, project_id=project_id)
    return serving
