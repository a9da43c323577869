"""The class that label-studio-ml knows: tasks in, predictions of the version in service out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from label_studio_ml.model import LabelStudioMLBase

from backend.errors import ParametersError
from backend.label_studio import Task
from backend.prediction import predict, prediction
from backend.service import Service
from converters.label_config import read_label_config


class CellClassifier(LabelStudioMLBase):  # type: ignore[misc]  # the library is untyped
    """Predictions for one request.

    Queue order comes from whole-pool rescoring in the job runner; a live prediction (a task
    that was imported a moment ago, a test from the model page) scores by certainty alone.

    Args:
        label_config: the project's labelling config, XML.
        project_id: Label Studio's id.
        service: where the version in service is found.
    """

    def __init__(self, label_config: str, *, project_id: int, service: Service) -> None:
        super().__init__(label_config=None)
        self._label_config_xml = label_config
        self._service = service
        self._serving = service.serving(project_id)
        self.model_version = service.model_version(project_id)

    def predict(self, tasks: Sequence[dict[str, Any]], **_: object) -> list[dict[str, Any]]:
        """Predict tasks.

        Args:
            tasks: N tasks as Label Studio sends them, each with `id` and `data`.

        Returns:
            N predictions in the same order; without a class where the picture cannot be
            read, or while no version predicts one.

        Raises:
            ParametersError: a task's `id` or `data` is of another type than Label Studio's.
            LabelConfigError: the labelling config cannot be used.
            WeightsError: the trunk cannot be loaded.
        """
        asked = [_task(number, task) for number, task in enumerate(tasks, start=1)]
        if self._serving is None:
            return [self._empty() for _ in tasks]
        project, version, head = self._serving
        if head is None:
            return [self._empty() for _ in tasks]
        label_config = read_label_config(self._label_config_xml)
        parameters = self._service.settings.parameters(project.extra_params)
        features = self._service.features()
        if version.interface != (label_config.classes, features.trunk.trunk_id, parameters.mode):
            return [self._empty() for _ in tasks]
        pool = features.pool(asked, mode=parameters.mode)
        predicted = predict(
            head,
            pool.features,
            passes=parameters.mc_passes,
            seed=self._service.settings.seed,
        )
        certainty = np.where(pool.is_readable, 1 - predicted.uncertainty, 1.0)
        return [
            prediction(
                task.id,
                label_config,
                predicted.probabilities[row] if pool.is_readable[row] else None,
                score=float(certainty[row]),
                model_version=version.version,  # the head's, whatever is served meanwhile
            )
            for row, task in enumerate(pool.tasks)
        ]

    def _empty(self) -> dict[str, Any]:
        return {"result": [], "score": 1.0, "model_version": self.model_version}


def _task(number: int, sent: dict[str, Any]) -> Task:
    """A task of the request; a missing id is 0, missing data is none.

    Args:
        number: which of the request's tasks it is, from 1.
        sent: as in the request.

    Raises:
        ParametersError: the id is no whole number, or the data no object.
    """
    task_id, data = sent.get("id"), sent.get("data")
    if task_id is not None and type(task_id) is not int:  # a bool is one to isinstance
        raise ParametersError(
            f"`id` of task {number} is {str(task_id)[:50]!r}, not a whole number.",
            hint="Send Label Studio's body.",
        )
    if data is not None and not isinstance(data, dict):
        raise ParametersError(
            f"`data` of task {number} is {str(data)[:50]!r}, not an object.",
            hint="Send Label Studio's body.",
        )
    return Task(task_id or 0, data or {})
