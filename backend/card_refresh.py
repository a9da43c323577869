"""Rewrites the cards of a project after its queue was switched, top of the queue first.

One batch per step, so that the job runner can turn to a new label in between; a newer
version simply replaces what is left.
"""

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from backend.cards import render_card
from backend.compact_maps import CompactMaps
from backend.errors import PredictionError
from backend.features import has_mask
from backend.gradcam import TypicalCrop, gradcam, typical_crops
from backend.images import DISPLAY_KEYS, picture_reader
from backend.label_studio import LabelStudioClient, Task
from backend.pool import FeatureReader, Pool, input_mode
from backend.rescoring import Rescored
from backend.settings import Settings
from backend.thinning import thinned
from backend.training_set import Snapshot, cards_name
from converters.placeholder import render_placeholder, write_card

BATCH = 32
TYPICAL_OF = 64  # crops; with 16 or 200, .03 more or less of the heat lies on the cell
RETRY_SECONDS = 60.0  # until cards that could not be stored are tried again

FloatArray = NDArray[np.float32]
UInt8Array = NDArray[np.uint8]

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Backlog:
    """Cards of one project that do not show the serving version yet."""

    snapshot: Snapshot
    pool: Pool
    rescored: Rescored
    mode: str
    rows: NDArray[np.intp]  # of the pool, in the order of writing
    written: int = 0
    failed: list[int] = field(default_factory=list)  # rows that could not be stored
    troubles: dict[int, Exception] = field(default_factory=dict)  # by the number of the task
    not_before: float = -math.inf  # monotonic seconds
    typical: dict[bool, TypicalCrop] | None = None  # with and without a mask


class CardRefresh:
    """Card backlogs of all projects."""

    def __init__(
        self, settings: Settings, *, client: LabelStudioClient, features: FeatureReader
    ) -> None:
        self._pictures = picture_reader(settings, client)
        self._features = features
        self._backlogs: OrderedDict[int, _Backlog] = OrderedDict()

    def show(self, snapshot: Snapshot, pool: Pool, rescored: Rescored) -> None:
        """Start rewriting a project's cards: open tasks in queue order, then the labelled."""
        is_labelled = np.array([task.id in snapshot.labels for task in pool.tasks], np.bool_)
        rows = np.lexsort((rescored.scores, is_labelled))
        if (predicted := rescored.predicted) is not None:
            # The largest part is not shown, and a backlog may wait for long.
            nothing = np.empty((0, *predicted.probabilities.shape), np.float32)
            rescored = replace(rescored, predicted=replace(predicted, mc_probabilities=nothing))
        self._backlogs[snapshot.project_id] = _Backlog(
            snapshot,
            pool,
            rescored,
            mode=str(rescored.version.parameters["mode"]),
            rows=rows,
        )

    def version(self, project_id: int) -> str | None:
        """Version that the project's cards are being rewritten to; None when none is waiting."""
        backlog = self._backlogs.get(project_id)
        if backlog is None:
            return None
        return cards_name(backlog.rescored.version.version, backlog.snapshot)

    def forget(self, project_id: int) -> None:
        """Drop what is left of a project."""
        self._backlogs.pop(project_id, None)

    def step(self) -> list[tuple[int, str]] | None:
        """Write the next batch of the project that has waited longest.

        Returns:
            None when no card is waiting; else the (project id, version) that this batch
            completed, if any.
        """
        now = time.monotonic()
        due = [item for item in self._backlogs.items() if item[1].not_before <= now]
        if not due:
            return None
        project_id, backlog = due[0]
        rows = backlog.rows[backlog.written : backlog.written + BATCH]
        backlog.failed += self._write(backlog, rows)
        backlog.written += len(rows)
        if backlog.written == len(backlog.rows):
            _tell(backlog)
        if backlog.written < len(backlog.rows) or backlog.failed:
            if backlog.written == len(backlog.rows):
                self._backlogs[project_id] = replace(
                    backlog,
                    rows=np.array(backlog.failed, np.intp),
                    written=0,
                    failed=[],
                    troubles={},
                    not_before=now + RETRY_SECONDS,
                )
            self._backlogs.move_to_end(project_id)
            return []
        del self._backlogs[project_id]
        return [(project_id, cards_name(backlog.rescored.version.version, backlog.snapshot))]

    def _write(self, backlog: _Backlog, rows: NDArray[np.intp]) -> list[int]:
        """Write the cards of some rows; returns the rows to try again, one must not stop others."""
        tasks = [backlog.pool.tasks[row] for row in rows]
        failed: list[int] = []
        for row, task, html in zip(rows, tasks, self._render(backlog, tasks, rows), strict=True):
            try:
                self._store(task, html)
            except (PredictionError, OSError) as error:
                backlog.troubles[task.id] = error
                if isinstance(error, OSError):
                    failed.append(int(row))
        return failed

    def _render(
        self, backlog: _Backlog, tasks: Sequence[Task], rows: NDArray[np.intp]
    ) -> list[str]:
        version, predicted = backlog.rescored.version, backlog.rescored.predicted
        head = backlog.rescored.head
        if backlog.snapshot.is_blind:
            reason = "Blind labelling: what the model thinks is hidden in this project."
            return [render_placeholder(reason, model_version=version.version)] * len(tasks)
        if head is None or predicted is None:
            reason = (
                "No class is predicted yet: label cells of at least two classes. "
                "Until then typical cells of every kind come first."
            )
            return [render_placeholder(reason, model_version=version.version)] * len(tasks)
        if backlog.typical is None:
            backlog.typical = self._typical(backlog)
        maps, found = self._maps(backlog, rows)
        heat = gradcam(
            head,
            features=backlog.pool.features[rows],
            maps=maps,
            class_idx=predicted.probabilities[rows].argmax(axis=1),
            has_mask=_has_mask(backlog, rows),
            typical=backlog.typical,
        )
        return [
            self._card(backlog, task, heat[at] if found[at] else None, row=int(row))
            for at, (task, row) in enumerate(zip(tasks, rows, strict=True))
        ]

    def _typical(self, backlog: _Backlog) -> dict[bool, TypicalCrop]:
        """What the crops of a project are compared with: crops from all over its pool."""
        masked = _has_mask(backlog, np.arange(len(backlog.pool.tasks)))
        readable = backlog.pool.is_readable
        kinds = [np.flatnonzero(readable & (masked == kind)) for kind in (False, True)]
        rows = np.concatenate([thinned(of_kind, TYPICAL_OF) for of_kind in kinds])
        maps, found = self._maps(backlog, rows)
        return typical_crops(maps.rows(found), masked[rows[found]])

    def _maps(
        self, backlog: _Backlog, rows: NDArray[np.intp]
    ) -> tuple[CompactMaps, NDArray[np.bool_]]:
        """Maps of some rows, and which of them have any."""
        tasks = [backlog.pool.tasks[row] for row in rows]
        maps, found = self._features.maps(tasks, mode=backlog.mode)
        # one that became readable since has no features
        return maps, found & backlog.pool.is_readable[rows]

    def _card(self, backlog: _Backlog, task: Task, heat: FloatArray | None, *, row: int) -> str:
        """One card; a placeholder where the picture cannot be read (no `heat` then)."""
        version, predicted = backlog.rescored.version, backlog.rescored.predicted
        cell = self._read(backlog, task)
        if heat is None or predicted is None or cell is None:
            reason = "The picture of this cell cannot be read; import its source again."
            return render_placeholder(reason, model_version=version.version)
        return render_card(
            cell=cell,
            heat=heat,
            classes=backlog.snapshot.label_config.titles,
            probabilities=predicted.probabilities[row],
            uncertainty=float(predicted.uncertainty[row]),
            model_version=version.version,
            n_labels=version.n_labels,
        )

    def _read(self, backlog: _Backlog, task: Task) -> UInt8Array | None:
        """The picture that people see; None when it is gone."""
        try:
            return self._pictures.read(task, keys=DISPLAY_KEYS)
        except PredictionError as error:
            backlog.troubles[task.id] = error
            return None

    def _store(self, task: Task, html: str) -> None:
        """Replace the card file that the task names, if it lies in the shared folder."""
        url = task.data.get("card")
        if not isinstance(url, str) or not url:
            return
        path = self._pictures.local_path(url)
        if path is None or path.suffix != ".html":
            raise PredictionError(
                f"The card address {url[:200]!r} is not an .html file in the shared folder.",
                hint="Import the source with `cellai import`.",
            )
        write_card(path, html)


def _has_mask(backlog: _Backlog, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Of which rows a channel of the trunk's input outlines the cell."""
    tasks = (backlog.pool.tasks[row] for row in rows)
    return np.array([has_mask(input_mode(task.data, backlog.mode)) for task in tasks], np.bool_)


def _tell(backlog: _Backlog) -> None:
    """One line however many cards lack something."""
    if backlog.troubles:
        task_id, error = next(iter(backlog.troubles.items()))
        _log.warning(
            "project %d: %d of %d cards are incomplete, the first of task %d: %s",
            backlog.snapshot.project_id,
            len(backlog.troubles),
            len(backlog.rows),
            task_id,
            error,
            extra={"task_id": task_id},
        )
