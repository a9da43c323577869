"""One job after the other, with outages between: what is trained, served and tried again.

Label Studio and the trunk are stood in for; tests/faults has the real ones.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from made_up import PredictionsInMemory
from pydantic import SecretStr

from backend import retraining
from backend.jobs import JobStore
from backend.label_studio import Task
from backend.pool import FeatureReader, Pool
from backend.registry import Registry
from backend.rescoring import Rescored
from backend.retraining import Retraining
from backend.settings import Settings
from backend.training import Fitted, FloatArray, fit
from converters.errors import CellAIError, LabelStudioError

PROJECT = 1
XML = (
    '<View><Image name="i" value="$image"/><Choices name="c" toName="i">'
    '<Choice value="a"/><Choice value="b"/></Choices></View>'
)


class FakeLabelStudio(PredictionsInMemory):
    """A project in memory; every second task is an `a`."""

    def __init__(self, n_tasks: int, n_labels: int) -> None:
        super().__init__()
        self.n_tasks, self.n_labels = n_tasks, n_labels
        self.is_failing = False

    def project(self, project_id: int) -> dict[str, Any]:
        return {
            "label_config": XML,
            "task_number": self.n_tasks,
            "model_version": self.serving,
            "show_collab_predictions": True,
        }

    def tasks(self, project_id: int, *, after_id: int = 0) -> Any:
        return [Task(n, {"image": f"/{n}.png"}) for n in range(after_id + 1, self.n_tasks + 1)]

    def annotated_tasks(self, project_id: int) -> Iterator[dict[str, Any]]:
        def region(n: int) -> dict[str, Any]:
            return {"from_name": "c", "type": "choices", "value": {"choices": ["ba"[n % 2]]}}

        labelled = range(1, self.n_labels + 1)
        for n in labelled:
            yield {"id": n, "annotations": [{"id": n, "result": [region(n)]}]}

    def import_predictions(self, project_id: int, predictions: Any) -> None:
        taken = islice(predictions, 10) if self.is_failing else predictions
        super().import_predictions(project_id, taken)
        if self.is_failing:
            raise LabelStudioError("The second batch timed out.", hint="")

    def set_model_version(self, project_id: int, version: str) -> None:
        if version not in self.model_versions(project_id):
            raise LabelStudioError("Model version doesn't exist in the project.", hint="")
        super().set_model_version(project_id, version)


class FakeFeatures:
    """Features that tell the class, or noise; pictures that can be read, or not."""

    def __init__(self, trunk_id: str = "vgg16", *, width: int = 8, is_noise: bool = False) -> None:
        place = torch.device("cpu")
        self.trunk = SimpleNamespace(trunk_id=trunk_id, network=trunk_id, device=place)
        self.unreadable: set[int] = set()
        self._width, self._is_noise = width, is_noise

    def pool(self, tasks: list[Task], **_: object) -> Pool:
        features = np.random.default_rng(0).normal(size=(len(tasks), self._width))
        if not self._is_noise:
            features[:, 0] += [4 * (task.id % 2) for task in tasks]
        is_readable = np.array([self.can_read(task) for task in tasks], np.bool_)
        return Pool(tasks, (features * is_readable[:, None]).astype(np.float32), is_readable)

    def can_read(self, task: Task) -> bool:
        return task.id not in self.unreadable


@dataclass
class Bench:
    """A job runner's parts around one project."""

    folder: Path
    label_studio: FakeLabelStudio
    features: FakeFeatures = field(default_factory=FakeFeatures)
    extra_params: str = ""

    def __post_init__(self) -> None:
        self.store = JobStore(self.folder / "jobs.sqlite")
        self.store.set_up(PROJECT, extra_params=self.extra_params)
        self.registry = Registry(self.folder / "models")

    def job(self, *, demanded: bool = False) -> Rescored | str | None:
        """Run one job as the job runner does; what is served now, or the error."""
        settings = Settings(
            label_studio_api_key=SecretStr("x"), data_dir=self.folder, mc_passes=5, epochs=20
        )
        worker = Retraining(
            settings,
            client=self.label_studio,
            features=cast(FeatureReader, self.features),
            registry=self.registry,
            store=self.store,
        )
        if demanded:
            self.store.mark(PROJECT, demanded=True)
        project = self.store.project(PROJECT)
        assert project is not None
        job_id = self.store.begin(project)
        try:
            served = worker.run(project, job_id, cards_version=project.cards_version)
        except CellAIError as error:
            self.store.fail(job_id, project, error=str(error))
            return str(error)
        self.store.finish(job_id, project, changed=served is not None)
        if served is None:
            return None
        self.store.cards_written(PROJECT, served[2].version.version)
        return served[2]

    def versions(self) -> list[str]:
        return [version.version for version in self.registry.versions(PROJECT)]


def trained(served: Rescored | str | None, *, n_labels: int) -> str:
    """Name of the trained version that is served now."""
    assert isinstance(served, Rescored), served
    assert served.head is not None
    assert served.version.n_labels == n_labels
    return served.version.version


def test_outage_of_the_pictures_leaves_the_version_and_loses_no_label(tmp_path: Path) -> None:
    bench = Bench(tmp_path, FakeLabelStudio(60, 30))
    first = trained(bench.job(), n_labels=30)
    bench.label_studio.n_labels = 32
    bench.features.unreadable = set(range(1, 61))
    told = bench.job()
    assert isinstance(told, str)
    assert "32 of the 32 labelled pictures cannot be read" in told
    assert bench.label_studio.serving == first
    assert bench.versions() == [first]
    bench.features.unreadable = set()
    assert trained(bench.job(), n_labels=32) != first
    assert bench.job() is None


def test_pictures_that_are_back_are_learned_from_and_scored(tmp_path: Path) -> None:
    bench = Bench(tmp_path, FakeLabelStudio(60, 30))
    bench.features.unreadable = {1, 2, 3, 40}
    trained(bench.job(), n_labels=27)
    assert bench.job() is None  # as long as they are missing
    bench.features.unreadable = {40}
    trained(bench.job(), n_labels=30)
    bench.features.unreadable = set()
    served = bench.job()
    trained(served, n_labels=30)
    assert isinstance(served, Rescored)
    assert served.scores[39] < 1
    assert bench.job() is None


def test_demand_whose_publication_fails_trains_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, FakeLabelStudio(60, 30))
    trained(bench.job(), n_labels=30)
    bench.label_studio.is_failing = True
    bench.job(demanded=True)
    for _ in range(3):
        assert "timed out" in str(bench.job())
    assert len(bench.versions()) == 2
    bench.label_studio.is_failing = False
    assert trained(bench.job(), n_labels=30) == bench.versions()[-1]
    assert bench.label_studio.model_versions(PROJECT)[bench.versions()[-1]] == 60
    assert bench.job() is None


@pytest.mark.parametrize("n_labels", [0, 30])
def test_cells_that_are_added_are_ordered_with_the_others(tmp_path: Path, n_labels: int) -> None:
    """Scores of two pools, side by side under one version, would mix two orders."""
    bench = Bench(tmp_path, FakeLabelStudio(60, n_labels))
    assert isinstance(bench.job(), Rescored)
    bench.label_studio.n_tasks = 200
    bench.label_studio.is_failing = True
    for _ in range(3):
        assert "timed out" in str(bench.job())
    bench.label_studio.is_failing = False
    served = bench.job()
    assert isinstance(served, Rescored)
    assert bench.versions() == ["cellai-0001", "cellai-0002"]
    scores = {
        row["task"]: row["score"]
        for row in bench.label_studio.rows
        if row["model_version"] == bench.label_studio.serving
    }
    assert [scores[task] for task in range(1, 201)] == served.scores.tolist()
    assert bench.job() is None


def test_cells_that_are_added_leave_the_version_that_a_person_chose(tmp_path: Path) -> None:
    bench = Bench(tmp_path, FakeLabelStudio(60, 30))
    first = trained(bench.job(), n_labels=30)
    bench.label_studio.n_labels = 40
    trained(bench.job(), n_labels=40)
    bench.store.want(PROJECT, first)
    assert trained(bench.job(), n_labels=30) == first
    bench.label_studio.n_tasks = 80
    assert trained(bench.job(), n_labels=30) == first
    assert bench.label_studio.model_versions(PROJECT)[first] == 80
    assert bench.job() is None


def test_project_without_tasks_waits_for_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path, FakeLabelStudio(0, 0))
    assert bench.job() is None
    assert bench.versions() == []
    bench.label_studio.n_tasks = 20
    assert isinstance(bench.job(), Rescored)


def test_version_of_a_new_trunk_serves_even_if_it_is_worse(tmp_path: Path) -> None:
    """The head of the old one means nothing on the new features."""
    bench = Bench(tmp_path, FakeLabelStudio(300, 270))
    trained(bench.job(), n_labels=270)
    bench.features = FakeFeatures("resnet18", width=12, is_noise=True)
    served = bench.job()
    name = trained(served, n_labels=270)
    assert isinstance(served, Rescored)
    assert served.version.trunk_id == served.version.trunk == "resnet18"
    assert bench.label_studio.serving == name
    assert bench.job() is None


def test_version_of_another_mode_is_not_served_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, FakeLabelStudio(60, 30), extra_params='{"mode": "phase"}')
    old = trained(bench.job(), n_labels=30)
    bench.store.set_up(PROJECT, extra_params='{"mode": "both"}')
    new = trained(bench.job(), n_labels=30)
    bench.store.want(PROJECT, old)
    with caplog.at_level(logging.WARNING):
        assert bench.job() is None
    assert f"{old} is for other classes, another trunk or mode" in caplog.text
    assert bench.label_studio.serving == new


def test_readable_crops_without_a_label_are_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def told_fit(*args: Any, unlabelled_features: FloatArray, **named: Any) -> Fitted:
        given.append(unlabelled_features)
        return fit(*args, unlabelled_features=unlabelled_features, **named)

    monkeypatch.setattr(retraining, "fit", told_fit)
    bench = Bench(tmp_path, FakeLabelStudio(60, 30))
    bench.features.unreadable = {3, 40}
    trained(bench.job(), n_labels=29)
    pool = bench.features.pool(bench.label_studio.tasks(PROJECT))
    np.testing.assert_array_equal(given, [pool.features[[*range(30, 39), *range(40, 60)]]])
