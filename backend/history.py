"""What each version made of the pool, kept for the progress report after the version is gone.

    history/<project id>/<version>.json

Written where the queue is ordered, one small file per version whatever the size of the pool.
The registry forgets old versions, the learning curve should not; of old records only what the
report uses is kept.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from backend.images import DISPLAY_KEYS
from backend.pool import Pool
from backend.registry import Version, age_order
from backend.rescoring import Rescored
from backend.training_set import Snapshot
from converters.durable import replacing

UNCERTAINTY_BINS = 20
# Source: Bloodgood and Vijay-Shanker 2009, section 3.1: a stop set of 2000 examples suffices.
STOP_SET_SIZE = 2000
# Labels between two versions whose predictions the stop rule compares (backend.advice): one a few
# labels later agrees whatever the state of learning.
STEP_LABELS = 20
# Enough to fill the report's gallery although the first of them are labelled meanwhile.
FRONT_SIZE = 100


@dataclass(frozen=True, slots=True)
class QueuedCell:
    """One of the first cells of the queue; `predicted` is '' at cold start.

    `picture` and `card` are addresses as the task has them.
    """

    task_id: int
    picture: str
    card: str
    uncertainty: float
    predicted: str
    probability: float


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version and its view of the pool.

    Attributes:
        version: name of the version.
        created_at: ISO 8601, UTC.
        classes: in the order of the class index.
        n_labels: labels it was trained on.
        metrics: of its hold-out, as the registry keeps them.
        promoted: False where it was kept but never served.
        n_open: readable tasks without a label.
        uncertainty_counts: open tasks in each of UNCERTAINTY_BINS equal bins of [0, 1]; empty at
            cold start.
        stop_set: predicted class index by task id, of open tasks that are the same in every
            version until they are labelled; empty where the stop rule does not compare it.
        front: the first cells of the queue, in order; empty in older records.
    """

    version: str
    created_at: str
    classes: tuple[str, ...]
    n_labels: int
    metrics: dict[str, object]
    promoted: bool = True
    n_open: int = 0
    uncertainty_counts: tuple[int, ...] = ()
    stop_set: dict[int, int] = field(default_factory=dict)
    front: tuple[QueuedCell, ...] = ()


class History:
    """Records below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, project_id: int, record: VersionRecord) -> None:
        """Store a record, one of the same version is replaced; thin the others."""
        self._store(project_id, record)
        stored = self._stored(project_id)
        for kept, thin in zip(stored, _thinned(stored, newest=record.version), strict=True):
            if thin != kept:
                self._store(project_id, thin)

    def records(self, project_id: int, *, versions: Sequence[Version]) -> list[VersionRecord]:
        """All records of a project, oldest first.

        Args:
            project_id: the project.
            versions: of the registry; those without a record (never served, or stored before
                records were kept) are told without their view of the pool.
        """
        found = {record.version: record for record in self._stored(project_id)}
        for version in versions:
            found.setdefault(version.version, _without_pool(version))
        return sorted(found.values(), key=lambda record: age_order(record.version))

    def _store(self, project_id: int, record: VersionRecord) -> None:
        target = self._folder / str(project_id) / f"{record.version}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as path:
            path.write_text(json.dumps(asdict(record)))

    def _stored(self, project_id: int) -> list[VersionRecord]:
        """The readable records, oldest first."""
        paths = (self._folder / str(project_id)).glob("[!.]*.json")
        found = [record for path in paths if (record := _read(path)) is not None]
        return sorted(found, key=lambda record: age_order(record.version))


def _thinned(records: Sequence[VersionRecord], *, newest: str) -> Iterator[VersionRecord]:
    """The records, oldest first, without what no report reads again.

    The queue's first cells stay in the newest record and in the one before, which is served until
    the queue is switched. Stop sets stay where the stop rule compares them, now and later: it
    goes from the oldest on in steps of STEP_LABELS, of versions with the same classes.
    """
    others = [record.version for record in records if record.front and record.version != newest]
    with_front = {newest, *others[-1:]}
    compared_at: dict[tuple[str, ...], int] = {}
    for record in records:
        n_before = compared_at.get(record.classes, record.n_labels - STEP_LABELS)
        is_compared = (
            record.promoted and record.stop_set and record.n_labels - n_before >= STEP_LABELS
        )
        if is_compared:
            compared_at[record.classes] = record.n_labels
        yield replace(
            record,
            front=record.front if record.version in with_front else (),
            stop_set=record.stop_set if is_compared else {},
        )


def summarise(snapshot: Snapshot, pool: Pool, rescored: Rescored) -> VersionRecord:
    """The record of a version that has just ordered a pool."""
    is_open = pool.is_readable & np.array(
        [task.id not in snapshot.labels for task in pool.tasks], np.bool_
    )
    rows = np.flatnonzero(is_open)
    predicted = rescored.predicted
    counts: tuple[int, ...] = ()
    if predicted is not None:
        uncertainty = predicted.uncertainty[is_open]
        histogram = np.histogram(uncertainty, bins=UNCERTAINTY_BINS, range=(0, 1))[0]
        counts = tuple(int(count) for count in histogram)
    front = rows[np.argsort(rescored.scores[rows], kind="stable")][:FRONT_SIZE]
    known = _without_pool(rescored.version)
    return VersionRecord(
        version=known.version,
        created_at=known.created_at,
        classes=known.classes,
        n_labels=known.n_labels,
        metrics=known.metrics,
        promoted=known.promoted,
        n_open=len(rows),
        uncertainty_counts=counts,
        stop_set=_stop_set(pool, rescored, rows.tolist()),
        front=tuple(_queued_cell(pool, rescored, int(row)) for row in front),
    )


def _stop_set(pool: Pool, rescored: Rescored, open_rows: Sequence[int]) -> dict[int, int]:
    """Predicted class of the open tasks with the smallest digests, so that versions share them."""
    if rescored.predicted is None:
        return {}
    rows = sorted(
        open_rows,
        key=lambda row: hashlib.blake2b(str(pool.tasks[row].id).encode()).digest(),
    )
    predicted = rescored.predicted.probabilities.argmax(axis=1)
    return {pool.tasks[row].id: int(predicted[row]) for row in rows[:STOP_SET_SIZE]}


def _queued_cell(pool: Pool, rescored: Rescored, row: int) -> QueuedCell:
    task, predicted = pool.tasks[row], rescored.predicted
    picture = next((str(task.data[key]) for key in DISPLAY_KEYS if task.data.get(key)), "")
    card = str(task.data.get("card") or "")
    if predicted is None:
        return QueuedCell(task.id, picture, card, 1.0, "", 0.0)
    class_idx = int(predicted.probabilities[row].argmax())
    return QueuedCell(
        task.id,
        picture,
        card,
        float(predicted.uncertainty[row]),
        rescored.version.classes[class_idx],
        float(predicted.probabilities[row, class_idx]),
    )


def _without_pool(version: Version) -> VersionRecord:
    return VersionRecord(
        version=version.version,
        created_at=version.created_at,
        classes=tuple(version.classes),
        n_labels=version.n_labels,
        metrics=dict(version.metrics),
        promoted=version.promoted,
    )


def _read(path: Path) -> VersionRecord | None:
    """One record; None where the file is damaged, since a report may lack a point."""
    try:
        stored = json.loads(path.read_bytes())
        return VersionRecord(
            **stored
            | {
                "classes": tuple(stored["classes"]),
                "uncertainty_counts": tuple(stored["uncertainty_counts"]),
                "stop_set": {int(task): idx for task, idx in stored["stop_set"].items()},
                "front": tuple(QueuedCell(**cell) for cell in stored["front"]),
            }
        )
    except (ValueError, TypeError, KeyError):
        return None
