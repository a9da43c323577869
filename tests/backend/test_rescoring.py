"""Scores of a pool, names of versions, and when a version is worse."""

from typing import Any

import numpy as np
import pytest
from made_up import PredictionsInMemory, version

from backend.label_studio import Task
from backend.pool import Pool, input_mode
from backend.rescoring import LAST, next_version_name, outdated_predictions, publish, rescore
from backend.retraining import is_worse
from backend.settings import ProjectParameters
from backend.training import TrainingSettings, fit
from backend.training_set import Snapshot
from converters.label_config import LabelConfig

CONFIG = LabelConfig("cell_class", "card", ("a", "b"), ("A", "B"), ())
N_TASKS = 12
VERSION = version(2, head_sha256="x")


@pytest.fixture
def pool() -> Pool:
    features = np.random.default_rng(0).normal(size=(N_TASKS, 8)).astype(np.float32)
    features[: N_TASKS // 2] += 3
    readable = np.ones(N_TASKS, np.bool_)
    readable[-1] = False
    return Pool([Task(id_, {}) for id_ in range(100, 100 + N_TASKS)], features, readable)


@pytest.fixture
def snapshot(pool: Pool) -> Snapshot:
    labels = {100: 0, 101: 0, 109: 1, 110: 1}
    return Snapshot(3, CONFIG, pool.tasks, labels, "cellai-0001")


def test_every_task_gets_a_score_and_unreadable_ones_come_last(
    pool: Pool, snapshot: Snapshot
) -> None:
    rows = [0, 1, 9, 10]
    fitted = fit(
        pool.features[rows],
        np.array([0, 0, 1, 1]),
        ["g"] * 4,
        n_classes=2,
        settings=TrainingSettings(epochs=5, mc_passes=4),
    )
    rescored = rescore(
        snapshot,
        pool,
        VERSION,
        fitted.head,
        parameters=ProjectParameters(mc_passes=4),
        seed=0,
    )
    is_open = [row for row in range(N_TASKS - 1) if row not in rows]
    assert len(set(rescored.scores[is_open])) == len(is_open)
    assert ((rescored.scores >= 0) & (rescored.scores <= 1)).all()
    assert rescored.scores[-1] == LAST

    label_studio = PredictionsInMemory()
    publish(label_studio, snapshot, pool, rescored, on_stage=lambda _: None)
    assert [row["task"] for row in label_studio.rows] == [task.id for task in pool.tasks]
    assert label_studio.rows[-1]["result"] == []
    assert label_studio.serving == "cellai-0002"


def test_publication_adds_only_what_is_missing_and_removes_doubles(
    pool: Pool, snapshot: Snapshot
) -> None:
    rescored = rescore(snapshot, pool, VERSION, None, parameters=ProjectParameters(), seed=0)
    row = {"task": 100, "model_version": "cellai-0002", "result": [], "score": 0.5}
    label_studio = PredictionsInMemory([row | {"id": 1}, row | {"id": 2}])
    publish(label_studio, snapshot, pool, rescored, on_stage=lambda _: None)
    assert sorted(row["task"] for row in label_studio.rows) == [task.id for task in pool.tasks]


def test_import_of_a_killed_run_that_comes_late_doubles_nothing(
    pool: Pool, snapshot: Snapshot
) -> None:
    """Label Studio carries out a request although its sender was killed meanwhile."""

    class SlowLabelStudio(PredictionsInMemory):
        def import_predictions(self, project_id: int, predictions: Any) -> None:
            rows = list(predictions)
            super().import_predictions(project_id, rows)
            super().import_predictions(project_id, rows)

    rescored = rescore(snapshot, pool, VERSION, None, parameters=ProjectParameters(), seed=0)
    label_studio = SlowLabelStudio()
    publish(label_studio, snapshot, pool, rescored, on_stage=lambda _: None)
    assert [row["task"] for row in label_studio.rows] == [task.id for task in pool.tasks]
    assert label_studio.serving == "cellai-0002"


def test_names_count_on_from_what_label_studio_has() -> None:
    assert next_version_name([]) == "cellai-0001"
    assert next_version_name(["cellai-0009", "cellai-0010", "other-0099", "cellai-x"]) == (
        "cellai-0011"
    )


def test_sweep_takes_only_our_own_old_versions() -> None:
    names = ["cellai-0001", "cellai-0002", "somebody-else", "", "cellai-0003"]
    rows = [{"id": id_, "task": 1, "model_version": name} for id_, name in enumerate(names)]
    outdated = outdated_predictions(
        PredictionsInMemory(rows), 3, keep={"cellai-0003", "cellai-0002"}
    )
    assert outdated == [0]


@pytest.mark.parametrize(
    ("new_f1", "n_holdout", "expected"),
    [(0.5, 60, True), (0.75, 60, False), (0.5, 40, False), (0.9, 60, False)],
)
def test_version_is_worse_only_beyond_two_standard_errors(
    new_f1: float, n_holdout: int, expected: bool
) -> None:
    serving = {"n_holdout": 60, "macro_f1": 0.8, "macro_f1_se": 0.05}
    new = {"n_holdout": n_holdout, "macro_f1": new_f1, "macro_f1_se": 0.05}
    assert is_worse(new, serving) is expected


@pytest.mark.parametrize(
    ("data", "mode", "expected"),
    [
        ({"image": "x"}, "auto", "rgb"),
        ({"image": "x"}, "phase", "rgb"),
        ({"model_input": "x", "phase": "p", "amplitude": "a"}, "auto", "both"),
        ({"model_input": "x", "phase": "p", "amplitude": "a"}, "amplitude", "amplitude"),
        ({"model_input": "x", "phase": "p", "amplitude": ""}, "both", "phase"),
        ({"model_input": "x", "phase": "", "amplitude": "a"}, "auto", "amplitude"),
    ],
)
def test_mode_follows_what_the_source_has(data: dict[str, str], mode: str, expected: str) -> None:
    assert input_mode(data, mode) == expected
