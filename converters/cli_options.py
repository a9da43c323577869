"""Options that several commands of `cellai` share, and the connections they name."""

from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console

from converters.connection_file import ConnectionFile, read_connection
from converters.errors import ConfigurationError
from converters.label_studio import Connection
from converters.project import BackendAddress
from converters.segmentation import Sensitivity

# No `:name:` becomes a picture: most of what is printed are names of files.
console = Console(stderr=True, emoji=False)
out = Console(soft_wrap=True, emoji=False)

Sources = Annotated[
    list[Path], typer.Argument(help="HDF5 files, pictures or folders of them.", metavar="SOURCE")
]
MoreSources = Annotated[
    list[Path] | None,
    typer.Argument(help="HDF5 files, pictures or folders of them.", metavar="[SOURCE]..."),
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Data directory of `cellai up`.")]
Url = Annotated[str, typer.Option("--url", help="Address of a running Label Studio.")]
ApiKey = Annotated[
    str,
    typer.Option(
        "--api-key", help="Personal access token or legacy token.", envvar="LABEL_STUDIO_API_KEY"
    ),
]
FilesDir = Annotated[
    Path | None, typer.Option("--files-dir", help="Document root of Label Studio's local files.")
]
ProjectId = Annotated[int | None, typer.Option("--project", help="Number of the project.")]
Images = Annotated[str, typer.Option("--images", help="Path of the image dataset in the file.")]
Labels = Annotated[str, typer.Option("--labels", help="Path of the label dataset in the file.")]
SensitivityOption = Annotated[
    Sensitivity, typer.Option("--sensitivity", help="Threshold that finds cells in frames.")
]
CropSize = Annotated[int, typer.Option("--crop-size", min=32, max=512, help="Side in px.")]
MinArea = Annotated[int, typer.Option("--min-area", min=1, help="Smallest cell in px.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="At most that many cells, evenly spread.")
]
OutsideLinks = Annotated[
    bool, typer.Option("--outside-links", help="Follow links that leave the file's folder.")
]
NoLabels = Annotated[
    bool, typer.Option("--no-labels", help="Leave labels in the source out of the project.")
]
SkipUnknown = Annotated[
    bool, typer.Option("--skip-unknown-labels", help="Import cells of other classes unlabelled.")
]
Blind = Annotated[
    bool | None,
    typer.Option(
        "--blind/--no-blind",
        help="Hide from annotators what the model thinks, or show it again; the order stays."
        " [default: as the project is]",
        show_default=False,
    ),
]
LabelConfigFile = Annotated[
    Path | None,
    typer.Option("--label-config", help="Labelling config (XML) that names the classes."),
]
Classes = Annotated[
    str, typer.Option("--classes", help="Classes a,b,c written into the standard config.")
]
BackendUrl = Annotated[
    str, typer.Option("--backend-url", help="ML backend, as Label Studio reaches it.")
]
BackendUser = Annotated[
    str,
    typer.Option(
        "--backend-user", help="User the backend asks for.", envvar="CELLAI_BASIC_AUTH_USER"
    ),
]
BackendPassword = Annotated[
    str,
    typer.Option(
        "--backend-password", help="Password of that user.", envvar="CELLAI_BASIC_AUTH_PASSWORD"
    ),
]


def stored_connection(data_dir: Path | None, url: str) -> ConnectionFile | None:
    """What the data directory says; None where --url names a Label Studio instead.

    Raises:
        ConfigurationError: neither is given, or the directory holds no installation.
    """
    if data_dir is not None:
        return read_connection(data_dir)
    if not url:
        raise ConfigurationError(
            "Neither --data-dir nor --url is given.",
            hint="Name the data directory of `cellai up`, or --url and --api-key.",
        )
    return None


def connect(stored: ConnectionFile | None, url: str, api_key: str) -> Connection:
    """The Label Studio that the options name.

    Raises:
        ConfigurationError: the token is missing, or the address is none.
    """
    return Connection(label_studio_address(stored, url), needed_api_key(stored, api_key))


def label_studio_address(stored: ConnectionFile | None, url: str) -> str:
    """The address of Label Studio that the options name.

    Raises:
        ConfigurationError: it is none.
    """
    return _checked(url if stored is None else url or stored.label_studio_url)


def needed_api_key(stored: ConnectionFile | None, api_key: str) -> str:
    """The token that the options name.

    Raises:
        ConfigurationError: they name none.
    """
    key = api_key or (stored.api_key if stored else "")
    if not key:
        raise ConfigurationError(
            "--api-key is missing.", hint="Copy a token from Label Studio's account page."
        )
    return key


def backend_address(
    stored: ConnectionFile | None, url: str, user: str, password: str
) -> BackendAddress | None:
    """The backend that the options name; None when they name none.

    Raises:
        ConfigurationError: the address is none.
    """
    if url:
        return BackendAddress(_checked(url), user, password)
    return None if stored is None else stored.backend


def _checked(url: str) -> str:
    """An address to which requests can be sent, without a slash at its end."""
    try:
        parts = httpx.URL(url)
        is_address = parts.scheme in {"http", "https"} and parts.host and (parts.port or 1) < 2**16
    except httpx.InvalidURL:
        is_address = False
    if not is_address or any(character.isspace() for character in url):
        raise ConfigurationError(
            f"{url[:200]!r} is no address.",
            hint="Write it with http:// or https://, such as http://localhost:9090.",
        )
    return url.rstrip("/")


def needed_backend(
    stored: ConnectionFile | None, url: str, user: str, password: str
) -> BackendAddress:
    """The backend that the options name.

    Raises:
        ConfigurationError: they name none.
    """
    backend = backend_address(stored, url, user, password)
    if backend is None:
        raise ConfigurationError(
            "The backend's address is missing.", hint="Pass --data-dir or --backend-url."
        )
    return backend


def needed_project(stored: ConnectionFile | None, project: int | None) -> int:
    """The project that the options name.

    Raises:
        ConfigurationError: they name none.
    """
    number = project if project is not None or stored is None else stored.project_id
    if number is None:
        raise ConfigurationError("--project is missing.", hint="Name the project's number.")
    return number


def needed_files_dir(files_dir: Path | None, data_dir: Path | None) -> Path:
    """The document root of Label Studio's local files that the options name.

    Raises:
        ConfigurationError: they name none.
    """
    if files_dir is not None:
        return files_dir.resolve()
    if data_dir is None:
        raise ConfigurationError(
            "--files-dir is missing.",
            hint="Name the folder that Label Studio serves as local files"
            " (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT).",
        )
    return data_dir.resolve() / "files"
