"""From a version to the queue: predictions with scores, the switch, and the sweep.

Order of publication: import all predictions of the new version (Label Studio shows none of
them yet), then one PATCH of `project.model_version` switches the whole queue. Only missing
predictions are imported, so a crash in between is finished by running again.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from backend.acquisition import cold_start_priorities, queue_priorities
from backend.head import Head
from backend.label_studio import LabelStudioClient
from backend.pool import Pool
from backend.prediction import Predicted, predict, prediction
from backend.registry import Version
from backend.second_look import label_confidence
from backend.settings import ProjectParameters
from backend.training import CPU, TrainingSettings
from backend.training_set import Snapshot
from backend.uncertainty import score_from_priority

Float64Array = NDArray[np.float64]

VERSION_NAME = "cellai-{:04d}"
_OWN_VERSION = re.compile(r"cellai-(\d{4,})\Z")
# A task whose picture cannot be read comes last: nobody can label what nobody can see.
LAST = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Rescored:
    """A version's view of the N tasks of a pool.

    Attributes:
        version: the version.
        head: its head, None at cold start.
        predicted: None at cold start.
        scores: (N,) float64 in [0, 1]; of open tasks the queue order, lowest labelled first; of
            labelled ones the belief in their label, lowest looked at again first.
    """

    version: Version
    head: Head | None
    predicted: Predicted | None
    scores: Float64Array


def rescore(
    snapshot: Snapshot,
    pool: Pool,
    version: Version,
    head: Head | None,
    *,
    parameters: ProjectParameters,
    seed: int,
    device: torch.device = CPU,
) -> Rescored:
    """Score every task: queue order for those without a label, belief for the others.

    With one annotation per task the queue never serves a labelled task, so its score is free to
    order the second look. With more, Label Studio serves tasks that lack annotations at random.

    Args:
        snapshot: classes and labels.
        pool: features of the snapshot's tasks.
        version: whose head it is.
        head: None orders the queue by what stands for the pool alone.
        parameters: of the project.
        seed: of dropout masks and of the order.
        device: where to train the heads of the second look.
    """
    is_labelled = np.array([task.id in snapshot.labels for task in pool.tasks], np.bool_)
    is_open = ~is_labelled & pool.is_readable
    scores = np.full(len(pool.tasks), LAST)
    if head is None:
        if is_open.any():
            labelled_features = pool.features[is_labelled & pool.is_readable]
            priorities = cold_start_priorities(
                pool.features[is_open], labelled_features=labelled_features
            )
            scores[is_open] = score_from_priority(priorities)
        return Rescored(version, None, None, scores)

    predicted = predict(head, pool.features, passes=parameters.mc_passes, seed=seed)
    labels = np.array([snapshot.labels.get(task.id, -1) for task in pool.tasks], np.int64)
    is_doubtable = is_labelled & pool.is_readable
    if is_doubtable.any():
        scores[is_doubtable] = label_confidence(
            pool.features[is_doubtable],
            labels[is_doubtable],
            n_classes=len(snapshot.label_config.classes),
            temperature=float(head.temperature),
            settings=TrainingSettings.of(parameters, seed=seed),
            device=device,
        )
    if is_open.any():
        priorities = queue_priorities(
            pool.features,
            predicted.mc_probabilities[:, is_open],
            labels[is_labelled],
            strategy=parameters.acquisition,
            seed=seed,
            rows=np.flatnonzero(is_open),
        )
        scores[is_open] = score_from_priority(priorities)
    return Rescored(version, head, predicted, scores)


def publish(
    client: LabelStudioClient,
    snapshot: Snapshot,
    pool: Pool,
    rescored: Rescored,
    *,
    on_stage: Callable[[str], None],
) -> None:
    """Import the predictions that Label Studio lacks, then switch the queue to the version.

    Raises:
        LabelStudioError: not reached, or rows refused; running again goes on from there.
    """
    name = rescored.version.version
    on_stage(f"importing predictions of {name}")
    present = _tasks_with(client, snapshot.project_id, name)
    client.import_predictions(
        snapshot.project_id, prediction_rows(snapshot, pool, rescored, present=present)
    )
    # A slow Label Studio may have carried out an import of a run that was killed meanwhile.
    if client.model_versions(snapshot.project_id).get(name) != len(pool.tasks):
        _tasks_with(client, snapshot.project_id, name)
    if snapshot.model_version != name:
        client.set_model_version(snapshot.project_id, name)


def prediction_rows(
    snapshot: Snapshot, pool: Pool, rescored: Rescored, *, present: Collection[int]
) -> Iterator[dict[str, Any]]:
    """What Label Studio is to import, a row for each task, made when it is taken.

    Args:
        snapshot: names the control tag and the classes.
        pool: the tasks.
        rescored: what the version says about them.
        present: ids of tasks that have their row already.
    """
    for row, task in enumerate(pool.tasks):
        if task.id not in present:
            yield prediction(
                task.id,
                snapshot.label_config,
                _probabilities(rescored, row) if pool.is_readable[row] else None,
                score=float(rescored.scores[row]),
                model_version=rescored.version.version,
            )


def next_version_name(known: Sequence[str]) -> str:
    """Name after the highest number among ours; names of other backends are passed over."""
    numbers = [int(match[1]) for name in known if (match := _OWN_VERSION.match(name))]
    return VERSION_NAME.format(max(numbers, default=0) + 1)


def outdated_predictions(
    client: LabelStudioClient, project_id: int, *, keep: set[str]
) -> list[int]:
    """Ids of our own predictions whose version is not in `keep`, oldest first."""
    counts = client.model_versions(project_id)
    if not any(_OWN_VERSION.match(name) and name not in keep for name in counts):
        return []
    return sorted(
        row["id"]
        for row in client.predictions(project_id)
        if _OWN_VERSION.match(row["model_version"] or "") and row["model_version"] not in keep
    )


def _tasks_with(client: LabelStudioClient, project_id: int, version: str) -> set[int]:
    """Tasks that have a prediction of the version; doubled ones are removed on the way."""
    if not client.model_versions(project_id).get(version):
        return set()
    tasks: set[int] = set()
    for row in client.predictions(project_id):
        if row["model_version"] != version:
            continue
        if row["task"] in tasks:
            client.delete_prediction(row["id"])
        tasks.add(row["task"])
    return tasks


def _probabilities(rescored: Rescored, row: int) -> NDArray[np.float32] | None:
    return None if rescored.predicted is None else rescored.predicted.probabilities[row]
