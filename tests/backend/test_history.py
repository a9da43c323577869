"""What is kept of each version, and that it stays readable."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.advice import agreements
from backend.history import (
    FRONT_SIZE,
    STOP_SET_SIZE,
    History,
    QueuedCell,
    VersionRecord,
    summarise,
)
from backend.label_studio import Task
from backend.pool import Pool
from backend.prediction import Predicted
from backend.registry import Version
from backend.rescoring import Rescored
from backend.training_set import Snapshot
from converters.label_config import LabelConfig

CONFIG = LabelConfig("cell_class", "card", ("a", "b"), ("A", "B"), ())


def version(name: str = "cellai-0002", **changes: object) -> Version:
    parts: dict[str, object] = {
        "version": name,
        "project_id": 3,
        "classes": CONFIG.classes,
        "n_labels": 1,
        "labels_digest": "",
        "trunk_id": "",
        "parameters": {},
        "created_at": "2026-01-02T00:00:00+00:00",
        "metrics": {"macro_f1": 0.5},
    }
    return Version(**parts | changes)  # type: ignore[arg-type]


def pool_of(n_tasks: int) -> Pool:
    tasks = [
        Task(id_, {"phase": f"/p/{id_}.png", "card": f"/c/{id_}.html"}) for id_ in range(n_tasks)
    ]
    return Pool(tasks, np.zeros((n_tasks, 2), np.float32), np.ones(n_tasks, np.bool_))


def rescored(uncertainty: list[float], scores: list[float]) -> Rescored:
    n_tasks = len(uncertainty)
    first = np.where(np.arange(n_tasks) % 2, 0.25, 0.75)
    probabilities = np.stack([first, 1 - first], axis=1).astype(np.float32)
    predicted = Predicted(probabilities[None], probabilities, np.array(uncertainty))
    return Rescored(version(), None, predicted, np.array(scores))


def test_record_counts_open_cells_and_names_the_head_of_the_queue() -> None:
    pool = pool_of(5)
    pool.is_readable[4] = False
    snapshot = Snapshot(3, CONFIG, pool.tasks, {0: 1}, "")
    record = summarise(
        snapshot, pool, rescored([0.9, 0.01, 0.51, 1.0, 0.3], [0.1, 0.9, 0.4, 0.2, 1.0])
    )
    assert record.n_open == 3
    assert record.uncertainty_counts == (1, *(0,) * 9, 1, *(0,) * 8, 1)
    assert [cell.task_id for cell in record.front] == [3, 2, 1]
    first = record.front[0]
    assert (first.picture, first.card) == ("/p/3.png", "/c/3.html")
    assert (first.predicted, first.probability, first.uncertainty) == ("b", 0.75, 1.0)
    assert record.stop_set == {1: 1, 2: 0, 3: 1}


def test_record_of_a_cold_start_has_no_prediction() -> None:
    pool = pool_of(2)
    snapshot = Snapshot(3, CONFIG, pool.tasks, {}, "")
    record = summarise(snapshot, pool, Rescored(version(), None, None, np.array([0.5, 0.1])))
    assert [cell.task_id for cell in record.front] == [1, 0]
    assert record.front[0].predicted == ""
    assert (record.uncertainty_counts, record.stop_set) == ((), {})


def test_record_stays_small_and_its_stop_set_the_same_when_tasks_come() -> None:
    few, many = pool_of(3000), pool_of(3300)
    records = [
        summarise(
            Snapshot(3, CONFIG, pool.tasks, {}, ""),
            pool,
            rescored([0.5] * len(pool.tasks), list(np.linspace(0, 1, len(pool.tasks)))),
        )
        for pool in (few, many)
    ]
    assert [len(record.stop_set) for record in records] == [STOP_SET_SIZE] * 2
    assert len(records[0].stop_set.keys() & records[1].stop_set.keys()) > 0.85 * STOP_SET_SIZE
    assert len(records[1].front) == FRONT_SIZE


def test_records_come_back_in_order_and_outlive_their_versions(tmp_path: Path) -> None:
    history = History(tmp_path)
    pool = pool_of(2)
    written = summarise(
        Snapshot(3, CONFIG, pool.tasks, {}, ""), pool, rescored([0.2, 0.4], [0.5, 0.6])
    )
    history.write(3, written)
    history.write(3, written)
    assert history.records(3, versions=[]) == [written]
    assert history.records(4, versions=[]) == []


def test_manifest_without_a_record_still_counts(tmp_path: Path) -> None:
    older = version("cellai-0001", created_at="2026-01-01T00:00:00+00:00", promoted=False)
    history = History(tmp_path)
    history.write(3, VersionRecord("cellai-0002", "2026-01-02T00:00:00+00:00", ("a", "b"), 9, {}))
    first, second = history.records(3, versions=[older, version()])
    assert (first.version, first.promoted, first.uncertainty_counts) == ("cellai-0001", False, ())
    assert first.metrics == {"macro_f1": 0.5}
    assert (second.version, second.n_labels) == ("cellai-0002", 9)


@pytest.mark.parametrize("content", ["", "[]", '{"version": "x"}', '{"front": 1}'])
def test_damaged_record_is_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "cellai-0001.json").write_text(content)
    assert History(tmp_path).records(3, versions=[]) == []


def stored(number: int, *, n_labels: int, **changes: Any) -> VersionRecord:
    """A record with a full stop set, made at random, and a full front."""
    rng = np.random.default_rng(number)
    cell = QueuedCell(1, "/data/local-files/?d=p/1.png", "/c/1.html", 0.5, "a", 0.9)
    parts: dict[str, Any] = {
        "version": f"cellai-{number:04}",
        "created_at": "2026-01-02T00:00:00+00:00",
        "classes": ("a", "b"),
        "n_labels": n_labels,
        "metrics": {"macro_f1": 0.5, "macro_f1_se": 0.1},
        "stop_set": dict(enumerate(rng.integers(0, 2, STOP_SET_SIZE).tolist())),
        "front": (cell,) * FRONT_SIZE,
    }
    return VersionRecord(**parts | changes)


def test_old_records_keep_what_the_report_reads_and_no_more(tmp_path: Path) -> None:
    """The stop rule's comparisons, those of every moment, stay the same to the bit."""
    history = History(tmp_path)
    all_records: list[VersionRecord] = []
    n_labels = 30
    for number in range(1, 40):
        n_labels += number % 9 - 1  # labels are taken back now and then
        changes: dict[str, Any] = {"promoted": number % 7 != 0}
        if number == 20:
            changes["classes"] = ("a", "b", "c")
        record = stored(number, n_labels=n_labels, **changes)
        all_records.append(record)
        history.write(3, record)
        judged, kept_judged = (
            [known for known in records if known.promoted]
            for records in (all_records, history.records(3, versions=[]))
        )
        assert agreements(kept_judged) == agreements(judged)
    kept = history.records(3, versions=[])
    assert len(agreements([record for record in kept if record.promoted])) > 4
    assert [len(record.front) for record in kept] == [0] * 37 + [FRONT_SIZE] * 2
    sizes = [path.stat().st_size for path in (tmp_path / "3").iterdir()]
    assert sum(size < 1000 for size in sizes) > 25


def test_version_that_serves_again_has_a_front(tmp_path: Path) -> None:
    history = History(tmp_path)
    for number in (1, 2, 3):
        history.write(3, stored(number, n_labels=30 * number))
    history.write(3, stored(1, n_labels=30))
    kept = history.records(3, versions=[])
    assert [bool(record.front) for record in kept] == [True, False, True]
