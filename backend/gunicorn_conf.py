"""How gunicorn serves the backend, and how the job runner is kept alive beside it.

Every web process has a thread that tries to hold a lock; the one that holds it starts the
job runner and starts it again when it dies. So there is always one, whichever web process
is killed.
"""

import logging
import os
import subprocess
import sys
import threading
import time

from filelock import FileLock, Timeout

from backend.logs import logging_config
from backend.runner_record import STARTING, read_trouble, write_state, write_trouble
from backend.settings import Settings, read_settings

_settings = read_settings()
_log = logging.getLogger(__name__)

bind = f"{_settings.host}:{_settings.port}"
workers = _settings.workers
threads = _settings.threads
worker_class = "gthread"
timeout = 120
# A stop lets the running requests end; a first prediction loads the trunk, which takes seconds.
graceful_timeout = 25
logconfig_dict = logging_config(_settings)
accesslog = None
control_socket_disable = True  # all instances of an account would share one path
RESTART_SECONDS = 2.0
# A job runner that lives shorter than this, several times in a row, is ill and not unlucky.
SHORT_LIFE_SECONDS = 60.0
MOST_SHORT_LIVES = 3


def when_ready(_arbiter: object) -> None:
    """Gunicorn hook, before the first web process: import what all of them need.

    They are forks, so its memory is there once, and one that takes a killed one's place answers
    at once instead of after four seconds. Signals and connections are taken already. The
    application itself, with its locks, is each one's own.
    """
    import backend.report_routes  # noqa: PLC0415
    import backend.routes  # noqa: F401, PLC0415


def post_worker_init(_worker: object) -> None:
    """Gunicorn hook, in a web process that is ready: watch over the job runner."""
    threading.Thread(target=_keep_job_runner, args=(_settings,), daemon=True).start()


def _keep_job_runner(settings: Settings) -> None:
    while True:
        try:
            _run_job_runners(settings)
        except OSError as error:  # the edge: a full or read-only disk may be mended
            _log.error("the job runner cannot be started: %s", error)
            time.sleep(RESTART_SECONDS)


def _run_job_runners(settings: Settings) -> None:
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(settings.data_dir / "supervisor.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.info(
            "another web process keeps the job runner of %s alive; this one takes over when that"
            " ends",
            settings.data_dir,
        )
    with lock:
        write_state(settings.data_dir, STARTING)  # the last run's word no longer holds
        short_lives = 0
        while True:
            began = time.monotonic()
            command = [sys.executable, "-m", "backend.worker", str(os.getpid())]
            runner = subprocess.Popen(command)
            code = runner.wait()
            _log.warning("the job runner ended with code %d; it starts again", code)
            short_lives = short_lives + 1 if time.monotonic() - began < SHORT_LIFE_SECONDS else 0
            if short_lives >= MOST_SHORT_LIVES and not read_trouble(settings.data_dir):
                write_trouble(
                    settings.data_dir,
                    f"The job runner ended {short_lives} times in a row, the last time with code"
                    f" {code}. It starts again by itself; its log says more.",
                )
            time.sleep(RESTART_SECONDS)
