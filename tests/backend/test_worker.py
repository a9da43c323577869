"""The job runner: as a process of its own, and what it deletes between jobs."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from pydantic import SecretStr

from backend.jobs import JobStore
from backend.label_studio import LabelStudioClient
from backend.pool import FeatureReader
from backend.settings import Settings
from backend.worker import Worker

NOBODY = 2**30  # no process has this number
OLD, SERVING = "cellai-0001", "cellai-0002"


class FakeLabelStudio(LabelStudioClient):
    """Predictions in memory; tests/test_versions.py sweeps a real server."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        super().__init__("http://label-studio", "token")
        self.rows = rows

    def model_versions(self, project_id: int) -> dict[str, int]:
        return {row["model_version"]: 1 for row in self.predictions(project_id)}

    def predictions(self, project_id: int) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["project"] == project_id]

    def delete_prediction(self, prediction_id: int) -> None:
        self.rows = [row for row in self.rows if row["id"] != prediction_id]


def test_job_runner_whose_web_process_died_while_it_started_ends(
    weights: Path, tmp_path: Path
) -> None:
    """An orphan would hold the lock for ever, and its successors would never come to work."""
    answer = subprocess.run(
        [sys.executable, "-m", "backend.worker", str(NOBODY)],
        env=os.environ
        | {
            "CELLAI_LABEL_STUDIO_API_KEY": "x",
            "CELLAI_DATA_DIR": str(tmp_path),
            "CELLAI_WEIGHTS": str(weights),
        },
        timeout=300,
        check=False,
    )
    assert answer.returncode == 1


def worker_of_two_projects(data_dir: Path) -> tuple[Worker, JobStore]:
    """In this process; both projects, 1 and 2, are served."""
    store = JobStore(data_dir / "jobs.sqlite")
    for project_id in (1, 2):
        store.set_up(project_id, extra_params="")
        store.serve(project_id, SERVING)
    settings = Settings(
        label_studio_api_key=SecretStr("token"), data_dir=data_dir, files_dir=data_dir
    )
    no_trunk = SimpleNamespace(trunk=SimpleNamespace(key="none", name="none"))
    return Worker(settings, cast("FeatureReader", no_trunk)), store


def test_job_runner_ends_with_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA refuses all later work in the same process, so only another one can try again."""
    worker, store = worker_of_two_projects(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(worker._retraining, "run", fail)
    with pytest.raises(torch.AcceleratorError):
        worker._try_job(store.projects()[0])
    (job,) = store.jobs(1)
    assert job.state == "failed"
    assert "The GPU failed" in str(job.error)


def test_sweep_of_a_project_goes_on_when_another_gets_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"id": number, "project": 1 + number % 2, "model_version": OLD} for number in range(1, 11)
    ]
    label_studio = FakeLabelStudio(rows)
    monkeypatch.setattr("backend.worker.LabelStudioClient", lambda *_: label_studio)
    monkeypatch.setattr("backend.worker.SWEEP_AFTER_QUIET_SECONDS", 0)
    worker, store = worker_of_two_projects(tmp_path)
    served = (SimpleNamespace(), SimpleNamespace())
    monkeypatch.setattr(worker._retraining, "run", lambda *_, **__: served)
    monkeypatch.setattr(worker._cards, "show", lambda *_: None)

    assert worker._sweep()
    left_of_one = len(label_studio.predictions(1))
    worker._try_job(store.projects()[1])
    while worker._sweep():
        pass
    assert left_of_one == 4
    assert label_studio.rows == []
