"""A PostgreSQL server of the tests' own, and the settings of docker-compose.yml."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from installation import ROOT, free_port, wait_until

DEBIAN_PROGRAMS = Path("/usr/lib/postgresql")
SERVER_USER = "postgres"  # Debian's; the server refuses to run as root
NAME = "labelstudio"  # of user and database, as in docker-compose.yml
PASSWORD = "database secret"


def compose_environment(service: str, **secrets: str) -> dict[str, str]:
    """Variables that docker-compose.yml gives a service, with .env filled in."""
    compose: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    given = compose["services"][service]["environment"]
    return {
        name: re.sub(r"\$\{(\w+):\?[^}]+\}", lambda asked: secrets[asked[1]], value)
        for name, value in given.items()
        if value is not None
    }


class PostgreSQLServer:
    """The database service of docker-compose.yml, in the version that is installed here."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        """Make the cluster; the test is skipped, and says so, where there is no PostgreSQL."""
        self._programs = _programs()
        self._user = SERVER_USER if os.geteuid() == 0 else None
        # Not below pytest's folder, which the server's user may not enter.
        self._folder = Path(tempfile.mkdtemp(prefix="cellai-postgresql-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        password_file = self._folder / "password"
        password_file.write_text(PASSWORD)
        if self._user is not None:
            shutil.chown(self._folder, self._user)
            shutil.chown(password_file, self._user)
        access = [f"--username={NAME}", "--auth=scram-sha-256", f"--pwfile={password_file}"]
        subprocess.run(
            [self._programs / "initdb", "-D", self._cluster, *access],
            user=self._user,
            stdout=subprocess.DEVNULL,
            check=True,
        )

    @property
    def _cluster(self) -> Path:
        return self._folder / "cluster"

    def start(self) -> None:
        """Start it, again if it was killed, on the same port."""
        where = ["-h", self.host, "-p", str(self.port), "-k", str(self._folder)]
        self._process = subprocess.Popen(
            [self._programs / "postgres", "-D", self._cluster, *where],
            user=self._user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._accepts, deadline_s=60, what="PostgreSQL")

    def create_database(self) -> None:
        """Make the database that the image makes of POSTGRES_DB."""
        with self.connect(database="postgres") as connection:
            connection.autocommit = True
            connection.execute(f"CREATE DATABASE {NAME}")

    def connect(self, *, database: str = NAME) -> "psycopg.Connection[tuple[Any, ...]]":
        """A new session.

        Raises:
            psycopg.OperationalError: the server is down.
        """
        return psycopg.connect(
            host=self.host, port=self.port, user=NAME, password=PASSWORD, dbname=database
        )

    def crash(self) -> None:
        """End the server and its sessions at once, without a checkpoint."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)

    def close(self) -> None:
        """End it and remove its files."""
        if self._process is not None and self._process.poll() is None:
            self.crash()
        shutil.rmtree(self._folder)

    def _accepts(self) -> bool:
        try:
            self.connect(database="postgres").close()
        except psycopg.OperationalError:
            return False
        return True


def _programs() -> Path:
    """Folder of PostgreSQL's programs, which Debian has not on the path."""
    found = [*sorted(DEBIAN_PROGRAMS.glob("*/bin/initdb"), reverse=True), shutil.which("initdb")]
    if found[0] is None:
        pytest.skip("PostgreSQL is not installed here (Debian's package postgresql)")
    return Path(found[0]).parent
