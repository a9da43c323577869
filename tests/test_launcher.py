"""`cellai up` stops cleanly, and a killed one leaves nothing that blocks the next."""

import signal
import stat
from functools import partial
from pathlib import Path

import psutil
import pytest
from installation import Installation, annotate, run_cellai, start_installation, wait_until

from converters.errors import CellAIError
from converters.launcher import answers
from converters.processes import Children

pytestmark = pytest.mark.label_studio

RESTART_DEADLINE_S = 120


@pytest.fixture
def copied_data_dir(demo: Installation, tmp_path: Path) -> Path:
    """The demo's data directory, without its processes."""
    copy = tmp_path / "data"
    demo.copy_data(copy)
    return copy


def test_killed_launcher_does_not_block_the_next_start(
    copied_data_dir: Path, demo: Installation, weights: Path
) -> None:
    first = start_installation(copied_data_dir, "--weights", weights)
    family = psutil.Process(first.process.pid).children(recursive=True)
    assert len(family) >= 3
    refused = run_cellai("up", "--data-dir", copied_data_dir, "--no-browser")
    assert refused.returncode == 2
    assert "Another `cellai up` runs" in refused.stderr

    first.process.send_signal(signal.SIGKILL)
    first.process.wait(10)
    second = start_installation(
        copied_data_dir, "--weights", weights, port=_port(first), backend_port=_backend_port(first)
    )
    assert second.project_id == demo.project_id
    assert second.project()["task_number"] == demo.project()["task_number"]
    mode = stat.S_IMODE((copied_data_dir / "connection.json").stat().st_mode)
    assert mode == 0o600

    family += psutil.Process(second.process.pid).children(recursive=True)
    second.stop()
    assert second.process.returncode == 0
    assert "Stopped." in second.log.read_text()
    wait_until(
        lambda: not any(_is_alive(process) for process in family),
        deadline_s=20,
        what="end of all children",
    )
    first.close()


def test_killed_services_are_started_again_and_train(copied_data_dir: Path, weights: Path) -> None:
    installation = start_installation(
        copied_data_dir, "--weights", weights, CELLAI_RECONCILE_SECONDS="5"
    )
    for name in ("backend", "label-studio"):
        _service(installation, name).kill()
        wait_until(
            partial(_has_said, installation, f"{name} had ended and was started again."),
            deadline_s=RESTART_DEADLINE_S,
            what=f"word of {name}",
        )
    health = f"{installation.connection_file.label_studio_url}/health"
    wait_until(partial(answers, health), deadline_s=RESTART_DEADLINE_S, what="Label Studio")

    tasks = installation.tasks()
    open_tasks = [task["id"] for task in tasks if not task["is_labeled"]][:2]
    n_labels = len([task for task in tasks if task["is_labeled"]]) + len(open_tasks)
    for task_id, label in zip(open_tasks, ["rbc", "wbc"], strict=True):
        annotate(installation.label_studio, task_id, label)

    def has_trained() -> bool:
        try:
            return bool(installation.serving().get("n_labels") == n_labels)
        except CellAIError:  # the backend is on its way
            return False

    wait_until(has_trained, deadline_s=RESTART_DEADLINE_S, what="version of the new labels")
    installation.stop()
    assert installation.process.returncode == 0


def test_service_that_ends_again_and_again_is_given_up(tmp_path: Path) -> None:
    children = Children(tmp_path)
    children.start("ill", ["sh", "-c", "echo its last words; exit 1"], {})

    def given_up() -> str | None:
        try:
            children.check()
        except CellAIError as error:
            return str(error)
        return None

    said = wait_until(given_up, deadline_s=20, what="end of patience")
    assert "ill ended 6 times within two minutes; its last words: its last words" in said


def test_damaged_connection_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "connection.json").write_text("{")
    answer = run_cellai("status", "--data-dir", tmp_path)
    assert answer.returncode == 2
    assert "connection.json is damaged" in answer.stderr


def _has_said(installation: Installation, sentence: str) -> bool:
    return sentence in installation.log.read_text()


def _service(installation: Installation, name: str) -> psutil.Process:
    """The child of `cellai up` that runs a service, not what that one started."""
    children = psutil.Process(installation.process.pid).children()
    program = {"backend": "gunicorn", "label-studio": "label-studio"}[name]
    (service,) = (child for child in children if any(program in word for word in child.cmdline()))
    return service


def _is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _port(installation: Installation) -> int:
    return int(installation.connection_file.label_studio_url.rpartition(":")[2])


def _backend_port(installation: Installation) -> int:
    return int(installation.connection_file.backend_url.rpartition(":")[2])
