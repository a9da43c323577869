"""Kills a process at a chosen point of the backend's work; the product knows nothing of it.

Python imports this module at its start when its folder is on PYTHONPATH. The file named in
FAULT_FILE holds, while a fault is wanted, `POINT PID`: whoever comes to the point deletes the
file and kills that process, itself when PID is 0, or the process that started it for `parent`.
With `POINT pause` the file is renamed to FAULT_FILE.paused instead, and the process goes on when
that one is deleted. FAULT_FILE.clock holds the seconds by which the clock is wrong.

With FAULT_RETRY_SECONDS jobs that failed and cards that could not be stored are tried again so
soon, and not after 15 and 60 seconds.

With ACCESS_TOKEN_SECONDS what Label Studio gives for a personal access token lives so long. It is
five minutes otherwise, for which Label Studio 1.23.2 has no setting.
"""

import functools
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

# point: module, function, and whether the kill comes before or after it
POINTS = {
    "webhook-arrived": ("backend.jobs", "JobStore.mark", "before"),
    "webhook-stored": ("backend.jobs", "JobStore.mark", "after"),
    "job-begun": ("backend.jobs", "JobStore.begin", "after"),
    "labels-read": ("backend.training_set", "SnapshotReader.read", "after"),
    "head-fitted": ("backend.retraining", "fit", "after"),
    "version-written": ("backend.registry", "Registry.publish", "after"),
    "pool-scored": ("backend.retraining", "rescore", "after"),
    "import-begun": ("backend.label_studio", "LabelStudioClient.import_predictions", "before"),
    "predictions-imported": (
        "backend.label_studio",
        "LabelStudioClient.import_predictions",
        "after",
    ),
    "queue-switched": ("backend.label_studio", "LabelStudioClient.set_model_version", "after"),
    "version-served": ("backend.jobs", "JobStore.serve", "after"),
    "job-finished": ("backend.jobs", "JobStore.finish", "after"),
    "cards-begun": ("backend.card_refresh", "CardRefresh._write", "after"),
    "cards-written": ("backend.jobs", "JobStore.cards_written", "after"),
    "sweep-begun": ("backend.label_studio", "LabelStudioClient.delete_prediction", "after"),
}
# The job runner comes to these also when it looks whether there is news and finds none.
ONLY_WITH_NEWS = {"job-begun", "labels-read", "job-finished"}
_has_news = True  # the job that began last in this process


def _install(fault_file: Path) -> None:
    """Wrap the points as soon as the process has imported what they are in."""
    waiting = dict(POINTS)
    while waiting:
        for point, (module, path, when) in list(waiting.items()):
            owner_name, _, name = path.rpartition(".")
            owner: Any = sys.modules.get(module)
            if owner is not None and owner_name:
                owner = getattr(owner, owner_name, None)
            if owner is not None and hasattr(owner, name):
                setattr(owner, name, _wrapped(getattr(owner, name), point, when, fault_file))
                del waiting[point]
        time.sleep(0.01)


def _wrapped(function: Any, point: str, when: str, fault_file: Path) -> Any:
    @functools.wraps(function)
    def at_point(*arguments: Any, **named: Any) -> Any:
        if point == "job-begun":
            _note_news(*arguments)
        if when == "before":
            _fail_if_wanted(point, fault_file)
        result = function(*arguments, **named)
        if when == "after":
            _fail_if_wanted(point, fault_file)
        return result

    return at_point


def _note_news(_store: Any, project: Any) -> None:
    global _has_news  # noqa: PLW0603
    _has_news = project.events != project.handled


def _fail_if_wanted(point: str, fault_file: Path) -> None:
    try:
        wanted, victim = fault_file.read_text().split()
    except (FileNotFoundError, ValueError):
        return
    if wanted != point or (point in ONLY_WITH_NEWS and not _has_news):
        return
    if victim == "pause":
        paused = fault_file.rename(f"{fault_file}.paused")
        while paused.exists():
            time.sleep(0.05)
        return
    fault_file.unlink()
    pid = os.getppid() if victim == "parent" else int(victim) or os.getpid()
    os.kill(pid, signal.SIGKILL)


def _set_clock(clock_file: Path) -> None:
    """Let `time.time` be wrong by what the file says; timers and deadlines do not use it."""
    right = time.time

    def wrong() -> float:
        try:
            return right() + float(clock_file.read_text())
        except (FileNotFoundError, ValueError):
            return right()

    time.time = wrong


def _shorten_retries() -> None:
    """Wait until the modules are there; a job runner imports them long before its first job."""
    waiting = ["backend.jobs", "backend.card_refresh"]
    while waiting:
        for name in list(waiting):
            module: Any = sys.modules.get(name)
            if hasattr(module, "RETRY_SECONDS"):
                module.RETRY_SECONDS = float(os.environ["FAULT_RETRY_SECONDS"])
                waiting.remove(name)
        time.sleep(0.01)


def _shorten_access_tokens() -> None:
    """Wait until the class is there; Label Studio imports it long before it serves."""
    token: Any = None
    while token is None:
        token = getattr(sys.modules.get("rest_framework_simplejwt.tokens"), "AccessToken", None)
        time.sleep(0.01)
    token.lifetime = timedelta(seconds=float(os.environ["ACCESS_TOKEN_SECONDS"]))


def _install_beside() -> None:
    threading.Thread(target=_install, args=(Path(os.environ["FAULT_FILE"]),), daemon=True).start()


if "FAULT_FILE" in os.environ and any("backend" in word for word in sys.orig_argv):
    _set_clock(Path(f"{os.environ['FAULT_FILE']}.clock"))
    _install_beside()
    os.register_at_fork(after_in_child=_install_beside)  # gunicorn's web processes
if "FAULT_RETRY_SECONDS" in os.environ and "backend.worker" in sys.orig_argv:
    threading.Thread(target=_shorten_retries, daemon=True).start()
if "ACCESS_TOKEN_SECONDS" in os.environ:
    threading.Thread(target=_shorten_access_tokens, daemon=True).start()
