"""The two documented commands back a data directory up and bring it back from nothing."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from fault_table import note_seen
from installation import (
    ROOT,
    Installation,
    annotate,
    shared_file,
    start_installation,
    wait_until,
)

from backend.jobs import JobStore

pytestmark = [pytest.mark.label_studio, pytest.mark.faults]

DEADLINE_S = 120


def documented_commands() -> list[list[str]]:
    """The first block below "Backup and restore"."""
    page = (ROOT / "docs" / "operations.md").read_text()
    block = page.partition("## Backup and restore")[2].split("```")[1]
    return [line.split() for line in block.strip().splitlines()]


def learned(data_dir: Path) -> dict[str, str]:
    """SHA-256 by path of all heads and manifests of versions and of the records of the report."""
    backend = data_dir / "backend"
    files = [*backend.glob("models/*/*/*.*"), *backend.glob("history/*/*.json")]
    return {
        str(file.relative_to(data_dir)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def wait_for_version(installation: Installation, *, n_labels: int) -> str:
    """Name of the version that sorts the queue by so many labels, once its cards are written."""
    store = JobStore(installation.data_dir / "backend" / "jobs.sqlite")

    def written() -> str | None:
        serving = installation.serving()
        project = store.project(installation.project_id)
        if project is None or serving.get("n_labels") != n_labels:
            return None
        return project.cards_version if project.cards_version == serving["version"] else None

    return wait_until(written, deadline_s=DEADLINE_S, what=f"cards of {n_labels} labels")


def test_restored_directory_goes_on(small_sample: Path, tmp_path: Path) -> None:
    """The data directory is lost and restored from its backup; labelling goes on."""
    backup, restore = documented_commands()
    data_dir = tmp_path / "cellai-data"
    arguments = ["--weights", shared_file("vgg16_features.safetensors")]
    first = start_installation(data_dir, small_sample, "--no-labels", *arguments)
    chosen = [task["id"] for task in first.tasks()[:4]]
    for task_id, label in zip(chosen, ["rbc", "wbc"] * 2, strict=True):
        annotate(first.label_studio, task_id, label)
    version = wait_for_version(first, n_labels=len(chosen))
    picture = first.tasks()[0]["data"]["phase"]
    first.stop()

    kept = learned(data_dir)
    assert any(version in path and path.endswith("head.safetensors") for path in kept)
    subprocess.run(backup, cwd=tmp_path, check=True)
    shutil.rmtree(data_dir)
    subprocess.run(restore, cwd=tmp_path, check=True)

    again = start_installation(data_dir, *arguments)
    try:
        annotated = {task["id"] for task in again.tasks() if task["is_labeled"]}
        assert annotated == set(chosen)
        assert learned(data_dir) == kept
        assert again.project()["model_version"] == version
        served = again.label_studio.request("GET", picture.lstrip("/"))
        assert served.content.startswith(b"\x89PNG")
        assert (data_dir / "connection.json").stat().st_mode & 0o777 == 0o600

        annotate(again.label_studio, again.tasks()[4]["id"], "rbc")
        successor = wait_for_version(again, n_labels=len(chosen) + 1)
        now = learned(data_dir)
        # A new version thins the records of the report, never an older version.
        models = {path: digest for path, digest in kept.items() if "/models/" in path}
        assert {path: now.get(path) for path in models} == models
        assert all(successor in path for path in now.keys() - kept.keys())
        note_seen(f"{len(kept)} files of versions as before, {version} sorts; then one new version")
    finally:
        again.stop()
