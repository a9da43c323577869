"""A running `cellai up` as the tests drive it, and what they ask of Label Studio."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pytest

from converters.backend_client import BackendClient
from converters.connection_file import ConnectionFile, read_connection
from converters.label_studio import Connection
from converters.project import BackendAddress

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
CELLAI = Path(sys.executable).with_name("cellai")
START_DEADLINE_S = 300  # the first start of Label Studio migrates its database: 40-80 s


def shared_file(name: str) -> Path:
    """A file of real cells or weights; the test is skipped, and says so, where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not in ../shared/data")
    return path


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def new_address() -> BackendAddress:
    """For a backend beside the installation's own."""
    return BackendAddress(f"http://127.0.0.1:{free_port()}", "tester", "a secret")


def wait_until(condition: Callable[[], T | None], *, deadline_s: float, what: str) -> T:
    """The first true value of the condition."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.25)
    pytest.fail(f"no {what} within {deadline_s:.0f} s")


def run_cellai(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [CELLAI, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "200", **environment},
        check=False,
    )


@dataclass
class Installation:
    """A running `cellai up`."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    log: Path
    other_project_id: int | None = None  # instead of the one of the first import

    @property
    def connection_file(self) -> ConnectionFile:
        return read_connection(self.data_dir)

    @cached_property
    def label_studio(self) -> Connection:
        return Connection(self.connection_file.label_studio_url, self.connection_file.api_key)

    @cached_property
    def _backend(self) -> BackendClient:
        return BackendClient(self.connection_file.backend)

    @property
    def project_id(self) -> int:
        project_id = self.other_project_id or self.connection_file.project_id
        assert project_id is not None
        return project_id

    def other_project(self, project_id: int) -> "Installation":
        """The same installation, looking at another of its projects."""
        return replace(self, other_project_id=project_id)

    def new_project(self, source: Path, title: str) -> "Installation":
        """The same installation, looking at a new project of a source without its labels."""
        answer = run_cellai(
            "import", source, "--no-labels", "--title", title, "--data-dir", self.data_dir
        )
        assert answer.returncode == 0, answer.stderr
        return self.other_project(int(answer.stdout))

    def status(self, project_id: int | None = None) -> dict[str, Any]:
        """One project of the backend's status."""
        projects = self._backend.status()
        wanted = project_id or self.project_id
        return next((p for p in projects if p["project_id"] == wanted), {})

    def project(self) -> dict[str, Any]:
        """The project as Label Studio's API gives it."""
        return dict(self.label_studio.get(f"api/projects/{self.project_id}/"))

    def tasks(self) -> list[dict[str, Any]]:
        """All tasks of the project."""
        answer = self.label_studio.get(
            "api/tasks/", project=self.project_id, page_size=10_000, fields="task_only"
        )
        return list(answer["tasks"])

    def serving(self) -> dict[str, Any]:
        """The version by which Label Studio sorts, as `cellai status` lists it."""
        name = self.project()["model_version"]
        return next((v for v in self.status()["versions"] if v["version"] == name), {})

    def close(self) -> None:
        """Close the test's own sockets."""
        self.label_studio.close()
        self._backend.close()

    def copy_data(self, target: Path) -> None:
        """A copy of the data directory as a finished installation leaves it."""
        unwanted = ("label-studio", "*.sqlite*", "features", "processes.json", "*.lock", "logs")
        shutil.copytree(
            self.data_dir,
            target,
            ignore=shutil.ignore_patterns(*unwanted),
            copy_function=_copy_what_is_there,
        )
        _copy_database(self.data_dir, target, "backend/jobs.sqlite")
        self.copy_label_studio(target / "label-studio")

    def copy_label_studio(self, target: Path) -> None:
        """A copy of Label Studio's folder, with its database as of one moment."""
        original = self.data_dir / "label-studio"
        target.mkdir()
        shutil.copy(original / ".env", target)
        _copy_database(original, target, "label_studio.sqlite3")

    def stop(self) -> None:
        """End it as Ctrl+C does."""
        self.close()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)


def _copy_what_is_there(source: str, target: str) -> None:
    """Copy a file but for one of a moment, such as a card before it takes its name."""
    with suppress(FileNotFoundError):
        shutil.copy2(source, target)


def _copy_database(source: Path, target: Path, name: str) -> None:
    """Copy a database in use as of one moment."""
    with (
        closing(sqlite3.connect(source / name)) as original,
        closing(sqlite3.connect(target / name)) as copy,
    ):
        original.backup(copy)


def start_installation(
    data_dir: Path, *arguments: object, port: int = 0, backend_port: int = 0, **environment: str
) -> Installation:
    """`cellai up` on free ports, returned once the queue is sorted."""
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                CELLAI,
                "up",
                *map(str, arguments),
                "--data-dir",
                data_dir,
                "--port",
                str(port or free_port()),
                "--backend-port",
                str(backend_port or free_port()),
                "--no-browser",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "COLUMNS": "200", **environment},
        )

    def is_up() -> bool:
        text = log.read_text()
        if process.poll() is not None:
            pytest.fail(f"cellai up ended with {process.returncode}:\n{text}")
        return "labeling=1" in text

    try:
        wait_until(is_up, deadline_s=START_DEADLINE_S, what="sorted queue")
    except BaseException:
        process.kill()
        raise
    return Installation(process, data_dir, log)


@dataclass
class OwnBackend:
    """A backend of the test's own, on some Label Studio.

    Attributes:
        label_studio_url: of that Label Studio.
        api_key: of its account.
        files_dir: its document root.
    """

    label_studio_url: str
    api_key: str
    files_dir: Path
    data_dir: Path
    weights: Path
    address: BackendAddress

    @classmethod
    def beside(cls, demo: Installation, data_dir: Path, weights: Path) -> "OwnBackend":
        """A second one on an installation's Label Studio."""
        connection = demo.connection_file
        return cls(
            label_studio_url=connection.label_studio_url,
            api_key=connection.api_key,
            files_dir=demo.data_dir / "files",
            data_dir=data_dir,
            weights=weights,
            address=new_address(),
        )

    @contextmanager
    def running(
        self, *, log: Path | None = None, **settings: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Served by gunicorn, with the container's command, until the block ends."""
        output = None if log is None else log.open("ab")
        process = subprocess.Popen(
            [
                Path(sys.executable).with_name("gunicorn"),
                "--config",
                "python:backend.gunicorn_conf",
                "backend._wsgi:app",
            ],
            env=os.environ
            | {
                "CELLAI_LABEL_STUDIO_URL": self.label_studio_url,
                "CELLAI_LABEL_STUDIO_API_KEY": self.api_key,
                "CELLAI_DATA_DIR": str(self.data_dir),
                "CELLAI_FILES_DIR": str(self.files_dir),
                "CELLAI_PORT": self.address.url.rpartition(":")[2],
                "CELLAI_BASIC_AUTH_USER": self.address.user,
                "CELLAI_BASIC_AUTH_PASSWORD": self.address.password,
                "CELLAI_WEIGHTS": str(self.weights),
                "CELLAI_QUIET_SECONDS": "1",
            }
            | settings,
            stderr=output,
            start_new_session=True,
        )
        if output is not None:
            output.close()
        client = BackendClient(self.address)
        try:
            wait_until(client.is_ready, deadline_s=START_DEADLINE_S, what="ready backend")
            yield process
        finally:
            client.close()
            if process.poll() is None:
                process.terminate()
            process.wait(60)

    def import_source(
        self, source: Path, *options: object, labels: bool = False, **environment: str
    ) -> int:
        """Import a source, without its labels unless told, into a new project of this backend's."""
        use_labels = [] if labels else ["--no-labels"]
        where = ("--files-dir", self.files_dir)
        return self._import(source, *use_labels, *where, *options, **environment)

    def connect(self, project_id: int) -> None:
        """Connect this backend to a project that is there, and import nothing."""
        assert self._import("--project", project_id) == project_id

    def _import(self, *arguments: object, **environment: str) -> int:
        answer = run_cellai(
            "import",
            *arguments,
            "--url",
            self.label_studio_url,
            "--backend-url",
            self.address.url,
            LABEL_STUDIO_API_KEY=self.api_key,
            CELLAI_BASIC_AUTH_USER=self.address.user,
            CELLAI_BASIC_AUTH_PASSWORD=self.address.password,
            **environment,
        )
        assert answer.returncode == 0, answer.stderr
        return int(answer.stdout)


def annotate(
    label_studio: Connection, task_id: int, label: str, *, from_name: str = "cell_class"
) -> float:
    """Submit a label as the page does; returns the seconds Label Studio took."""
    started = time.perf_counter()
    choice = {
        "from_name": from_name,
        "to_name": "card",
        "type": "choices",
        "value": {"choices": [label]},
    }
    label_studio.post(
        f"api/tasks/{task_id}/annotations/", {"result": [choice], "was_cancelled": False}
    )
    return time.perf_counter() - started


def scores_by_task(label_studio: Connection, project_id: int, version: str) -> dict[int, float]:
    """Score by task of one version; fails on a doubled prediction."""
    scores: dict[int, float] = {}
    for row in label_studio.get("api/predictions/", project=project_id):
        if row["model_version"] == version:
            assert row["task"] not in scores, f"task {row['task']} has two predictions"
            scores[row["task"]] = row["score"]
    return scores


def walk_queue(installation: Installation, *, n_tasks: int, labels: Mapping[int, str]) -> list[int]:
    """Label the next tasks one after the other, as the page serves them; returns their ids."""
    walked = []
    for _ in range(n_tasks):
        task = installation.label_studio.get(f"api/projects/{installation.project_id}/next")
        walked.append(task["id"])
        annotate(installation.label_studio, task["id"], labels[task["id"]])
    return walked
