"""`cellai up` stops cleanly, and a killed one leaves nothing that blocks the next."""

import shutil
import signal
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from installation import Installation, run_cellai, start_installation, wait_until

pytestmark = pytest.mark.label_studio


@pytest.fixture
def copied_data_dir(demo: Installation, tmp_path: Path) -> Path:
    """The demo's data directory as a finished installation leaves it, without its processes."""
    copy = tmp_path / "data"
    shutil.copytree(
        demo.data_dir,
        copy,
        ignore=shutil.ignore_patterns("*.sqlite3*", "processes.json", "*.lock", "logs", "features"),
    )
    source = demo.data_dir / "label-studio" / "label_studio.sqlite3"
    with (
        closing(sqlite3.connect(source)) as original,
        closing(sqlite3.connect(copy / "label-studio" / "label_studio.sqlite3")) as target,
    ):
        original.backup(target)
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


def test_damaged_connection_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "connection.json").write_text("{")
    answer = run_cellai("status", "--data-dir", tmp_path)
    assert answer.returncode == 2
    assert "connection.json is damaged" in answer.stderr


def _is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _port(installation: Installation) -> int:
    return int(installation.connection_file.label_studio_url.rpartition(":")[2])


def _backend_port(installation: Installation) -> int:
    return int(installation.connection_file.backend_url.rpartition(":")[2])
