"""Durable record of which projects need retraining, and of what the job runner did.

Web requests write marks, the one job runner reads them. A mark is a row in SQLite, so a
burst of webhooks coalesces into one row and survives a crash of either side.

A file that the disk damaged is set aside as `jobs.sqlite.damaged` and begun anew: what matters
in it can be found out again, from Label Studio and from the stored versions.
"""

import json
import logging
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from backend.sqlite_damage import is_damage

SCHEMA = """
CREATE TABLE IF NOT EXISTS projects (
    id INTEGER PRIMARY KEY,
    extra_params TEXT NOT NULL DEFAULT '',
    serving_version TEXT,
    cards_version TEXT,                    -- version that every card shows
    events INTEGER NOT NULL DEFAULT 0,     -- marks ever made
    handled INTEGER NOT NULL DEFAULT 0,    -- marks that a finished job has seen
    new_labels INTEGER NOT NULL DEFAULT 0, -- labels announced since the last job began
    last_event_at REAL NOT NULL DEFAULT 0, -- unix seconds
    forced INTEGER NOT NULL DEFAULT 0,     -- skip the quiet period
    demanded INTEGER NOT NULL DEFAULT 0,   -- mark with which a person asked to train in any case
    retry_at REAL NOT NULL DEFAULT 0       -- unix seconds; not before, after a failure
);
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id INTEGER NOT NULL,
    state TEXT NOT NULL,                   -- running, done, failed or interrupted
    stage TEXT NOT NULL DEFAULT '',
    started_at REAL NOT NULL,
    finished_at REAL,
    model_version TEXT,
    n_labels INTEGER,
    error TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_project ON jobs (project_id, id);
"""

TASKS_PER_LABEL = 500
RETRY_SECONDS = 15.0  # between a failed job and its next try
KEPT_JOBS = 200  # of each project; one that fails for good adds thousands a day
BUSY_SECONDS = 30.0  # that a writer waits for another

_log = logging.getLogger(__name__)

# Columns that came after version 0.1.0; an older file gets them when it is opened.
ADDED_COLUMNS = (
    ("projects", "wanted_version", "TEXT"),  # a person chose it to be served
    ("projects", "wanted_digest", "TEXT"),  # what decided heads when it was; NULL until served
    ("projects", "n_tasks", "INTEGER"),  # size of the pool when it was last read
    ("projects", "n_labels", "INTEGER"),  # labels in it then
    ("projects", "unreadable", "TEXT NOT NULL DEFAULT '[]'"),  # JSON: ids of tasks, see Project
    ("jobs", "progressed_at", "REAL"),  # unix seconds; of the last sign of life
    ("jobs", "stage_seconds", "TEXT NOT NULL DEFAULT '{}'"),  # JSON: kind of stage to duration
)


def labels_per_version(n_tasks: int, *, max_new_labels: int) -> int:
    """New labels after which a project is retrained without a quiet period.

    Args:
        n_tasks: size of the project.
        max_new_labels: least number. Small batches learn faster, most of all at the beginning.

    Returns:
        At least one for TASKS_PER_LABEL tasks: each version's predictions are imported for all
        tasks, 0.7 ms each (measured, Label Studio 1.23.2), while somebody is labelling.
    """
    return max(max_new_labels, n_tasks // TASKS_PER_LABEL)


@dataclass(frozen=True, slots=True)
class Project:
    """What the backend knows of a Label Studio project; times in unix seconds.

    `unreadable` holds the tasks whose picture could not be read when the queue was last ordered.
    """

    id: int
    extra_params: str
    serving_version: str | None
    cards_version: str | None
    events: int
    handled: int
    new_labels: int
    last_event_at: float
    forced: bool
    demanded: bool
    retry_at: float
    wanted_version: str | None
    wanted_digest: str | None
    n_tasks: int | None
    n_labels: int | None
    unreadable: tuple[int, ...]

    def is_due(self, now: float, *, quiet_seconds: float, max_new_labels: int) -> bool:
        """Whether the marks call for a job now: forced, enough labels, or a quiet period."""
        # A clock that was set back must not make anything wait longer than it would have.
        if self.events == self.handled or 0 < self.retry_at - now <= RETRY_SECONDS:
            return False
        quiet = not 0 <= now - self.last_event_at < quiet_seconds
        enough = labels_per_version(self.n_tasks or 0, max_new_labels=max_new_labels)
        return self.forced or self.new_labels >= enough or quiet


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the job runner for a project; times in unix seconds."""

    id: int
    project_id: int
    state: str
    stage: str
    started_at: float
    finished_at: float | None
    model_version: str | None
    n_labels: int | None
    error: str | None
    progressed_at: float | None
    stage_seconds: dict[str, float]

    def as_json(self) -> dict[str, object]:
        """The job as `cellai status --json` shows it."""
        return asdict(self)


class JobStore:
    """Marks and jobs in one SQLite file, shared by several processes."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        with FileLock(f"{path}.lock", timeout=BUSY_SECONDS):
            if problem := _damage(path):
                _set_aside(path, problem)
            self._create()

    def _create(self) -> None:
        with self._transaction() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(SCHEMA)
        with self._transaction() as connection:
            connection.execute("BEGIN IMMEDIATE")
            _add_columns(connection)

    def set_up(self, project_id: int, *, extra_params: str) -> None:
        """Remember a connected project; a new one, or new parameters, ask for a job at once."""
        with self._transaction() as connection:
            known = connection.execute(
                "SELECT extra_params FROM projects WHERE id = ?", (project_id,)
            ).fetchone()
            if known is None:
                connection.execute(
                    "INSERT INTO projects (id, extra_params, events, forced, last_event_at)"
                    " VALUES (?, ?, 1, 1, ?)",
                    (project_id, extra_params, time.time()),
                )
            elif known["extra_params"] != extra_params:
                connection.execute(
                    "UPDATE projects SET extra_params = ?, events = events + 1, forced = 1,"
                    " last_event_at = ? WHERE id = ?",
                    (extra_params, time.time(), project_id),
                )

    def mark(
        self,
        project_id: int,
        *,
        new_labels: int = 0,
        at_once: bool = False,
        demanded: bool = False,
    ) -> bool:
        """Ask for a job on a connected project.

        Args:
            project_id: the project; one that was never set up is ignored.
            new_labels: annotations that the event announced.
            at_once: do not wait for a quiet period.
            demanded: a person asked for a new version, even if nothing changed; at once.

        Returns:
            Whether the project is known.
        """
        with self._transaction() as connection:
            cursor = connection.execute(
                "UPDATE projects SET events = events + 1, new_labels = new_labels + ?,"
                " forced = max(forced, ?), demanded = iif(?, events + 1, demanded), retry_at = 0,"
                " last_event_at = ? WHERE id = ?",
                (new_labels, int(at_once or demanded), demanded, time.time(), project_id),
            )
            return cursor.rowcount == 1

    def want(self, project_id: int, version: str) -> bool:
        """Ask for a stored version to be served, until a label changes; at once.

        Returns:
            Whether the project is known.
        """
        with self._transaction() as connection:
            cursor = connection.execute(
                "UPDATE projects SET wanted_version = ?, wanted_digest = NULL,"
                " events = events + 1, forced = 1, retry_at = 0, last_event_at = ? WHERE id = ?",
                (version, time.time(), project_id),
            )
            return cursor.rowcount == 1

    def grant_wish(self, project: Project, digest: str) -> None:
        """Record that the wanted version is served for what decides heads now."""
        self._settle_wish(project, project.wanted_version, digest)

    def drop_wish(self, project: Project) -> None:
        """Forget the wanted version; a wish made meanwhile stays."""
        self._settle_wish(project, None, None)

    def counted(self, project_id: int, *, n_tasks: int, n_labels: int) -> None:
        """Record the size of the pool and of its labelled part."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE projects SET n_tasks = ?, n_labels = ? WHERE id = ?",
                (n_tasks, n_labels, project_id),
            )

    def projects(self) -> list[Project]:
        """All connected projects, the one that has waited longest first."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT * FROM projects ORDER BY last_event_at, id")
            return [_project(row) for row in rows]

    def project(self, project_id: int) -> Project | None:
        """The connected project, or None."""
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT * FROM projects WHERE id = ?", (project_id,)
            ).fetchone()
            return None if row is None else _project(row)

    def forget(self, project_id: int) -> None:
        """Drop a project that Label Studio no longer has."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM projects WHERE id = ?", (project_id,))

    def begin(self, project: Project) -> int:
        """Open a job that will cover every mark `project` shows; returns the job's id."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE projects SET new_labels = 0, forced = 0 WHERE id = ?",
                (project.id,),
            )
            connection.execute(
                "DELETE FROM jobs WHERE project_id = ? AND id <= (SELECT id FROM jobs"
                " WHERE project_id = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (project.id, project.id, KEPT_JOBS - 1),
            )
            now = time.time()
            cursor = connection.execute(
                "INSERT INTO jobs (project_id, state, started_at, progressed_at)"
                " VALUES (?, 'running', ?, ?)",
                (project.id, now, now),
            )
            return int(cursor.lastrowid or 0)

    def progress(
        self,
        job_id: int,
        stage: str,
        *,
        model_version: str | None = None,
        n_labels: int | None = None,
    ) -> None:
        """Record what a running job does now; its first word says which kind of stage it is."""
        with self._transaction() as connection:
            _note_stage(connection, job_id)
            connection.execute(
                "UPDATE jobs SET stage = ?, model_version = coalesce(?, model_version),"
                " n_labels = coalesce(?, n_labels) WHERE id = ?",
                (stage, model_version, n_labels, job_id),
            )

    def finish(self, job_id: int, project: Project, *, changed: bool) -> None:
        """Close a job: the marks it covered are handled; later ones stay.

        A job that found nothing to do leaves no row, so that checks do not fill the history;
        except after one that failed, which would stay the last word.
        """
        with self._transaction() as connection:
            if changed or _last_failed(connection, job_id, project.id):
                _note_stage(connection, job_id)
                connection.execute(
                    "UPDATE jobs SET state = 'done', stage = '', finished_at = ? WHERE id = ?",
                    (time.time(), job_id),
                )
            else:
                connection.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
            connection.execute(
                "UPDATE projects SET handled = ? WHERE id = ?", (project.events, project.id)
            )

    def fail(self, job_id: int, project: Project, *, error: str) -> None:
        """Close a job that failed; it is tried again after RETRY_SECONDS.

        Its marks stay; one of a reconciliation, which had none, gets one.
        """
        with self._transaction() as connection:
            _note_stage(connection, job_id)
            connection.execute(
                "UPDATE jobs SET state = 'failed', error = ?, finished_at = ? WHERE id = ?",
                (error, time.time(), job_id),
            )
            connection.execute(
                "UPDATE projects SET forced = 1, events = events + (events = handled), retry_at = ?"
                " WHERE id = ? AND events = ?",
                (time.time() + RETRY_SECONDS, project.id, project.events),
            )

    def interrupt_running(self) -> None:
        """Close the jobs of a runner that died; they run again."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE projects SET forced = 1, events = events + (events = handled), retry_at = 0"
                " WHERE id IN (SELECT project_id FROM jobs WHERE state = 'running')"
            )
            connection.execute(
                "UPDATE jobs SET state = 'interrupted', finished_at = ? WHERE state = 'running'",
                (time.time(),),
            )

    def serve(self, project_id: int, version: str, *, unreadable: Sequence[int] = ()) -> None:
        """Record the version that the project's queue shows, and the tasks it could not score."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE projects SET serving_version = ?, unreadable = ? WHERE id = ?",
                (version, json.dumps(list(unreadable)), project_id),
            )

    def demand_met(self, project: Project) -> None:
        """Record that a version is stored for the demand that `project` shows.

        What follows may fail and be tried again, with that version.
        """
        with self._transaction() as connection:
            connection.execute(
                "UPDATE projects SET demanded = 0 WHERE id = ? AND demanded <= ?",
                (project.id, project.events),
            )

    def cards_written(self, project_id: int, version: str) -> None:
        """Record that every card of the project shows `version`."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE projects SET cards_version = ? WHERE id = ?", (version, project_id)
            )

    def jobs(self, project_id: int, *, limit: int = 20) -> list[Job]:
        """The project's last jobs, newest first."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT * FROM jobs WHERE project_id = ? ORDER BY id DESC LIMIT ?",
                (project_id, limit),
            )
            return [_job(row) for row in rows]

    def job_counts(self) -> dict[tuple[int, str], int]:
        """Number of jobs by (project id, state)."""
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT project_id, state, count(*) AS n FROM jobs GROUP BY project_id, state"
            )
            return {(row["project_id"], row["state"]): row["n"] for row in rows}

    def _settle_wish(self, project: Project, version: str | None, digest: str | None) -> None:
        with self._transaction() as connection:
            connection.execute(
                "UPDATE projects SET wanted_version = ?, wanted_digest = ?"
                " WHERE id = ? AND wanted_version IS ? AND wanted_digest IS ?",
                (version, digest, project.id, project.wanted_version, project.wanted_digest),
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A short-lived connection: SQLite connections may not cross threads."""
        connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS)
        connection.row_factory = sqlite3.Row
        try:
            with connection:
                yield connection
        finally:
            connection.close()


def _damage(path: Path) -> str:
    """What is wrong with the file, '' when nothing is."""
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return str(error)
    return "" if found == "ok" else str(found)


def _set_aside(path: Path, problem: str) -> None:
    _log.error("%s is damaged (%s); it is set aside and begun anew.", path, problem)
    path.replace(f"{path}.damaged")
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _project(row: sqlite3.Row) -> Project:
    columns = dict(row)
    # a demand is over only when a job that saw it has ended
    is_demanded = columns["demanded"] > columns["handled"]
    typed = {"forced": bool(columns["forced"]), "demanded": is_demanded}
    return Project(**(columns | typed | {"unreadable": tuple(json.loads(columns["unreadable"]))}))


def _job(row: sqlite3.Row) -> Job:
    columns = dict(row)
    return Job(**(columns | {"stage_seconds": json.loads(columns["stage_seconds"])}))


def _add_columns(connection: sqlite3.Connection) -> None:
    """Bring a file that an older version made up to date."""
    for table, column, definition in ADDED_COLUMNS:
        present = [row["name"] for row in connection.execute(f"PRAGMA table_info({table})")]
        if column not in present:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {definition}")


def _last_failed(connection: sqlite3.Connection, job_id: int, project_id: int) -> bool:
    """Whether the project's job before this one failed."""
    row = connection.execute(
        "SELECT state FROM jobs WHERE project_id = ? AND id < ? ORDER BY id DESC LIMIT 1",
        (project_id, job_id),
    ).fetchone()
    return row is not None and row["state"] == "failed"


def _note_stage(connection: sqlite3.Connection, job_id: int) -> None:
    """Add the time since the last note to the kind of stage that was noted then."""
    job = connection.execute(
        "SELECT stage, progressed_at, stage_seconds FROM jobs WHERE id = ?", (job_id,)
    ).fetchone()
    now = time.time()
    seconds = json.loads(job["stage_seconds"])
    if kind := job["stage"].partition(" ")[0]:
        seconds[kind] = seconds.get(kind, 0.0) + now - (job["progressed_at"] or now)
    connection.execute(
        "UPDATE jobs SET progressed_at = ?, stage_seconds = ? WHERE id = ?",
        (now, json.dumps(seconds), job_id),
    )
