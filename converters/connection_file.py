"""`connection.json` of a data directory: how scripts, tests and later starts reach the services.

It holds the API key and passwords, so only its owner may read it (mode 0600).
"""

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from converters.durable import replacing
from converters.errors import ConfigurationError
from converters.project import BackendAddress

FILE_NAME = "connection.json"


@dataclass(frozen=True, slots=True)
class ConnectionFile:
    """Addresses and secrets of one data directory.

    Attributes:
        label_studio_url: address of Label Studio.
        api_key: token of the account.
        project_id: the project of the last import; None before the first.
        backend_url: address of the ML backend.
        backend_user: user name the backend asks for.
        backend_password: its password.
        email: login of the account in Label Studio's web page.
        password: its password.
    """

    label_studio_url: str
    api_key: str
    project_id: int | None
    backend_url: str
    backend_user: str
    backend_password: str
    email: str
    password: str

    @property
    def backend(self) -> BackendAddress:
        """The backend's address with its user and password."""
        return BackendAddress(self.backend_url, self.backend_user, self.backend_password)

    def write(self, data_dir: Path) -> None:
        """Store it below the data directory, readable by its owner only."""
        with replacing(data_dir / FILE_NAME, private=True) as path:
            path.write_text(json.dumps(asdict(self), indent=1))


def fresh_connection(label_studio_url: str, backend_url: str) -> ConnectionFile:
    """Connection with new random secrets."""
    return ConnectionFile(
        label_studio_url=label_studio_url,
        api_key=secrets.token_hex(20),  # the form of Label Studio's legacy tokens
        project_id=None,
        backend_url=backend_url,
        backend_user="cellai",
        backend_password=secrets.token_urlsafe(18),
        email="annotator@localhost.local",
        password=secrets.token_urlsafe(9),
    )


def read_connection(data_dir: Path) -> ConnectionFile:
    """Read the connection of a data directory.

    Raises:
        ConfigurationError: there is none, it may not be read, or it is damaged.
    """
    path = data_dir / FILE_NAME
    try:
        return ConnectionFile(**json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{data_dir} has no {FILE_NAME}.",
            hint="Start with `cellai up --data-dir`, or pass --url and --api-key.",
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error.strerror}).",
            hint="Name the data directory of `cellai up` with --data-dir, as the user who ran it.",
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{path} is damaged.",
            hint="Restore it from the backup. Delete it only if nothing is labelled yet: Label"
            " Studio does not know the password and token of a new one.",
        ) from error
