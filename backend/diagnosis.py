"""Facts about this backend that only it can see; `cellai doctor` judges them."""

import errno
import os
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from backend.jobs import Job, JobStore
from backend.label_studio import LabelStudioClient
from backend.runner_record import read_runner, read_state, read_trouble
from backend.settings import Settings
from converters.errors import LabelStudioError

ACCESS_TIMEOUT_S = 10.0
LEAST_FREE_BYTES = 5_000_000  # a version and its job take less than half of it


def diagnose(settings: Settings, store: JobStore) -> dict[str, Any]:
    """The facts, as JSON; nothing in it is secret."""
    runner = read_runner(settings.data_dir)
    return {
        "public_url": settings.public_url,
        "label_studio": {
            "url": settings.label_studio_url,
            "problem": label_studio_problem(settings),
        },
        "runner": {
            "state": read_state(settings.data_dir),
            "trouble": read_trouble(settings.data_dir),
            "is_alive": runner is not None and runner.is_alive,
            "device": runner.device if runner else None,
            "precision": runner.precision if runner else None,
            "trunk_id": runner.trunk_id if runner else None,
        },
        "machine": {
            "cores": _cores(),
            "memory_bytes": psutil.virtual_memory().total,
        },
        "disks": [_disk(folder) for folder in (settings.data_dir, settings.files_dir)],
        "projects": _projects(store),
    }


def label_studio_problem(settings: Settings) -> str:
    """Why Label Studio does not serve this backend, in a sentence; '' when it does."""
    client = LabelStudioClient(
        settings.label_studio_url,
        settings.label_studio_api_key.get_secret_value(),
        timeout_s=ACCESS_TIMEOUT_S,
    )
    try:
        client.check_access()
    except LabelStudioError as error:
        return str(error)
    finally:
        client.close()
    return ""


def storage_problem(settings: Settings) -> str:
    """Why nothing can be stored in the data directory, in a sentence; '' when it can.

    It names no path: everybody may read it.
    """
    disk = _disk(settings.data_dir)
    if disk["free_bytes"] is not None and disk["free_bytes"] < LEAST_FREE_BYTES:
        return "The disk of the data directory is full."
    if disk["refusal"]:
        return f"The data directory cannot be written: {disk['refusal']}."
    return ""


def _projects(store: JobStore) -> list[dict[str, Any]]:
    """The projects; none where the store cannot be opened, of which the disks tell the reason."""
    try:
        return [
            {
                "project_id": project.id,
                "n_tasks": project.n_tasks,
                "waiting_seconds": time.time() - project.last_event_at
                if project.events != project.handled
                else None,
            }
            | _jobs(store.jobs(project.id))
            for project in store.projects()
        ]
    except sqlite3.OperationalError:
        return []


def _jobs(jobs: list[Job]) -> dict[str, Any]:
    """The running job's silence and the failures since the last success, newest job first."""
    running = next((job for job in jobs if job.state == "running"), None)
    failed = [job for job in jobs if job.state != "running"]
    n_failures = next((row for row, job in enumerate(failed) if job.state != "failed"), len(failed))
    return {
        "stage": running.stage if running else None,
        "silent_seconds": time.time() - (running.progressed_at or running.started_at)
        if running
        else None,
        "failures": n_failures,
        "error": failed[0].error if n_failures else None,
    }


def _cores() -> int:
    """Cores that this process may use; where the system does not tell that, all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _disk(folder: Path) -> dict[str, Any]:
    free_bytes = shutil.disk_usage(folder).free if folder.is_dir() else None
    is_full = free_bytes is not None and free_bytes < LEAST_FREE_BYTES
    refusal = _refusal(folder)
    # That a disk is full is told by its free bytes: room is missing there, and no permission.
    no_refusal = is_full and refusal == os.strerror(errno.ENOSPC)
    return {
        "folder": str(folder),
        "refusal": "" if no_refusal else refusal,
        "free_bytes": free_bytes,
    }


def _refusal(folder: Path) -> str:
    """Why nothing can be written there, '' when something can; only writing tells of a quota."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        return str(error.strerror)
    return ""
