"""A Label Studio project: created to serve the lowest score first, connected to the backend."""

import base64
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from converters.errors import ConfigurationError
from converters.label_config import LabelConfig, read_label_config
from converters.label_studio import Connection
from converters.screen import data_manager_tabs

BACKEND_TITLE = "CellAI"
TITLE_LENGTH = (3, 50)  # fewest and most characters of a project's title in Label Studio 1.23.2
SAMPLING = "Uncertainty sampling"
REPORT_LINE = "Progress report: "
# What the backend needs to hear of; more would make imports slow (whole tasks are sent).
WEBHOOK_ACTIONS = [
    "ANNOTATION_CREATED",
    "ANNOTATIONS_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_DELETED",
]


@dataclass(frozen=True, slots=True)
class BackendAddress:
    """Where the ML backend listens, and the user and password it asks for ('' for none)."""

    url: str
    user: str = ""
    password: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """Basic authentication for webhooks, to which Label Studio adds none itself."""
        if not self.password:
            return {}
        token = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        return {"Authorization": f"Basic {token}"}


def default_title(source: Path) -> str:
    """Title of a project that is named after its first source, as long as Label Studio allows."""
    title = f"CellAI: {source.resolve().name}"
    return title if len(title) <= TITLE_LENGTH[1] else title[: TITLE_LENGTH[1] - 1] + "…"


def create_project(connection: Connection, *, title: str, label_config: str) -> int:
    """Create a project that serves the lowest score first, with tabs to match; returns its id.

    The tabs must be there before anybody opens the project: Label Studio would add a default
    one, whose order a link to the labelling page would follow instead of the score.

    Raises:
        ConfigurationError: the title is shorter or longer than Label Studio allows.
    """
    shortest, longest = TITLE_LENGTH
    if not shortest <= len(title) <= longest:
        raise ConfigurationError(
            f"The title {title!r} has {len(title)} characters.",
            hint=f"Label Studio takes titles of {shortest} to {longest}: choose another --title.",
        )
    project = connection.post(
        "api/projects/",
        {
            "title": title,
            "label_config": label_config,
            "sampling": SAMPLING,
            "show_collab_predictions": True,
            "evaluate_predictions_automatically": False,
            "maximum_annotations": 1,
        },
    )
    for tab in data_manager_tabs(read_label_config(label_config)):
        connection.post("api/dm/views/", {"project": project["id"], "data": tab})
    return int(project["id"])


def check_classes(connection: Connection, project_id: int, wanted: LabelConfig) -> None:
    """Refuse to go on with a project of other classes.

    Raises:
        ConfigurationError: they differ; names those of the project.
    """
    classes = project_label_config(connection, project_id).classes
    if set(classes) != set(wanted.classes):
        raise ConfigurationError(
            f"Project {project_id} has the classes {', '.join(classes)}.",
            hint="Leave out --classes and --label-config, or start another project with another"
            " --data-dir.",
        )


def project_label_config(connection: Connection, project_id: int) -> LabelConfig:
    """The labelling config of an existing project.

    Raises:
        LabelConfigError: it has no choice of classes.
    """
    return read_label_config(connection.get(f"api/projects/{project_id}/")["label_config"])


def connect_backend(connection: Connection, project_id: int, backend: BackendAddress) -> None:
    """Attach the ML backend to a project, or correct an attachment.

    The project is set to serve the lowest score first, whoever created it.

    Raises:
        BlockedAddressError: Label Studio refuses the backend's address.
        LabelStudioError: the backend does not answer Label Studio.
    """
    settings = {
        "project": project_id,
        "url": backend.url,
        "title": BACKEND_TITLE,
        "auth_method": "BASIC_AUTH" if backend.password else "NONE",
        "basic_auth_user": backend.user,
        "basic_auth_pass": backend.password,
    }
    attached = [
        row
        for row in connection.get("api/ml/", project=project_id)
        if row["title"] == BACKEND_TITLE
    ]
    if not attached:
        connection.post("api/ml/", settings)
    elif attached[0]["url"].rstrip("/") != backend.url or backend.password:
        connection.patch(f"api/ml/{attached[0]['id']}", settings)
    connection.patch(f"api/projects/{project_id}/", {"sampling": SAMPLING})
    # Label Studio makes the first by itself; others of the project are somebody else's.
    own = {f"{row['url'].rstrip('/')}/webhook" for row in attached}
    _narrow_webhooks(connection, project_id, backend, own=own)


def show_predictions(connection: Connection, project_id: int, *, shown: bool) -> None:
    """Show annotators what the model thinks, or hide it; the order of the queue stays.

    The backend reads the project's setting and writes the cards to match.
    """
    path = f"api/projects/{project_id}/"
    version = connection.get(path)["model_version"]
    connection.patch(path, {"show_collab_predictions": shown})
    if version:
        # Label Studio 1.23.2 forgets by the first request which version sorts the queue, and
        # would forget it again if it stood in the same one.
        connection.patch(path, {"model_version": version})


def link_report(
    connection: Connection, project_id: int, backend: BackendAddress, *, public_url: str
) -> None:
    """Name the report's address in an empty description; elsewhere only keep it right.

    A description of the user's own stays as it is, and so does an address on a host that is
    neither of the two given.

    Args:
        connection: to Label Studio.
        project_id: of the project.
        backend: as Label Studio reaches it; earlier links may name its host.
        public_url: address of the backend as browsers reach it.
    """
    address = f"{public_url}/report/{project_id}"
    hosts = {urlsplit(url).hostname for url in (public_url, backend.url)}
    described = connection.get(f"api/projects/{project_id}/")["description"] or ""
    lines = [
        REPORT_LINE + address
        if line.startswith(REPORT_LINE)
        and urlsplit(line.removeprefix(REPORT_LINE)).hostname in hosts
        else line
        for line in described.splitlines()
    ]
    text = "\n".join(lines) or REPORT_LINE + address
    if text != described:
        connection.patch(f"api/projects/{project_id}/", {"description": text})


def _narrow_webhooks(
    connection: Connection, project_id: int, backend: BackendAddress, *, own: set[str]
) -> None:
    """Make Label Studio send label events only, with the password it leaves out by itself.

    Args:
        connection: to Label Studio.
        project_id: of the project.
        backend: where the one webhook leads afterwards.
        own: addresses of webhooks that lead to where the backend was before.
    """
    target = f"{backend.url}/webhook"
    found = [
        row
        for row in connection.get("api/webhooks/", project=project_id)
        if row["url"] in own | {target}
    ]
    settings = {
        "url": target,
        "send_payload": True,
        "send_for_all_actions": False,
        "actions": WEBHOOK_ACTIONS,
        "headers": backend.headers,
        "is_active": True,
    }
    kept = False
    for row in found:
        if kept:  # one is enough: each costs the annotator time
            connection.request("DELETE", f"api/webhooks/{row['id']}/")
        else:
            connection.patch(f"api/webhooks/{row['id']}/", settings, project=project_id)
            kept = True
    if not kept:
        connection.post("api/webhooks/", settings | {"project": project_id})
