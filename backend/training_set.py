"""What Label Studio holds of a project, as the learner sees it: classes, tasks, labels.

Label Studio is the truth; a webhook only says when to look. Reading everything each time is
what makes a lost, doubled or reordered webhook harmless.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from backend.label_studio import LabelStudioClient, Task
from backend.settings import ProjectParameters
from converters.label_config import LabelConfig, read_label_config
from converters.labels import chosen_label

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A project at one moment.

    Attributes:
        project_id: Label Studio's id.
        label_config: control tag and classes.
        tasks: all tasks, ascending by id.
        labels: class index by task id, for every task with a usable annotation.
        model_version: the version that Label Studio sorts by now; '' for none.
        is_blind: annotators are not to see what the model thinks (the project's predictions
            are hidden), so the cards must not tell either.
    """

    project_id: int
    label_config: LabelConfig
    tasks: Sequence[Task]
    labels: dict[int, int]
    model_version: str
    is_blind: bool = False

    def digest(self, parameters: ProjectParameters, *, trunk_id: str, seed: int) -> str:
        """Identify what a head is trained for; the cells without a label are not part of it."""
        ingredients = {
            "classes": self.label_config.classes,
            "labels": sorted(self.labels.items()) if self.can_train else [],
            "parameters": parameters.model_dump(),
            "trunk": trunk_id,
            "seed": seed,
        }
        return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()

    @property
    def can_train(self) -> bool:
        """Whether at least two classes have a label."""
        return len(set(self.labels.values())) >= 2


def cards_name(version: str, snapshot: Snapshot) -> str:
    """What cards show: the version, and whether it is hidden from blind annotators."""
    return f"{version} (blind)" if snapshot.is_blind else version


class SnapshotReader:
    """Reads snapshots; remembers the tasks it has seen, since tasks are only added or deleted."""

    def __init__(self, client: LabelStudioClient) -> None:
        self._client = client
        self._tasks: dict[int, list[Task]] = {}

    def read(self, project_id: int) -> Snapshot:
        """Read the project from Label Studio.

        Raises:
            ProjectNotFoundError: the project was deleted.
            LabelConfigError: its labelling config has no choice of two classes or more.
        """
        project = self._client.project(project_id)
        label_config = read_label_config(project["label_config"])
        return Snapshot(
            project_id=project_id,
            label_config=label_config,
            tasks=self._read_tasks(project_id, expected=int(project["task_number"])),
            labels=self._read_labels(project_id, label_config),
            model_version=project["model_version"] or "",
            is_blind=not project["show_collab_predictions"],
        )

    def _read_tasks(self, project_id: int, *, expected: int) -> list[Task]:
        """Only tasks newer than the last one known are asked for, unless some were deleted."""
        known = self._tasks.get(project_id, [])
        tasks = known + list(self._client.tasks(project_id, after_id=known[-1].id if known else 0))
        if len(tasks) != expected and known:
            tasks = list(self._client.tasks(project_id))
        self._tasks[project_id] = tasks
        return tasks

    def _read_labels(self, project_id: int, label_config: LabelConfig) -> dict[int, int]:
        class_index = {name: index for index, name in enumerate(label_config.classes)}
        labels: dict[int, int] = {}
        unknown: set[str] = set()
        for task in self._client.annotated_tasks(project_id):
            chosen = chosen_label(task["annotations"], from_name=label_config.from_name)
            if chosen is None:
                continue
            if chosen.label in class_index:
                labels[int(task["id"])] = class_index[chosen.label]
            else:
                unknown.add(chosen.label)
        if unknown:
            _log.warning(
                "project %d: labels %s are no longer in the labelling config and are left out",
                project_id,
                sorted(unknown),
            )
        return labels
