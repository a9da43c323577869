"""The two documented commands back a data directory up and bring it back from nothing."""

import shutil
import subprocess
from pathlib import Path

import pytest
from installation import ROOT, annotate, shared_file, start_installation

pytestmark = [pytest.mark.label_studio, pytest.mark.faults]


def documented_commands() -> list[list[str]]:
    """The first block below "Backup and restore"."""
    page = (ROOT / "docs" / "operations.md").read_text()
    block = page.partition("## Backup and restore")[2].split("```")[1]
    return [line.split() for line in block.strip().splitlines()]


def test_restored_directory_goes_on(small_sample: Path, tmp_path: Path) -> None:
    """The data directory is lost and restored from its backup."""
    backup, restore = documented_commands()
    data_dir = tmp_path / "cellai-data"
    arguments = ["--weights", shared_file("vgg16_features.safetensors")]
    first = start_installation(data_dir, small_sample, "--no-labels", *arguments)
    chosen = [task["id"] for task in first.tasks()[:4]]
    for task_id in chosen:
        annotate(first.label_studio, task_id, "rbc")
    picture = first.tasks()[0]["data"]["phase"]
    first.stop()

    subprocess.run(backup, cwd=tmp_path, check=True)
    shutil.rmtree(data_dir)
    subprocess.run(restore, cwd=tmp_path, check=True)

    again = start_installation(data_dir, *arguments)
    try:
        annotated = {task["id"] for task in again.tasks() if task["is_labeled"]}
        assert annotated == set(chosen)
        served = again.label_studio.request("GET", picture.lstrip("/"))
        assert served.content.startswith(b"\x89PNG")
        assert (data_dir / "connection.json").stat().st_mode & 0o777 == 0o600
    finally:
        again.stop()
