"""Child processes of `cellai up`: start, watch, stop, and clear away what a killed start left."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from converters.durable import replacing
from converters.errors import CellAIError, PortInUseError

STOP_SECONDS = 15.0
# A child that ends so often in so short a time will not get better by starting it again.
MAX_RESTARTS = 5
RESTART_WINDOW_SECONDS = 120.0
MAX_LOG_BYTES = 10_000_000  # a larger log is put aside when its service starts
_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)


class Children:
    """The services of one data directory.

    Args:
        data_dir: where logs go and the processes are noted.
    """

    def __init__(self, data_dir: Path) -> None:
        self._record = data_dir / "processes.json"
        self._logs = data_dir / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._logs.chmod(0o700)
        self._commands: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ended_at: dict[str, list[float]] = {}
        self._stop_leftovers()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a service; its output goes to `logs/<name>.log`, which only its owner may read.

        A log above MAX_LOG_BYTES becomes `<name>.log.1`, in place of the one before.
        Secrets belong into the environment: every account of a machine may read a command line.
        """
        self._commands[name] = (command, environment)
        if self.log(name).exists() and self.log(name).stat().st_size > MAX_LOG_BYTES:
            self.log(name).replace(self._logs / f"{name}.log.1")
        self.log(name).touch(mode=0o600)
        self.log(name).chmod(0o600)
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl+C reaches the launcher only, which stops in order
                umask=0o077,  # databases, models and settings are their owner's only
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
            )
        self._note()

    def log(self, name: str) -> Path:
        """Log file of a service."""
        return self._logs / f"{name}.log"

    def check(self) -> list[str]:
        """Start services again that ended by themselves; returns their names.

        Raises:
            CellAIError: one ends again and again.
        """
        ended = [name for name, child in self._running.items() if child.poll() is not None]
        for name in ended:
            recent = [
                at
                for at in self._ended_at.get(name, [])
                if time.monotonic() - at < RESTART_WINDOW_SECONDS
            ]
            if len(recent) >= MAX_RESTARTS:
                raise CellAIError(
                    f"{name} ended {len(recent) + 1} times within two minutes; its last words:"
                    f" {self._last_words(name)}",
                    hint=f"See {self.log(name)}.",
                )
            self._ended_at[name] = [*recent, time.monotonic()]
            self.start(name, *self._commands[name])
        return ended

    def stop(self) -> None:
        """Stop all, the last started first; those that do not listen are killed."""
        for child in reversed(self._running.values()):
            _stop([psutil.Process(child.pid)] if child.poll() is None else [])
            child.wait()
        self._running.clear()
        self._record.unlink(missing_ok=True)

    def _last_words(self, name: str) -> str:
        lines = self.log(name).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "none"

    def _note(self) -> None:
        """Write down who runs, for a start after this launcher was killed."""
        noted = [
            {"pid": child.pid, "created": psutil.Process(child.pid).create_time()}
            for child in self._running.values()
            if child.poll() is None
        ]
        with replacing(self._record) as path:
            path.write_text(json.dumps(noted))

    def _noted(self) -> list[dict[str, Any]]:
        """Who ran when the last launcher was killed; nobody if the disk damaged the record.

        After a power cut that is so; else they have ended with it (Linux) or still hold their port.
        """
        try:
            noted: list[dict[str, Any]] = json.loads(self._record.read_bytes())
        except (FileNotFoundError, ValueError):
            return []
        return noted

    def _stop_leftovers(self) -> None:
        for row in self._noted():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(row["pid"])
                if process.create_time() == row["created"]:  # else the number was given away
                    _stop([process])


def check_port(port: int, *, option: str) -> None:
    """Refuse a port on which something listens.

    Raises:
        PortInUseError: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PortInUseError(
                f"Port {port} is in use by another program ({error.strerror}).",
                hint=f"Stop that program, or choose another port with {option}.",
            ) from error


def _stop(processes: list[psutil.Process]) -> None:
    """Ask processes and all they started to end, then insist."""
    family = [child for process in processes for child in process.children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes + family, timeout=STOP_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _die_with_parent() -> None:
    """Let the kernel end this child when the launcher dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
