"""A PostgreSQL server of the tests' own."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psycopg
import pytest
from installation import free_port, wait_until

DEBIAN_PROGRAMS = Path("/usr/lib/postgresql")
SERVER_USER = "postgres"  # Debian's; the server refuses to run as root
NAME = "labelstudio"  # of user and database, as in docker-compose.yml
PASSWORD = "database secret"


class PostgreSQLServer:
    """The database service of docker-compose.yml, in the version that is installed here.

    Without one the test is skipped and says so.
    """

    host = "127.0.0.1"

    def __init__(self) -> None:
        self._programs = _programs()
        self._user = SERVER_USER if os.geteuid() == 0 else None
        # Not below pytest's folder, which the server's user may not enter.
        self._folder = Path(tempfile.mkdtemp(prefix="cellai-postgresql-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        if self._user is not None:
            shutil.chown(self._folder, self._user)

    def create_cluster(self) -> None:
        """Make its files, as the image does at its first start."""
        password_file = self._folder / "password"
        password_file.write_text(PASSWORD)
        if self._user is not None:
            shutil.chown(password_file, self._user)
        access = [f"--username={NAME}", "--auth=scram-sha-256", f"--pwfile={password_file}"]
        subprocess.run(
            [self._programs / "initdb", "-D", "cluster", "--encoding=UTF8", *access],
            cwd=self._folder,  # where its user may be
            user=self._user,
            stdout=subprocess.DEVNULL,
            check=True,
        )

    def start(self) -> None:
        """Start it, again if it was killed, on the same port."""
        where = ["-h", self.host, "-p", str(self.port), "-k", str(self._folder)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", "cluster", *where],
                cwd=self._folder,
                user=self._user,
                stdout=log,
                stderr=log,
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
