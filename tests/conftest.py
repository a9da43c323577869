"""Fixtures: one real Label Studio with backend for the session, real files, real weights."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import h5py
import httpx
import pytest

from converters.connection_file import ConnectionFile, read_connection
from converters.label_studio import Connection

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


def wait_until(condition: Callable[[], T], *, deadline_s: float, what: str) -> T:
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

    @property
    def connection_file(self) -> ConnectionFile:
        return read_connection(self.data_dir)

    @property
    def label_studio(self) -> Connection:
        return Connection(self.connection_file.label_studio_url, self.connection_file.api_key)

    @property
    def project_id(self) -> int:
        assert self.connection_file.project_id is not None
        return self.connection_file.project_id

    def status(self, project_id: int | None = None) -> dict[str, Any]:
        """One project of `cellai status --json`."""
        answer = run_cellai(
            "status",
            "--json",
            "--data-dir",
            self.data_dir,
            "--project",
            project_id or self.project_id,
        )
        assert answer.returncode == 0, answer.stderr
        (project,) = json.loads(answer.stdout)
        return dict(project)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)


def start_installation(data_dir: Path, *arguments: object, **environment: str) -> Installation:
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
                str(free_port()),
                "--backend-port",
                str(free_port()),
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


@pytest.fixture(scope="session")
def weights() -> Path:
    """ImageNet weights of the trunk."""
    return shared_file("vgg16_features.safetensors")


@pytest.fixture(scope="session")
def sample_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 synthetic cells, all labelled."""
    path = tmp_path_factory.mktemp("sample") / "sample.seg"
    answer = run_cellai("sample", path, "--cells", 300, "--labelled", 1)
    assert answer.returncode == 0, answer.stderr
    return path


@pytest.fixture(scope="session")
def sample_labels(sample_file: Path) -> list[str]:
    """The true class of every cell of the sample, by index."""
    with h5py.File(sample_file) as file:
        return [label.decode() for label in file["label/ground_truth"][:]]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, sample_file: Path) -> Iterator[Installation]:
    """The sample without its labels in a running installation."""
    arguments: list[object] = [sample_file, "--no-labels"]
    weights = SHARED / "vgg16_features.safetensors"
    if weights.exists():
        arguments += ["--weights", weights]
    installation = start_installation(tmp_path_factory.mktemp("demo"), *arguments)
    yield installation
    with contextlib.suppress(ProcessLookupError):
        installation.stop()


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


def open_predictions(label_studio: Connection, project_id: int, version: str) -> dict[int, float]:
    """Score by task of one version; fails on a doubled prediction."""
    scores: dict[int, float] = {}
    for row in label_studio.get("api/predictions/", project=project_id):
        if row["model_version"] == version:
            assert row["task"] not in scores, f"task {row['task']} has two predictions"
            scores[row["task"]] = row["score"]
    return scores


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).is_success
    return False
