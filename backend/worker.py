"""The job runner: the one process that trains, rescores, writes cards and sweeps.

It runs beside the web processes (`python -m backend.worker`), holds a lock on the data
directory, looks for work in the job store and dies with the web server that started it.
Priority: due jobs, then cards, then the sweep of old predictions; the latter two advance in
small steps so that a new label never waits for them.
"""

import contextlib
import json
import logging
import math
import os
import signal
import sqlite3
import sys
import threading
import time
from types import FrameType

import torch
from filelock import FileLock, Timeout

from backend.card_refresh import CardRefresh
from backend.errors import BackendError
from backend.jobs import RETRY_SECONDS, JobStore, Project
from backend.label_studio import LabelStudioClient
from backend.logs import configure_logging, log_context
from backend.memory import OUT_OF_MEMORY, is_out_of_memory
from backend.pool import FeatureReader, load_feature_reader
from backend.registry import Registry
from backend.rescoring import outdated_predictions
from backend.retraining import Retraining
from backend.runner_record import READY, STARTING, describe_runner, write_state, write_trouble
from backend.settings import Settings, read_settings
from backend.sqlite_damage import is_damage
from converters.errors import CellAIError, ProjectNotFoundError

POLL_SECONDS = 0.2
# Old predictions are deleted only when nobody has labelled for so long: each deletion
# occupies SQLite for about 0.1 s.
SWEEP_AFTER_QUIET_SECONDS = 60.0
GPU_FAILED = (
    "The GPU failed; the job runner starts again and tries again. If this comes back, the log says"
    " why; CUDA_VISIBLE_DEVICES= in the backend's environment does without the GPU."
)

_log = logging.getLogger(__name__)


class Worker:
    """Main loop of the job runner."""

    def __init__(self, settings: Settings, features: FeatureReader) -> None:
        self._settings = settings
        self._client = LabelStudioClient(
            settings.label_studio_url, settings.label_studio_api_key.get_secret_value()
        )
        self._store = JobStore(settings.data_dir / "jobs.sqlite")
        self._registry = Registry(settings.data_dir / "models")
        self._retraining = Retraining(
            settings,
            client=self._client,
            features=features,
            registry=self._registry,
            store=self._store,
        )
        self._cards = CardRefresh(settings, client=self._client, features=features)
        self._outdated: dict[int, list[int]] = {}  # by project
        self._swept_for: dict[int, str | None] = {}
        self._sweep_not_before = -math.inf
        self._reconciled_at = -math.inf
        self._working: set[int] = set()  # projects whose last job met no trouble of the machine's
        self._stopping = False

    def stop(self, _signal: int, _frame: FrameType | None) -> None:
        """Finish the current step, then leave."""
        self._stopping = True

    def run(self) -> None:
        """Work until stopped.

        Raises:
            sqlite3.DatabaseError: the job store is damaged; the next job runner begins it anew.
        """
        was_cut_off = True  # by a crash, as far as a new process knows
        while not self._stopping:
            try:
                if was_cut_off:
                    self._store.interrupt_running()
                    self._reconnect()
                    was_cut_off = False
                self._step()
            except (OSError, sqlite3.Error) as error:  # the edge: a full disk has room again
                if isinstance(error, sqlite3.Error) and is_damage(error):
                    raise
                _log.error("%s", self._unusable(error))
                self._report(error)
                was_cut_off = True
                time.sleep(RETRY_SECONDS)

    def _reconnect(self) -> None:
        """Fill a job store that was lost from the stored versions; projects that are gone leave.

        Some projects may be in a new store already: Label Studio has asked for them meanwhile.
        """
        known = {project.id for project in self._store.projects()}
        for project_id in set(self._registry.project_ids()) - known:
            versions = self._registry.versions(project_id)
            parameters = versions[-1].parameters if versions else {}
            chosen = {name: value for name, value in parameters.items() if value is not None}
            self._store.set_up(project_id, extra_params=json.dumps(chosen) if chosen else "")

    def _step(self) -> None:
        self._reconcile()
        if not (self._run_due_job() or self._write_cards() or self._sweep()):
            if all(p.events == p.handled or p.id in self._working for p in self._store.projects()):
                write_trouble(self._settings.data_dir, "")
            time.sleep(POLL_SECONDS)

    def _reconcile(self) -> None:
        """Look at every project now and then, for labels that no webhook announced."""
        if time.monotonic() - self._reconciled_at < self._settings.reconcile_seconds:
            return
        self._reconciled_at = time.monotonic()
        for project in self._store.projects():
            if project.events == project.handled:
                self._run_job(project)

    def _run_due_job(self) -> bool:
        for project in self._store.projects():
            if project.is_due(
                time.time(),
                quiet_seconds=self._settings.quiet_seconds,
                max_new_labels=self._settings.max_new_labels,
            ):
                self._run_job(project)
                return True
        return False

    def _run_job(self, project: Project) -> None:
        with log_context(project_id=project.id):
            self._try_job(project)

    def _try_job(self, project: Project) -> None:
        """Run one job; whatever goes wrong becomes the job's error and is tried again."""
        job_id = self._store.begin(project)
        self._working.add(project.id)
        try:
            served = self._retraining.run(
                project,
                job_id,
                cards_version=self._cards.version(project.id) or project.cards_version,
            )
        except ProjectNotFoundError:
            self._store.fail(job_id, project, error="Label Studio has no such project.")
            self._forget_if_gone(project)
        except CellAIError as error:
            _log.warning("project %d: %s", project.id, error)
            self._store.fail(job_id, project, error=str(error))
        except Exception as error:  # the edge: one project's failure must not stop the others
            self._store.fail(job_id, project, error=self._told(project, error))
            if isinstance(error, torch.AcceleratorError):
                # CUDA refuses everything more in a process that has seen one (CUDA C++ Programming
                # Guide, "Error Checking"); the next job runner begins anew.
                raise
        else:
            self._store.finish(job_id, project, changed=served is not None)
            if served is not None:
                # What was outdated may be what a person has chosen to serve again.
                self._outdated.pop(project.id, None)
                self._swept_for.pop(project.id, None)
                self._cards.show(*served)

    def _told(self, project: Project, error: Exception) -> str:
        """Log an error that no class of ours describes; returns what to say of it."""
        if is_out_of_memory(error):
            self._working.discard(project.id)
            write_trouble(self._settings.data_dir, OUT_OF_MEMORY)
            told = OUT_OF_MEMORY
        elif isinstance(error, OSError | sqlite3.Error):
            self._working.discard(project.id)
            told = self._unusable(error)
        elif isinstance(error, torch.AcceleratorError):
            return GPU_FAILED  # logged where the process ends
        else:
            _log.error("project %d: the job failed", project.id, exc_info=error)
            return "Internal error; see the log."
        _log.warning("project %d: %s", project.id, told)
        return told

    def _report(self, error: OSError | sqlite3.Error) -> None:
        """Let /health say what keeps this process from all work, without the folder's name."""
        reason = error.strerror if isinstance(error, OSError) else str(error)
        trouble = f"The job runner cannot use its files ({reason}). It tries again by itself."
        with contextlib.suppress(OSError):  # the disk may be what is full
            write_trouble(
                self._settings.data_dir, OUT_OF_MEMORY if is_out_of_memory(error) else trouble
            )

    def _unusable(self, error: OSError | sqlite3.Error) -> str:
        return f"The data directory {self._settings.data_dir} cannot be used: {error}"

    def _forget_if_gone(self, project: Project) -> None:
        """Drop a deleted project, but not because something else of it was not found.

        A proxy may answer 404 to everything, and Label Studio does so to a page of tasks that were
        deleted meanwhile.
        """
        try:
            self._client.check_access()
            is_gone = not self._client.has_project(project.id)
        except CellAIError as error:
            _log.warning("project %d: not found, but %s", project.id, error)
            return
        if not is_gone:
            return
        _log.info("project %d is gone", project.id)
        self._store.forget(project.id)
        self._cards.forget(project.id)

    def _write_cards(self) -> bool:
        """Write one batch of cards; whether there was any."""
        finished = self._cards.step()
        if finished is None:
            return False
        if finished:
            # Cards are not synced one by one, thousands are written; all are on disk before
            # it is noted that they are.
            os.sync()
        for project_id, version in finished:
            self._store.cards_written(project_id, version)
        return True

    def _sweep(self) -> bool:
        """Delete one outdated prediction; the serving version's and its predecessor's stay."""
        projects = self._store.projects()
        if time.monotonic() < self._sweep_not_before:
            return False
        if any(0 <= time.time() - p.last_event_at < SWEEP_AFTER_QUIET_SECONDS for p in projects):
            return False
        try:
            outdated = self._next_outdated(projects)
            if not outdated:
                return False
            self._client.delete_prediction(outdated[0])
            del outdated[0]
        except CellAIError as error:
            _log.warning("sweep: %s", error)
            self._sweep_not_before = time.monotonic() + RETRY_SECONDS
            return False
        return True

    def _next_outdated(self, projects: list[Project]) -> list[int]:
        """Predictions to delete of the first project that was not swept for its version."""
        for project in projects:
            if left := self._outdated.get(project.id):
                return left
            if self._swept_for.get(project.id) == project.serving_version:
                continue
            keep = [v.version for v in self._registry.versions(project.id)][-2:]
            outdated = outdated_predictions(
                self._client, project.id, keep={*keep, project.serving_version or ""}
            )
            self._outdated[project.id] = outdated
            self._swept_for[project.id] = project.serving_version
            if outdated:
                return outdated
        return []


def _end_with_parent(parent: int) -> None:
    """Leave at once when the web process that started this one is gone.

    Every step of a job may be cut off anywhere, so nothing needs to be put in order first.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Entry point of `python -m backend.worker PARENT`; settings come from the environment.

    PARENT is the web process. It may be gone by the time this module is imported, so it cannot be
    asked for here.
    """
    parent = int(sys.argv[1])
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    try:
        settings = read_settings()
        configure_logging(settings)
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(settings.data_dir / "worker.lock", timeout=0):
            _work(settings)
    except Timeout:
        _log.info("another job runner holds %s", settings.data_dir)
    except CellAIError as error:
        sys.exit(_print(error))
    except torch.AcceleratorError as error:
        _log.error("the GPU failed", exc_info=error)
        sys.exit(GPU_FAILED)
    except (OSError, MemoryError, RuntimeError) as error:  # a full disk, too little memory
        if not (isinstance(error, OSError) or is_out_of_memory(error)):
            raise
        sys.exit(f"The job runner cannot start: {error}")


def _print(error: CellAIError) -> int:
    """Print the sentence; returns the exit code."""
    sys.stderr.write(f"{error}\n")
    return error.exit_code


def _work(settings: Settings) -> None:
    client = LabelStudioClient(
        settings.label_studio_url, settings.label_studio_api_key.get_secret_value()
    )
    write_state(settings.data_dir, STARTING)
    try:
        features = load_feature_reader(settings, client)
    except BackendError as error:
        _log.error("%s", error)
        write_state(settings.data_dir, str(error))
        raise SystemExit(error.exit_code) from error
    except (OSError, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            write_trouble(settings.data_dir, OUT_OF_MEMORY)
        elif isinstance(error, torch.AcceleratorError):
            write_state(settings.data_dir, GPU_FAILED)
        raise
    describe_runner(features.trunk.trunk_id).write(settings.data_dir)
    write_state(settings.data_dir, READY)
    worker = Worker(settings, features)
    signal.signal(signal.SIGTERM, worker.stop)
    signal.signal(signal.SIGINT, worker.stop)
    worker.run()


if __name__ == "__main__":
    main()
