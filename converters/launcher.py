"""`cellai up`: Label Studio and the ML backend as child processes, and the import into them."""

import sys
import time
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from filelock import FileLock, Timeout

from converters.backend_client import STARTING, BackendClient, QueueState
from converters.connection_file import (
    FILE_NAME,
    ConnectionFile,
    fresh_connection,
    read_connection,
)
from converters.errors import (
    AlreadyRunningError,
    CellAIError,
    ConfigurationError,
    OutputError,
)
from converters.importing import ImportOptions, ImportReport, check_labels, import_sources
from converters.label_config import read_label_config
from converters.label_studio import Connection
from converters.processes import Children, check_port
from converters.project import (
    check_classes,
    connect_backend,
    create_project,
    default_title,
    link_report,
    show_predictions,
)
from converters.screen import EDITOR_KEYMAP
from converters.terminal import plain

LABEL_STUDIO = "label-studio"
BACKEND = "backend"
POLL_SECONDS = 0.3
# So long a trouble of the backend, such as a full disk, may last before `cellai up` gives up.
PATIENCE_SECONDS = 300.0
MAX_FAILED_JOBS = 3

# Settings of Label Studio that a local installation needs; sources in docs/operations.md.
LABEL_STUDIO_ENVIRONMENT = {
    "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
    "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
    # The backend listens on this machine; only the cloud's metadata address stays blocked.
    "USE_DEFAULT_BANNED_SUBNETS": "false",
    "USER_ADDITIONAL_BANNED_SUBNETS": "169.254.0.0/16",
    "EDITOR_KEYMAP": EDITOR_KEYMAP,
    # No telemetry, no version check: a laboratory machine may have no way out.
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "COLLECT_ANALYTICS": "false",
    "LATEST_VERSION_CHECK": "false",
}


@dataclass(frozen=True, slots=True)
class UpOptions:
    """Options of `cellai up`.

    Attributes:
        label_config: of a new project.
        asks_for_classes: an existing project must have its classes.
        blind: None leaves the project as it is.
    """

    data_dir: Path
    port: int
    backend_port: int
    weights: Path | None
    label_config: str
    asks_for_classes: bool
    import_options: ImportOptions
    blind: bool | None = None


class Launcher:
    """One running installation below a data directory; use as a context manager.

    Args:
        options: of `cellai up`.
        say: prints a line for the user.
    """

    def __init__(self, options: UpOptions, *, say: Callable[[str], None]) -> None:
        self._options = options
        self._say = say
        self._data_dir = options.data_dir.resolve()
        self._files_dir = self._data_dir / "files"

    def __enter__(self) -> "Launcher":
        """Claim the data directory, check the ports, start both services.

        Raises:
            OutputError: the data directory cannot be written.
            AlreadyRunningError: another `cellai up` holds it.
            PortInUseError: a port is taken.
            ConfigurationError: Label Studio is not installed.
        """
        if not Path(label_studio_command(self._options.port)[0]).is_file():
            raise ConfigurationError(
                "Label Studio is not installed beside CellAI.",
                hint="`make setup` installs it; `cellai import` does with one that runs elsewhere.",
            )
        try:
            self._files_dir.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._data_dir / "launcher.lock", timeout=0)
            self._lock.acquire()
        except Timeout as error:
            raise AlreadyRunningError(
                f"Another `cellai up` runs on {self._data_dir}.",
                hint="Stop it with Ctrl+C, or choose another --data-dir.",
            ) from error
        except OSError as error:
            raise _unwritable(self._data_dir, error) from error
        try:
            self._children = Children(self._data_dir)
            check_port(self._options.port, option="--port")
            check_port(self._options.backend_port, option="--backend-port")
            self.connection_file = self._connection_file()
            self._start()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop both services."""
        self._children.stop()
        self._lock.release()

    def wait_until_up(self, *, on_state: Callable[[str], None]) -> None:
        """Wait for Label Studio and for the backend's model.

        Args:
            on_state: told what the backend waits for, in a sentence.

        Raises:
            CellAIError: a service keeps ending, the model cannot be loaded, or something keeps
                the backend from work for minutes.
        """
        url = self.connection_file.label_studio_url
        started = time.monotonic()
        while not answers(f"{url}/health"):
            self._children.check()
            time.sleep(POLL_SECONDS)
        self._say(f"{LABEL_STUDIO} is up ({time.monotonic() - started:.0f} s)")
        self._connection = Connection(url, self.connection_file.api_key)
        self._connection.get("api/current-user/whoami")
        self._backend = BackendClient(self.connection_file.backend)
        started = time.monotonic()
        wait_for_backend(self._backend, check=self._children.check, on_state=on_state)
        self._say(f"{BACKEND} is up ({time.monotonic() - started:.0f} s)")

    def import_sources(
        self, sources: Sequence[Path], *, on_progress: Callable[[int], None]
    ) -> ImportReport:
        """Import into the project of this data directory, which is created at the first time.

        Raises:
            ConfigurationError: other classes are asked for than the project has.
        """
        project_id = self.connection_file.project_id
        if project_id is None:
            config = read_label_config(self._options.label_config)
            check_labels(sources, config, self._options.import_options)
            project_id = create_project(
                self._connection,
                title=default_title(sources[0]),
                label_config=self._options.label_config,
            )
            self.connection_file = replace(self.connection_file, project_id=project_id)
            self._store(self.connection_file)
        elif self._options.asks_for_classes:
            check_classes(
                self._connection, project_id, read_label_config(self._options.label_config)
            )
        return import_sources(
            self._connection,
            project_id,
            sources,
            files_dir=self._files_dir,
            options=self._options.import_options,
            on_progress=on_progress,
        )

    def connect(self) -> None:
        """Connect the backend to the project and tell it that tasks may be new."""
        project_id = self._project_id()
        backend = self.connection_file.backend
        if self._options.blind is not None:
            show_predictions(self._connection, project_id, shown=not self._options.blind)
        connect_backend(self._connection, project_id, backend)
        self._backend.announce_tasks(project_id)
        link_report(self._connection, project_id, backend, public_url=self._backend.public_url())

    def wait_until_sorted(self, *, on_state: Callable[[QueueState], None]) -> QueueState:
        """Wait until every task has a score and Label Studio sorts by it.

        Says so and returns if there is no task, or if the backend's job fails again and again: what
        is wrong may be the project's settings, and Label Studio must run for somebody to correct
        them.

        Raises:
            CellAIError: a service keeps ending.
        """
        before = self._backend.queue_state(self._project_id()).last_job
        while True:
            self._children.check()
            state = self._backend.queue_state(self._project_id())
            if state.is_sorted:
                return state
            if state.is_idle:
                self._say("The project has no cells yet; `cellai import` brings some.")
                return state
            # Failures of earlier runs count too, but their cause may be gone.
            if state.failures >= MAX_FAILED_JOBS and state.last_job > before:
                self._say(
                    plain(
                        f"The queue cannot be sorted: {state.error} The backend tries again by"
                        f" itself; its log is {self._children.log(BACKEND)}."
                    )
                )
                return state
            on_state(state)
            time.sleep(POLL_SECONDS)

    def watch(self) -> None:
        """Keep both services alive until interrupted.

        Raises:
            CellAIError: a service keeps ending.
        """
        while True:
            for name in self._children.check():
                self._say(f"{name} had ended and was started again.")
            time.sleep(POLL_SECONDS)

    @property
    def labelling_url(self) -> str:
        """Page on which the next cell is labelled."""
        return (
            f"{self.connection_file.label_studio_url}/projects/{self._project_id()}/data?labeling=1"
        )

    @property
    def report_url(self) -> str:
        """Page of the progress report, served by the backend."""
        return f"{self.connection_file.backend_url}/report/{self._project_id()}"

    def open_browser(self) -> None:
        """Show the labelling page in the user's browser."""
        webbrowser.open(self.labelling_url)

    def _project_id(self) -> int:
        if self.connection_file.project_id is None:
            raise CellAIError("Nothing was imported yet.", hint="Name a source: `cellai up FILE`.")
        return self.connection_file.project_id

    def _connection_file(self) -> ConnectionFile:
        """The stored connection with today's ports, or a fresh one."""
        label_studio_url = f"http://127.0.0.1:{self._options.port}"
        backend_url = f"http://127.0.0.1:{self._options.backend_port}"
        exists = (self._data_dir / FILE_NAME).exists()
        stored = (
            read_connection(self._data_dir)
            if exists
            else fresh_connection(label_studio_url, backend_url)
        )
        connection = replace(stored, label_studio_url=label_studio_url, backend_url=backend_url)
        self._store(connection)
        return connection

    def _store(self, connection: ConnectionFile) -> None:
        """Keep the connection for scripts and later starts."""
        try:
            connection.write(self._data_dir)
        except OSError as error:
            raise _unwritable(self._data_dir, error) from error

    def _start(self) -> None:
        connection = self.connection_file
        self._children.start(
            LABEL_STUDIO,
            label_studio_command(self._options.port),
            LABEL_STUDIO_ENVIRONMENT
            | {
                "LABEL_STUDIO_BASE_DATA_DIR": str(self._data_dir / "label-studio"),
                "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(self._files_dir),
                "LABEL_STUDIO_USERNAME": connection.email,
                "LABEL_STUDIO_PASSWORD": connection.password,
                "LABEL_STUDIO_USER_TOKEN": connection.api_key,
            },
        )
        weights = self._options.weights
        self._children.start(
            BACKEND,
            [
                str(Path(sys.executable).with_name("gunicorn")),
                "--config",
                "python:backend.gunicorn_conf",
                "backend._wsgi:app",
            ],
            {
                "CELLAI_LABEL_STUDIO_URL": connection.label_studio_url,
                "CELLAI_LABEL_STUDIO_API_KEY": connection.api_key,
                "CELLAI_DATA_DIR": str(self._data_dir / "backend"),
                "CELLAI_FILES_DIR": str(self._files_dir),
                "CELLAI_PORT": str(self._options.backend_port),
                "CELLAI_BASIC_AUTH_USER": connection.backend_user,
                "CELLAI_BASIC_AUTH_PASSWORD": connection.backend_password,
            }
            | ({"CELLAI_WEIGHTS": str(weights.resolve())} if weights else {}),
        )


def wait_for_backend(
    backend: BackendClient,
    *,
    check: Callable[[], object],
    on_state: Callable[[str], None],
    patience_s: float = PATIENCE_SECONDS,
) -> None:
    """Wait until the backend has its model and can work.

    Args:
        backend: the one that was started.
        check: called again and again; raises when it has ended for good.
        on_state: told what the backend waits for, in its own words.
        patience_s: how long something may keep the backend from work.

    Raises:
        CellAIError: it cannot load its model, or patience is at its end.
    """
    well_at = time.monotonic()
    while not backend.is_ready():
        check()
        if backend.state in STARTING:
            well_at = time.monotonic()
        elif time.monotonic() - well_at > patience_s:
            raise CellAIError(
                f"The backend does not become ready: {backend.state}",
                hint="Mend that, then run the same command again.",
            )
        on_state(backend.state)
        time.sleep(POLL_SECONDS)


def label_studio_command(port: int) -> list[str]:
    """Command that starts Label Studio on this machine only."""
    return [
        str(Path(sys.executable).with_name("label-studio")),
        "start",
        "--no-browser",
        "--internal-host",
        "127.0.0.1",
        "--port",
        str(port),
    ]


def _unwritable(data_dir: Path, error: OSError) -> OutputError:
    return OutputError(
        f"The data directory {data_dir} cannot be written ({error.strerror}).",
        hint="Make room, or choose a folder that you may write with --data-dir.",
    )


def answers(url: str) -> bool:
    """Whether a GET of the address succeeds."""
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False
