"""What a power cut or an ill disk leaves of our files is detected, and never stops the work.

Each kind of file is cut off at many lengths, or loses a page, as a disk does that reordered or
dropped writes.
"""

import hashlib
import json
import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from made_up import version
from PIL import Image
from pydantic import SecretStr

from backend.card_refresh import CardRefresh
from backend.compact_maps import CompactMaps
from backend.errors import ModelCorruptError
from backend.feature_cache import FeatureCache
from backend.features import Extracted, Trunk
from backend.history import History, VersionRecord
from backend.jobs import JobStore
from backend.registry import Registry
from backend.runner_record import READY, RunnerRecord, read_runner, read_state, write_state
from backend.settings import Settings
from backend.worker import Worker
from converters import importing
from converters.crops import ReadOptions
from converters.durable import replacing
from converters.errors import ConfigurationError
from converters.label_config import write_label_config
from converters.label_studio import Connection
from converters.picture_store import PictureFolder
from converters.placeholder import write_card
from converters.processes import Children
from converters.source_record import read_sources, remember_sources

TENSORS = {"weight": torch.arange(600.0).reshape(20, 30)}
PAGE = 4096
N_RECORDS = 200


def cut_to(share: float) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        os.truncate(path, int(share * path.stat().st_size))

    return cut


def cut_last_byte(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lose_first_page(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(min(PAGE, path.stat().st_size)))


def lose_middle(path: Path) -> None:
    """What was allocated but never written reads as zeros."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2 // PAGE * PAGE or size // 2)
        file.write(bytes(min(PAGE, size // 4)))


LOST_PAGES = [
    pytest.param(cut_to(0.1), id="a tenth"),
    pytest.param(cut_to(0.5), id="half"),
    pytest.param(lose_first_page, id="first page lost"),
    pytest.param(lose_middle, id="a page in the middle lost"),
]
TEARS = [
    pytest.param(cut_to(0), id="empty"),
    pytest.param(cut_last_byte, id="without the last byte"),
    *LOST_PAGES,
]


@pytest.mark.parametrize("tear", TEARS)
@pytest.mark.parametrize("name", ["head.safetensors", "manifest.json"])
def test_torn_version_is_refused_and_makes_way(
    tmp_path: Path, name: str, tear: Callable[[Path], None]
) -> None:
    registry = Registry(tmp_path)
    registry.publish(version(1), TENSORS)
    torn = registry.publish(version(2), TENSORS)
    tear(tmp_path / "3" / "cellai-0002" / name)
    with pytest.raises(ModelCorruptError):
        registry.tensors(registry.get(3, torn.version))
    assert registry.set_aside_damaged(3) == ["cellai-0002"]
    assert [v.version for v in registry.versions(3)] == ["cellai-0001"]
    again = registry.publish(version(2), TENSORS)
    assert torch.equal(registry.tensors(again)["weight"], TENSORS["weight"])


def test_manifest_cut_anywhere_is_detected_and_passed_over(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.publish(version(1), None)
    manifest = tmp_path / "3" / "cellai-0001" / "manifest.json"
    whole = manifest.read_bytes()
    for length in range(len(whole)):
        manifest.write_bytes(whole[:length])
        assert registry.versions(3) == [], length
    manifest.write_bytes(whole)
    assert len(registry.versions(3)) == 1


@pytest.mark.parametrize("tear", TEARS)
def test_torn_history_lacks_a_point_and_no_more(
    tmp_path: Path, tear: Callable[[Path], None]
) -> None:
    history = History(tmp_path)
    for number in (1, 2):
        known = version(number)
        history.write(3, VersionRecord(known.version, known.created_at, ("a", "b"), number, {}))
    tear(tmp_path / "3" / "cellai-0002.json")
    assert [record.version for record in history.records(3, versions=[])] == ["cellai-0001"]


@pytest.mark.parametrize("tear", TEARS)
def test_torn_record_of_the_job_runner_counts_as_none(
    tmp_path: Path, tear: Callable[[Path], None]
) -> None:
    RunnerRecord(1, "cpu", "float32", "t").write(tmp_path)
    tear(tmp_path / "worker.json")
    assert read_runner(tmp_path) is None


@pytest.mark.parametrize("tear", TEARS)
@pytest.mark.parametrize("state", [READY, "No weights of VGG16 were found in /Zellen/é."])
def test_torn_state_of_the_job_runner_is_never_taken_for_ready(
    tmp_path: Path, state: str, tear: Callable[[Path], None]
) -> None:
    write_state(tmp_path, state)
    tear(tmp_path / "worker.state")
    assert read_state(tmp_path) != READY
    write_state(tmp_path, READY)
    assert read_state(tmp_path) == READY


@pytest.mark.parametrize("tear", TEARS)
def test_torn_record_of_child_processes_counts_as_none(
    tmp_path: Path, tear: Callable[[Path], None]
) -> None:
    """After a power cut none of them runs, and `cellai up` must start all the same."""
    record = tmp_path / "processes.json"
    record.write_text(json.dumps([{"pid": 2**30, "created": 1.5}]))
    tear(record)
    children = Children(tmp_path)
    children.start("service", [sys.executable, "-c", "import time; time.sleep(100)"], {})
    (noted,) = json.loads(record.read_text())
    assert noted["pid"] != 2**30
    children.stop()


@pytest.mark.parametrize("tear", TEARS)
def test_torn_record_of_sources_is_named_and_kept(
    tmp_path: Path, tear: Callable[[Path], None]
) -> None:
    """Taken for none, it would let an export leave labels out, and an import overwrite it."""
    picture = tmp_path / "cell.png"
    Image.new("L", (20, 20)).save(picture)
    files = tmp_path / "files"
    remember_sources([picture], ReadOptions(), files_dir=files, project_id=3, cells={})
    record = files / "sources" / "project-3.json"
    tear(record)
    torn = record.read_bytes()
    with pytest.raises(ConfigurationError, match="is damaged, so it is not known where"):
        read_sources(files, 3)
    with pytest.raises(ConfigurationError, match="is damaged, so it is not known where"):
        remember_sources([picture], ReadOptions(), files_dir=files, project_id=3, cells={})
    assert record.read_bytes() == torn
    record.unlink()
    remember_sources([picture], ReadOptions(), files_dir=files, project_id=3, cells={})
    assert list(read_sources(files, 3)) == ["cell.png"]


def closed_job_store(path: Path) -> None:
    """A job store of many pages, all of it in the main file."""
    store = JobStore(path)
    store.set_up(7, extra_params="")
    project = store.projects()[0]
    for _ in range(N_RECORDS):
        store.fail(store.begin(project), project, error="an error of some length " * 4)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@pytest.mark.parametrize("tear", LOST_PAGES)
def test_torn_job_store_is_set_aside_and_begun_anew(
    tmp_path: Path, tear: Callable[[Path], None]
) -> None:
    path = tmp_path / "jobs.sqlite"
    closed_job_store(path)
    tear(path)
    store = JobStore(path)
    assert (tmp_path / "jobs.sqlite.damaged").exists()
    store.set_up(8, extra_params="")
    assert store.mark(8, new_labels=1)
    assert {project.id for project in store.projects()} == {8}


def test_job_store_without_the_end_of_its_log_has_the_older_marks(tmp_path: Path) -> None:
    """A write-ahead log is cut at the first frame whose checksum does not match."""
    path = tmp_path / "jobs.sqlite"
    closed_job_store(path)
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM projects").fetchone()  # keeps the log from moving on
        JobStore(path).mark(7, new_labels=1)
        log = Path(f"{path}-wal").read_bytes()
        main = path.read_bytes()
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "jobs.sqlite").write_bytes(main)
    (torn / "jobs.sqlite-wal").write_bytes(log[:-1])
    store = JobStore(torn / "jobs.sqlite")
    (project,) = store.projects()
    assert (project.id, len(store.jobs(7, limit=1000))) == (7, N_RECORDS)
    assert store.mark(7, new_labels=1)


SHAPES = ((4, 2, 2), (4, 2, 2), (4, 1, 1))


def small_trunk() -> Trunk:
    trunk: Any = SimpleNamespace(trunk_id="t", feature_dim=300, kept_shapes=SHAPES)
    return cast("Trunk", trunk)


@pytest.mark.parametrize("tear", TEARS)
def test_torn_feature_cache_gives_the_right_record_or_none(
    tmp_path: Path, tear: Callable[[Path], None]
) -> None:
    trunk = small_trunk()
    cache = FeatureCache(tmp_path, trunk, max_bytes=10**9)
    keys = [f"{number:064x}" for number in range(N_RECORDS)]
    rng = np.random.default_rng(0)
    extracted = Extracted(
        rng.normal(size=(N_RECORDS, 300)).astype(np.float16).astype(np.float32),
        CompactMaps.of([torch.randn(N_RECORDS, *shape) for shape in SHAPES]),
    )
    cache.put_many(keys, extracted)
    path = tmp_path / "t" / "features.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    tear(path)
    reopened = FeatureCache(tmp_path, trunk, max_bytes=10**9)
    features, found = reopened.get_features(keys)
    np.testing.assert_array_equal(features[found], extracted.features[found])
    maps, found = reopened.get_maps(keys)
    np.testing.assert_array_equal(maps.values[found], extracted.maps.values[found])
    np.testing.assert_array_equal(maps.scales[found], extracted.maps.scales[found])
    try:
        reopened.put_many(keys, extracted)
    except sqlite3.DatabaseError:  # told once; the job is tried again
        reopened.put_many(keys, extracted)
    assert reopened.get_features(keys)[1].all()


@pytest.mark.parametrize("tear", TEARS)
def test_torn_memory_of_pictures_never_gives_the_key_of_another(
    tmp_path: Path, tear: Callable[[Path], None]
) -> None:
    """A key that was cut off itself is that of no picture, so there are no features by it."""
    cache = FeatureCache(tmp_path, small_trunk(), max_bytes=10**9)
    pictures = [f"/data/local-files/?d=cell{number}.png|10|20" for number in range(N_RECORDS)]
    keys = [hashlib.sha256(picture.encode()).hexdigest() for picture in pictures]
    cache.remember(pictures, keys, mode="rgb")
    path = tmp_path / "pictures.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    tear(path)
    reopened = FeatureCache(tmp_path, small_trunk(), max_bytes=10**9)
    known = reopened.known_keys(pictures, mode="rgb")
    others = [found for found, key in zip(known, keys, strict=True) if found not in {None, key}]
    assert not {*others} & {*keys}
    try:
        reopened.remember(pictures, keys, mode="rgb")
    except sqlite3.DatabaseError:  # told once; the job is tried again
        reopened.remember(pictures, keys, mode="rgb")
    assert reopened.known_keys(pictures, mode="rgb") == keys


# --- what is on disk before what ----------------------------------------------------------------


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was synced or renamed, in the order of the calls."""
    calls: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace
    sync = os.sync

    def recorded_sync() -> None:
        calls.append("sync all")
        sync()

    def recorded_fsync(descriptor: int) -> None:
        calls.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def recorded_rename(path: Path, target: Path) -> Path:
        calls.append(f"rename to {Path(target).name}")
        return rename(path, target)

    def recorded_replace(path: Path, target: Path) -> Path:
        calls.append(f"rename to {Path(target).name}")
        return replace(path, target)

    monkeypatch.setattr(os, "sync", recorded_sync)
    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    return calls


def test_version_is_on_disk_before_it_has_its_name(tmp_path: Path, order: list[str]) -> None:
    Registry(tmp_path / "models").publish(version(1), TENSORS)
    renamed = order.index("rename to cellai-0001")
    before, after = order[:renamed], order[renamed + 1 :]
    assert before[:2] == ["sync head.safetensors", "sync manifest.json"]
    assert before[2].startswith("sync .publishing-")
    assert after == ["sync 3", "sync models", f"sync {tmp_path.name}"]


def test_replaced_file_is_on_disk_before_it_has_its_name(tmp_path: Path, order: list[str]) -> None:
    with replacing(tmp_path / "record.json") as path:
        path.write_text(json.dumps({"a": 1}))
        temporary = path.name
    assert order == [f"sync {temporary}", "rename to record.json", f"sync {tmp_path.name}"]


def test_cards_are_on_disk_before_it_is_noted_that_they_are_written(
    tmp_path: Path, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path, label_studio_api_key=SecretStr("x"))
    features: Any = SimpleNamespace(trunk=small_trunk())
    worker = Worker(settings, features)
    batches = iter([[], [(7, "cellai-0001")], None])

    def step(_: CardRefresh) -> list[tuple[int, str]] | None:
        write_card(tmp_path / "card.html", "card")
        return next(batches)

    monkeypatch.setattr(CardRefresh, "step", step)
    noted = JobStore.cards_written

    def recorded_note(store: JobStore, project_id: int, version: str) -> None:
        order.append(f"note {version} of {project_id}")
        noted(store, project_id, version)

    monkeypatch.setattr(JobStore, "cards_written", recorded_note)
    order.clear()
    while worker._write_cards():
        pass
    written = "rename to card.html"
    assert order == [written, written, "sync all", "note cellai-0001 of 7", written]


class OneProject(Connection):
    """A project without tasks that takes what is imported. The real one: tests/test_import.py."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__("http://label-studio", "token")
        self._calls = calls

    def get(self, path: str, **_: object) -> Any:
        if path.startswith("api/projects/"):
            return {"label_config": write_label_config(["rbc", "wbc"])}
        return [] if path.startswith("api/storages") else {"tasks": [], "total": 0}

    def post(self, path: str, payload: Any, **_: object) -> Any:
        if path.endswith("import"):
            self._calls.append(f"import {len(payload)} tasks")
        task_ids = list(range(1, len(payload) + 1))
        return {"task_count": len(payload), "annotation_count": 0, "task_ids": task_ids}


def test_pictures_are_on_disk_before_tasks_name_them(
    tmp_path: Path, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "BATCH", 2)
    pictures = tmp_path / "cells"
    pictures.mkdir()
    for number in range(5):
        Image.new("L", (20, 20), number).save(pictures / f"{number}.png")

    class Recorded(PictureFolder):
        def write(self, path: PurePosixPath, picture: bytes) -> None:
            super().write(path, picture)
            order.append("picture")

    files = tmp_path / "files"
    importing.import_sources(
        OneProject(order),
        3,
        [pictures],
        files_dir=files,
        options=importing.ImportOptions(),
        on_progress=lambda _: None,
        store=Recorded(files),
    )
    steps = [step for step in order if step in {"picture", "sync all"} or "import" in step]
    assert "picture" in steps
    at = 0
    for tasks in ("import 2 tasks", "import 2 tasks", "import 1 tasks"):
        end = steps.index(tasks, at)
        assert steps[end - 1] == "sync all"
        assert "picture" in steps[at : end - 1]
        at = end + 1
    assert "picture" not in steps[at:]
