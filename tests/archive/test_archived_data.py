"""The data directory of every release opens in this one: jobs, versions, history, features.

`data-RELEASE.tar.xz` is what a backend of that release left behind, cut down to one version
and three crops. A release that changes a format adds its archive and keeps the old ones.
"""

import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from backend.feature_cache import FeatureCache
from backend.features import Trunk
from backend.head import Head, mc_probabilities
from backend.history import History
from backend.jobs import JobStore
from backend.registry import Registry
from backend.runner_record import READY, read_runner, read_state

PROJECT = 2
# What release 0.1.0 computed for the three crops: mean of 50 passes, seed 0
PROBABILITIES = [
    [0.53, 0.0816, 0.1518, 0.1166, 0.1199],
    [0.7038, 0.1104, 0.0588, 0.0688, 0.0582],
    [0.1209, 0.7342, 0.051, 0.049, 0.0449],
]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    archive = Path(__file__).with_name("data-0.1.0.tar.xz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "data-0.1.0"


def test_jobs_go_on(data_dir: Path) -> None:
    store = JobStore(data_dir / "jobs.sqlite")
    (project,) = store.projects()
    assert (project.id, project.serving_version, project.n_labels) == (2, "cellai-0021", 70)
    assert store.jobs(PROJECT)[0].error
    assert store.mark(PROJECT, new_labels=1)
    job = store.begin(store.projects()[0])
    store.finish(job, store.projects()[0], changed=True)
    assert store.jobs(PROJECT)[0].state == "done"


def test_version_predicts_what_it_predicted_then(data_dir: Path) -> None:
    registry = Registry(data_dir / "models")
    (version,) = registry.versions(PROJECT)
    assert (version.version, version.n_labels, version.trunk) == ("cellai-0021", 70, "vgg16")
    head = Head.from_tensors(registry.tensors(version))

    folder = data_dir / "features" / version.trunk_id
    with closing(sqlite3.connect(folder / "features.sqlite")) as connection:
        rows = connection.execute("SELECT key FROM features ORDER BY id").fetchall()
    trunk: Any = SimpleNamespace(
        trunk_id=version.trunk_id,
        feature_dim=head.mean.shape[0],
        activation_shape=(512, 6, 6),
    )
    cache = FeatureCache(data_dir / "features", cast("Trunk", trunk), max_bytes=10**9)
    keys = [key.hex() for (key,) in rows]
    features, found = cache.get_features(keys)
    assert found.tolist() == [True] * 3
    assert cache.get_activations(keys)[1].all()
    mean = mc_probabilities(head, features, passes=50, seed=0).mean(axis=0)
    np.testing.assert_allclose(mean, PROBABILITIES, atol=1e-3)


def test_history_and_runner_are_read(data_dir: Path) -> None:
    versions = Registry(data_dir / "models").versions(PROJECT)
    (record,) = History(data_dir / "history").records(PROJECT, versions=versions)
    assert record.version == "cellai-0021"
    runner = read_runner(data_dir)
    assert runner is not None
    assert runner.trunk_id == versions[0].trunk_id
    assert read_state(data_dir) == READY
