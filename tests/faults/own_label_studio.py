"""Label Studios of the tests' own, to be killed: on SQLite, and as Compose sets it up."""

import os
import re
import secrets
import shutil
import sqlite3
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import psycopg
from compose_file import filled_in, given, read_compose
from installation import free_port, wait_until
from postgresql_server import PASSWORD, PostgreSQLServer

from converters.label_studio import Connection
from converters.launcher import LABEL_STUDIO_ENVIRONMENT, answers, label_studio_command


@dataclass(frozen=True, slots=True)
class FirstStart:
    """What a first start of Label Studio left, which takes most of a minute: tables and an account.

    Attributes:
        folder: its data, of which nothing runs.
        api_key: of the account.
    """

    folder: Path
    api_key: str


class OwnLabelStudio(ABC):
    """Label Studio in a folder of the test's own.

    Args:
        folder: for its files, the pictures that it serves among them.
        environment: its settings.
        api_key: of the account that the tests use.
    """

    def __init__(self, folder: Path, environment: dict[str, str], api_key: str) -> None:
        self.folder = folder / "label-studio"
        self.folder.mkdir()
        self.files_dir = folder / "files"
        self.files_dir.mkdir()
        self._log = folder / "label-studio.log"
        self._environment = environment
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"
        self.api_key = api_key
        self.connection = Connection(self.url, api_key)

    @abstractmethod
    def connect_database(self) -> Any:
        """A new connection (DB-API 2.0, PEP 249) to its database, beside its own.

        Raises:
            sqlite3.OperationalError, psycopg.OperationalError: it does not answer.
        """

    def use_key(self, api_key: str) -> None:
        """Go on with another token."""
        self.connection.close()
        self.api_key = api_key
        self.connection = Connection(self.url, api_key)

    @property
    def pid(self) -> int:
        """Process to be killed."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, again if it was killed, on the same port."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                label_studio_command(self._port),
                env=os.environ
                | self._environment
                | {
                    "LABEL_STUDIO_BASE_DATA_DIR": str(self.folder),
                    "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(self.files_dir),
                    "PYTHONPATH": str(Path(__file__).with_name("fault_points")),
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(lambda: answers(f"{self.url}/health"), deadline_s=300, what="Label Studio")

    def wait_for_death(self) -> None:
        """Return once the process was killed and is gone."""
        assert self._process is not None
        self._process.wait(120)

    def stop(self) -> None:
        """End it."""
        self.connection.close()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(30)


class LabelStudioOnSQLite(OwnLabelStudio):
    """Label Studio as `cellai up` starts it."""

    @classmethod
    def new(cls, folder: Path) -> "LabelStudioOnSQLite":
        """Before its first start; it will have an account."""
        api_key = secrets.token_hex(20)
        account = {
            "LABEL_STUDIO_USERNAME": "annotator@localhost.local",
            "LABEL_STUDIO_PASSWORD": secrets.token_urlsafe(12),
            "LABEL_STUDIO_USER_TOKEN": api_key,
        }
        return cls(folder, LABEL_STUDIO_ENVIRONMENT | account, api_key)

    @classmethod
    def copy_of(cls, original: FirstStart, folder: Path) -> "LabelStudioOnSQLite":
        """On a copy of another one's database; its personal tokens are checked often."""
        tokens_end = {"ACCESS_TOKEN_SECONDS": "5"}
        copy = cls(folder, LABEL_STUDIO_ENVIRONMENT | tokens_end, original.api_key)
        shutil.copytree(original.folder, copy.folder, dirs_exist_ok=True)
        return copy

    @property
    def database(self) -> Path:
        """Its SQLite file."""
        return self.folder / "label_studio.sqlite3"

    def connect_database(self) -> sqlite3.Connection:
        """A reader of the file, which answers even while the server is dead."""
        return sqlite3.connect(f"{self.database.as_uri()}?mode=ro", uri=True, timeout=0.1)

    def personal_token(self, *, lives_s: int | None = None) -> str:
        """A new personal access token of the owner, as Label Studio would sign one that ends."""
        for row in self.connection.get("api/token/"):  # an account has one at a time
            self.revoke(row["token"])
        token = str(self.connection.post("api/token/", {})["token"])
        if lives_s is None:
            return token
        claims = jwt.decode(token, options={"verify_signature": False})
        ends = claims | {"exp": int(time.time()) + lives_s}
        (key,) = re.findall(r"SECRET_KEY='?([^'\n]+)", (self.folder / ".env").read_text())
        return jwt.encode(ends, key, "HS256")

    def revoke(self, personal_token: str) -> None:
        """Revoke a personal access token, as its owner does on the account page."""
        self.connection.request("POST", "api/token/blacklist/", payload={"refresh": personal_token})


class LabelStudioOnPostgreSQL(OwnLabelStudio):
    """Label Studio with the settings of docker-compose.yml, at other addresses.

    Args:
        folder: for its files.
        database: the server, whose password is the one of Compose.
        api_key: given to the first account.
    """

    def __init__(self, folder: Path, database: PostgreSQLServer, api_key: str) -> None:
        secrets = {
            "POSTGRES_PASSWORD": PASSWORD,
            "LABEL_STUDIO_USERNAME": "scientist@example.com",
            "LABEL_STUDIO_PASSWORD": "account secret",
            "LABEL_STUDIO_API_KEY": api_key,
        }
        service = read_compose()["services"]["label-studio"]
        settings = {name: filled_in(value, secrets) for name, value in given(service).items()}
        moved = {"POSTGRE_HOST": database.host, "POSTGRE_PORT": str(database.port)}
        super().__init__(folder, settings | moved, api_key)
        self._database = database

    def connect_database(self) -> "psycopg.Connection[tuple[Any, ...]]":
        """A session of its own."""
        return self._database.connect()
