"""The data directory of every release opens in this one: jobs, versions, history, features.

`data-RELEASE.tar.xz` is what a backend of that release left behind, cut down to one version
and three crops. A release that changes a format adds its archive and keeps the old ones.
"""

import os
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from installation import free_port, wait_until

from backend import feature_cache
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
# SHA-256 of mode, address, size and date of a picture, and of its pixels.
KNOWN_PICTURES = {
    "cae450caf9599ad1e05b60f60e8511a3abe1b8f4ab741d82bfa4901dc1fc398d": (
        "6af8a935266f2751bbc8a6e935bfdd48c6d0d992c8d94b8aeb5a8ab888545999"
    ),
    "7953783cacd200d0f490cefc25f5756d08621e4a0aa8cb2fafb5e3ba62aa79b5": (
        "282b8d6a7c236197950700556e5d37fa182627d97cfcae2a579eb2bcd1b7d970"
    ),
    "3833ed2edbfc010e17f53eaa6f906f25bf8ca19b9002ee179a6399cbbd362200": (
        "7511ccbe8cc5d89dd642c4b79f9380181bd246fb62e78663e6623a287c9ffe4c"
    ),
}


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
        kept_shapes=((256, 12, 12), (512, 12, 12), (512, 6, 6)),
    )
    cache = FeatureCache(data_dir / "features", cast("Trunk", trunk), max_bytes=10**9)
    keys = [key.hex() for (key,) in rows]
    features, found = cache.get_features(keys)
    assert found.tolist() == [True] * 3
    assert not cache.get_maps(keys)[1].any()  # kept in another form then; computed when needed
    mean = mc_probabilities(head, features, passes=50, seed=0).mean(axis=0)
    # Its dropout masks were others; 50 passes leave an error of 0.01.
    np.testing.assert_allclose(mean, PROBABILITIES, atol=0.03)


def test_history_and_runner_are_read(data_dir: Path) -> None:
    versions = Registry(data_dir / "models").versions(PROJECT)
    (record,) = History(data_dir / "history").records(PROJECT, versions=versions)
    assert record.version == "cellai-0021"
    runner = read_runner(data_dir)
    assert runner is not None
    assert runner.trunk_id == versions[0].trunk_id
    assert read_state(data_dir) == READY


def test_known_pictures_need_not_be_read_again(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What was hashed then names a folder of that computer; the hashes are what was kept.
    monkeypatch.setattr(feature_cache, "_identity", lambda hashed, _mode: bytes.fromhex(hashed))
    trunk: Any = SimpleNamespace(
        trunk_id="0f8de968d11f587b", feature_dim=9, kept_shapes=((1, 1, 1),)
    )
    cache = FeatureCache(data_dir / "features", cast("Trunk", trunk), max_bytes=10**9)
    wanted = [*KNOWN_PICTURES, "00" * 32]
    assert cache.known_keys(wanted, mode="auto") == [*KNOWN_PICTURES.values(), None]
    cache.remember(["11" * 32], ["22" * 32], mode="auto")
    assert cache.known_keys(["11" * 32], mode="auto") == ["22" * 32]


def test_backend_serves_what_it_finds(data_dir: Path) -> None:
    """The web part; what the job runner opens, the tests above do."""
    address = f"http://127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            Path(sys.executable).with_name("gunicorn"),
            f"--bind={address.removeprefix('http://')}",
            "backend._wsgi:app",
        ],
        env=os.environ
        | {
            "CELLAI_LABEL_STUDIO_URL": f"http://127.0.0.1:{free_port()}",
            "CELLAI_LABEL_STUDIO_API_KEY": "1" * 40,
            "CELLAI_DATA_DIR": str(data_dir),
        },
    )
    try:
        wait_until(lambda: _answers(f"{address}/health"), deadline_s=60, what="backend")
        with httpx.Client(base_url=address, timeout=60) as http:
            assert http.get("/health").json() == {"status": "UP", "problem": ""}
            (project,) = http.get("/status").json()
            assert (project["project_id"], project["model_version"]) == (PROJECT, "cellai-0021")
            assert [version["n_labels"] for version in project["versions"]] == [70]
            assert http.get("/versions").json()["versions"] == ["cellai-0021"]
            again = http.post("/setup", json={"project": f"{PROJECT}.1", "schema": ""})
            assert again.json()["model_version"] == "cellai-0021"
            assert 'project="2"' in http.get("/metrics").text
            assert http.get("/diagnosis").json()["runner"]["trunk_id"] == "0f8de968d11f587b"
    finally:
        process.terminate()
        process.wait(30)
    assert not list(data_dir.rglob("*damaged*"))


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.HTTPError:
        return False
